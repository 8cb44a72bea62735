"""What a network costs on paper: parameters, multiply-accumulates, bytes, layer by layer."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, final

from torch import Tensor, nn

from gracile.cost.macs import is_view, macs
from gracile.graph import Step, watch


@final
@dataclass(frozen=True)
class LayerCost:
    """The cost of one module's own parameters and operators, without its children's.

    Attributes:
        layer: dotted path; ``""`` is the network itself.
        kind: class of the module.
        parameters: numbers that can be learned, shared ones with the layer that names them first.
        macs: multiply-accumulates for the example; ``nan`` if an operator has no known count.
        bytes: storage of parameters and buffers.
        activations: bytes that the layer's operators write.
        unmodeled: operators without a known count, with the line that calls them.
    """

    layer: str
    kind: str
    parameters: int
    macs: float
    bytes: int
    activations: int
    unmodeled: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class Cost:
    """Costs by layer, in the order in which the layers were defined.

    >>> small = LayerCost("fc", "Linear", parameters=6, macs=4.0, bytes=24, activations=8)
    >>> Cost((small, small)).macs
    8.0
    """

    rows: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Sum over the layers."""
        return sum(row.parameters for row in self.rows)

    @property
    def macs(self) -> float:
        """Sum over the layers; ``nan`` if any layer's is unknown."""
        return math.fsum(row.macs for row in self.rows)

    @property
    def bytes(self) -> int:
        """Storage of parameters and buffers."""
        return sum(row.bytes for row in self.rows)

    @property
    def activations(self) -> int:
        """Bytes that one pass writes (not the peak: memory that is freed is counted too)."""
        return sum(row.activations for row in self.rows)

    @property
    def unmodeled(self) -> tuple[str, ...]:
        """Operators without a known count, with the lines that call them."""
        return tuple(name for row in self.rows for name in row.unmodeled)


def count(model: nn.Module, *example_inputs: Any, **kwargs: Any) -> Cost:
    """Watch one forward pass and count it.

    MACs are those of convolutions, matrix products and attention; element-wise operators,
    pooling, normalization and data movement count 0. Divide by the example's batch size for a
    figure per image. Tied parameters are counted once.

    Args:
        model: any network that :func:`gracile.graph.watch` can run.
        example_inputs, kwargs: what the model is called with.

    Raises:
        GraphError: the model cannot be run on the example.

    >>> import torch
    >>> cost = count(nn.Linear(3, 5), torch.zeros(2, 3))
    >>> cost.parameters, cost.macs, cost.bytes, cost.activations
    (20, 30.0, 80, 40)
    """
    return tally(model, watch(model, *example_inputs, **kwargs).steps)


def tally(model: nn.Module, steps: Iterable[Step]) -> Cost:
    """Count steps that have been watched already (``graph.steps``); see :func:`count`."""
    work: dict[str, float] = defaultdict(float)
    written: dict[str, int] = defaultdict(int)
    unmodeled: dict[str, list[str]] = defaultdict(list)
    for step in steps:
        amount = macs(step)
        work[step.module] += amount
        if math.isnan(amount):
            unmodeled[step.module].append(f"{step.op} ({step.source})")
        if not is_view(step.op):
            written[step.module] += sum(prod(out.shape) * out.dtype.itemsize for out in step.outputs)
    rows = []
    seen: set[Tensor] = set()
    modules = dict(model.named_modules(remove_duplicate=False))
    for layer in dict.fromkeys((*modules, *work)):
        module = modules.get(layer)
        learned = _new(module.parameters(recurse=False), seen) if module else []
        stored = learned + (_new(module.buffers(recurse=False), seen) if module else [])
        if stored or work[layer] or written[layer]:
            rows.append(
                LayerCost(
                    layer,
                    type(module).__name__ if module else "",
                    parameters=sum(p.numel() for p in learned),
                    macs=work[layer],
                    bytes=sum(t.numel() * t.element_size() for t in stored),
                    activations=written[layer],
                    unmodeled=tuple(dict.fromkeys(unmodeled[layer])),
                )
            )
    return Cost(tuple(rows))


def _new(tensors: Iterable[Tensor], seen: set[Tensor]) -> list[Tensor]:
    fresh = [tensor for tensor in tensors if tensor not in seen]
    seen.update(fresh)
    return fresh
