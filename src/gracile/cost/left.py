"""What a network will cost once units are gone, counted from what was watched: no reduced copy is made."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any, final

import numpy as np
import numpy.typing as npt
from torch import nn

from gracile.cost.macs import macs
from gracile.graph import Graph, Operand, Step

Gone = npt.NDArray[np.bool_]


def macs_left(graph: Graph, model: nn.Module) -> Callable[[Gone], float]:
    """Multiply-accumulates of one pass when units are gone; ``nan`` if an operator has no known count.

    A cost for :func:`gracile.reduce.within`. Equal to what :func:`gracile.cost.count` finds in the reduced
    network.

    Args:
        graph: what was watched, with the example that the MACs are for.
        model: not looked at; costs have this signature.

    >>> import torch
    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> left = macs_left(watch(model, torch.zeros(1, 4)), model)
    >>> left(np.zeros(8, bool)), left(np.arange(8) < 6)
    (48.0, 12.0)
    """
    sizes = _Sizes(graph)
    fixed, varying = [0.0], []
    for step in graph.steps:
        amount = macs(step)
        if amount and not math.isnan(amount) and any(sizes.varies(x) for x in (*step.inputs, *step.outputs)):
            varying.append(step)
        else:
            fixed.append(amount)
    constant = math.fsum(fixed)

    def left(gone: Gone) -> float:
        flags = np.append(gone, False)  # -1, no unit, is the last
        return math.fsum((constant, *(macs(sizes.without(step, flags)) for step in varying)))

    return left


@final
class _Sizes:
    """The operands of steps with the sizes that are left."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._owners: dict[int, tuple[object, Any]] = {}  # holds the axis, so that its id stays its own

    def _owner(self, axis: Any) -> Any:
        if axis is None:
            return None
        if id(axis) not in self._owners:
            owners = self._graph.owners(axis)
            self._owners[id(axis)] = (axis, None if owners is None or owners.max() < 0 else owners)
        return self._owners[id(axis)][1]

    def varies(self, operand: Operand) -> bool:
        return any(self._owner(axis) is not None for axis in operand.labels)

    def without(self, step: Step, flags: Gone) -> Step:
        return replace(
            step,
            args=tuple(self._smaller(value, flags) for value in step.args),
            kwargs={key: self._smaller(value, flags) for key, value in step.kwargs.items()},
            outputs=tuple(self._smaller(value, flags) for value in step.outputs),
        )

    def _smaller(self, value: Any, flags: Gone) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._smaller(item, flags) for item in value)
        if not isinstance(value, Operand) or not prod(value.shape):
            return value
        owners = [self._owner(axis) for axis in value.labels]
        shape = tuple(
            size if owner is None else size - int(flags[owner].sum())
            for size, owner in zip(value.shape, owners, strict=True)
        )
        return replace(value, shape=shape)
