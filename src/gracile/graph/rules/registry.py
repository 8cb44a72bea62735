"""How a rule is registered, and what it may do.

A rule is a function ``(at, out, *args, **kwargs)`` with the arguments of one ATen operator. It reads the axes
of tensors, lets labels meet, and returns the axes of the output: a list for one tensor, a tuple of lists for
several. It never looks at module types and never compares sizes to guess what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
from torch import Tensor
from torch._ops import OpOverload

from gracile.graph.labels import Axis, Labels
from gracile.graph.records import Operand
from gracile.graph.reshape import reshape

Axes = list[Axis]
Before = tuple[Tensor, tuple[int, ...], Sequence[Axis]] | None  # a tensor about to be written, shape and axes
Rule = Callable[..., Axes | tuple[Axes, ...]]
RULES: dict[str, Rule] = {}

ATTRIBUTE = "_gracile_operand"  # where a watched tensor carries its labels


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under the names of operators, e.g. ``@rule("view", "_unsafe_view")``."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def operand(x: Tensor) -> Operand | None:
    """What a watched tensor carries, if it still has the shape it was given for."""
    found: Operand | None = getattr(x, ATTRIBUTE, None)
    return found if found is not None and found.shape == x.shape else None


def nothing(n: int) -> Axes:
    """The axes of n dimensions in which nothing can go."""
    return [None] * n


@final
class Site:
    """The operator call at hand, as a rule sees it."""

    def __init__(self, labels: Labels, keep_norms: bool) -> None:
        self.labels = labels
        self.keep_norms = keep_norms
        self.counted: list[tuple[Tensor, int]] = []
        self._before: Before = None
        self.contracted: dict[int, Axis] = {}  # dims of weights that were contracted, by id

    def enter(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any], before: Before) -> None:
        """Turn to the next operator call; `before` is what an argument that is written to was."""
        self._call, self._before, self.counted = (func, args, kwargs), before, []

    def argument(self, name: str) -> Any:
        """The value of an argument by its name in the schema, None where the operator has none such."""
        func, args, kwargs = self._call
        if name in kwargs:
            return kwargs[name]
        for position, declared in enumerate(func._schema.arguments):
            if declared.name == name:
                return args[position] if position < len(args) else declared.default_value
        return None

    def shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape an argument had when the operator was called."""
        return self._before[1] if self._before is not None and self._before[0] is x else tuple(x.shape)

    def axes(self, x: Tensor | None) -> Axes:
        """The labels of every dimension of a tensor, as it was when the operator was called."""
        if x is None:
            return []
        if self._before is not None and self._before[0] is x:
            return list(self._before[2])
        found = operand(x)
        return nothing(x.dim()) if found is None else list(found.labels)

    def fresh(self, n: int) -> Axis:
        """Labels for a dimension whose content does not depend on the index."""
        return self.labels.fresh(n) if n > 1 else None

    def unify(self, first: Axis, *others: Axis) -> Axis:
        """Let the same indices of all these axes live."""
        for other in others:
            first = self.labels.unify(first, other)
        return first

    def pin(self, *axes: Axis) -> None:
        """Let every index of these axes live forever."""
        for axis in axes:
            self.labels.pin(axis)

    def reshape(self, axes: Sequence[Axis], before: Sequence[int], after: Sequence[int]) -> Axes:
        """Axes after a row-major reshape."""
        return reshape(self.labels, axes, before, after)

    def count(self, x: Tensor, dim: int, axis: Axis | None = None) -> None:
        """The operator counts along this dimension: zeroing an index there is not removing it."""
        axis = self.axes(x)[dim] if axis is None else axis
        if axis is None:
            return
        if self.keep_norms:
            self.labels.pin(axis)
        else:
            self.counted.append((x, dim % x.dim()))

    def contract(self, x: Tensor, dim: int) -> Axis:
        """The axis of a dimension that is summed over; marked as an input when x is a weight."""
        axis = self.axes(x)[dim]
        found = operand(x)
        if axis is not None and found is not None and found.weight:
            self.contracted[id(axis)] = axis
        return axis

    def unify_broadcast(self, axes: Axes, shape: Sequence[int], x: Tensor) -> Axes:
        """Let the axes of an output meet those of a tensor that is added to it."""
        axes = list(axes)
        carried = self.axes(x)
        for back in range(1, x.dim() + 1):
            if x.shape[-back] == shape[-back]:
                axes[-back] = self.labels.unify(axes[-back], carried[-back])
        return axes

    def broadcast(self, out: Sequence[int], *tensors: Tensor) -> Axes:
        """Element-wise: equal sizes meet, dimensions of size 1 go with anything."""
        result: Axes = []
        carried = [(x.shape, self.axes(x)) for x in tensors]
        for back in range(len(out), 0, -1):
            axis, seen = None, False
            for shape, axes in carried:
                if back > len(shape) or shape[-back] == 1:
                    continue
                axis = self.labels.unify(axis, axes[-back]) if seen else axes[-back]
                seen = True
            result.append(axis)
        return result


def placed(axis: Axis, n: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """The axis as an array: (n, 1) zeros where nothing can go."""
    return np.zeros((n, 1), np.int32) if axis is None else axis


def joined(parts: Sequence[tuple[Axis, int]]) -> Axis:
    """Axes one behind another, each with its length."""
    if all(axis is None for axis, _ in parts):
        return None
    arrays = [placed(axis, n) for axis, n in parts]
    width = max(array.shape[1] for array in arrays)
    return np.concatenate(
        [np.pad(a, ((0, 0), (0, width - a.shape[1]))) if a.shape[1] < width else a for a in arrays]
    )


def tensors_of(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among arguments, lists of them included, in order."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += [item for item in value if isinstance(item, Tensor)]
    return found
