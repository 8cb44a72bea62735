"""A multi-layer perceptron: the smallest network on which an idea can be tried."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


@final
class MLP(nn.Module):
    """Fully connected layers with ReLU between them.

    Args:
        sizes: inputs, neurons of each hidden layer, outputs; ``(784, 300, 100, 10)`` is LeNet-300-100.

    >>> model = MLP((784, 300, 100, 10))
    >>> sum(p.numel() for p in model.parameters())
    266610
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        *hidden, last = pairwise(sizes)
        self.hidden = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in hidden)
        self.output = nn.Linear(*last)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map ``(batch, ...)``, flattened to ``(batch, sizes[0])``, to ``(batch, sizes[-1])``."""
        x = torch.flatten(inputs, 1)
        for layer in self.hidden:
            x = functional.relu(layer(x))
        return self.output(x)
