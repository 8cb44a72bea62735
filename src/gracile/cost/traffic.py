"""Bytes that one pass moves: weights in the bits they are stored in, their indices, activations.

Fewer multiply-accumulates save little where memory is the bottleneck: an element-wise sparse matrix needs an
index for every number, and what a network reads and writes does not shrink with its zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, final

from torch import Tensor, nn

from gracile.cost.count import tally
from gracile.cost.macs import is_view
from gracile.graph import Operand, Step, watch

FLOAT = 32.0  # bits
POINTER = 32  # bits of the place where a row begins


@final
@dataclass(frozen=True)
class Traffic:
    """What one layer moves for one example, in bytes.

    Attributes:
        layer: dotted path.
        macs: multiply-accumulates for the example; ``nan`` if unknown.
        weights: numbers of the parameters, without zeros where the layer is stored sparse.
        indices: where those numbers belong; 0 where it is stored dense.
        activations: read and written by operators that move data.
    """

    layer: str
    macs: float
    weights: float
    indices: float
    activations: float

    @property
    def bytes(self) -> float:
        """Sum of the three."""
        return self.weights + self.indices + self.activations


def traffic(
    model: nn.Module, *example_inputs: Any, bits: Mapping[str, float] | None = None
) -> tuple[Traffic, ...]:
    """Traffic of every layer, for one pass in which weights are read once and nothing stays in a cache.

    A matrix of weights is stored dense, rows * columns * bits, or by its nonzeros, with for each of them
    ceil(log2(columns)) bits for its column and for each row 32 bits for where it begins; whichever is less.
    A weight of more than two dimensions is the matrix of its first against the others. Activations are
    those that operators read (weights apart) and write, views excepted.

    Args:
        model: any network that :func:`gracile.graph.watch` can run.
        example_inputs: what it is called with.
        bits: of one number of a parameter, by its name; 32 by default.

    Source: C11 and C16 name the costs (random access, capacity); the formulas are ours.

    >>> import torch
    >>> layer = nn.Linear(4, 2, bias=False)
    >>> [row] = traffic(layer, torch.zeros(1, 4), bits={"weight": 8})
    >>> row.weights, row.indices, row.activations
    (8.0, 0.0, 24.0)
    """
    known = dict(bits or {})
    moved: dict[str, float] = {}
    steps = watch(model, *example_inputs).steps
    for step in steps:
        moved[step.module] = moved.get(step.module, 0.0) + _moved(step)
    macs = {row.layer: row.macs for row in tally(model, steps).rows}
    rows = []
    for layer, module in model.named_modules():
        stored = [
            stored_bytes(parameter.detach(), known.get(f"{layer}.{name}".lstrip("."), FLOAT))
            for name, parameter in module.named_parameters(recurse=False)
        ]
        if stored or moved.get(layer):
            weights, indices = (
                (math.fsum(part) for part in zip(*stored, strict=True)) if stored else (0.0, 0.0)
            )
            rows.append(Traffic(layer, macs.get(layer, 0.0), weights, indices, moved.get(layer, 0.0)))
    return tuple(rows)


def stored_bytes(tensor: Tensor, bits: float) -> tuple[float, float]:
    """Bytes of a tensor's numbers and of their indices, in the cheaper of the two forms of :func:`traffic`.

    >>> import torch
    >>> stored_bytes(torch.eye(64), bits=32)  # 64 numbers, 64 columns of 6 bits, 64 rows of 32
    (256.0, 304.0)
    """
    dense = tensor.numel() * bits / 8
    if tensor.dim() < 2 or not tensor.numel():
        return dense, 0.0
    rows, columns = tensor.shape[0], prod(tensor.shape[1:])
    nonzeros = int((tensor != 0).sum())
    index = (nonzeros * math.ceil(math.log2(columns)) + rows * POINTER) / 8 if columns > 1 else 0.0
    sparse = nonzeros * bits / 8
    return (sparse, index) if sparse + index < dense else (dense, 0.0)


def _moved(step: Step) -> float:
    """Bytes of activations that one operator reads and writes; views move nothing."""
    from_memory = [operand for operand in step.inputs if not operand.weight]
    return 0.0 if is_view(step.op) else float(sum(map(_bytes, (*from_memory, *step.outputs))))


def _bytes(operand: Operand) -> int:
    return prod(operand.shape) * operand.dtype.itemsize
