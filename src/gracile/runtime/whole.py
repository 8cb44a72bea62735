"""A whole network as torch runs it: for networks whose zeros are too few, or in the wrong places, to pay."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gracile.reduce.copies import duplicate


@final
class Whole:
    """A copy of a model; with ``channels_last``, the channels of a pixel lie side by side.

    >>> Whole(nn.Linear(3, 2))(torch.zeros(1, 3)).shape
    torch.Size([1, 2])
    """

    def __init__(self, model: nn.Module, channels_last: bool = False) -> None:
        network: Any = duplicate(model).eval().requires_grad_(False)
        self._network = network.to(memory_format=torch.channels_last) if channels_last else network
        self._channels_last = channels_last

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            answer = self._network(*inputs)
        return (
            pytree.tree_map_only(Tensor, torch.Tensor.contiguous, answer) if self._channels_last else answer
        )

    @property
    def nbytes(self) -> int:
        """Of parameters and buffers."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by name, as a file keeps them."""
        return {name: x for name, x in self._network.state_dict().items() if isinstance(x, Tensor)}
