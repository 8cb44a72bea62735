"""Run a watched network again, in step with its log, on kept indices where an operator counts.

Zeroing an index is not removing it where an operator counts along a dimension: the mean of a layer norm
divides by the full width. In a replay such operators see the kept indices only, and zeros stand in the place
of the others. Where nothing is counted a replay is an ordinary run that can be looked at step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.errors import RefusedError
from gracile.graph import Graph, Operand, Step
from gracile.graph.labels import Axis
from gracile.graph.rules.registry import tensors_of
from gracile.reduce.apply import take

# Operators that run over a whole dimension and take a zero for nothing.
ADDING = ("sum", "nansum", "linalg_vector_norm", "count_nonzero", "any")

Visit = Callable[[int, Step, tuple[Any, ...], list[Tensor]], None]


class UnprovenError(RefusedError):
    """A model does something else than it should; ``step`` is the first operator that does, -1 if unknown."""

    def __init__(self, reason: str, graph: Graph, step: int = -1) -> None:
        where = graph.steps[step] if step >= 0 else None
        self.step, self.reason = step, reason
        self.op, self.source = ("", "") if where is None else (where.op, where.source)
        super().__init__(
            "verifying a cut",
            got=reason if where is None else f"{reason} at {self.op}, {self.source}",
            expected="the output of the masked model",
        )


@final
class Survivors:
    """Which indices of any axis stay when these units go."""

    def __init__(self, graph: Graph, units: Iterable[int]) -> None:
        self.graph, self.units = graph, sorted(units)
        self._known: dict[
            int, tuple[Axis, Tensor | None]
        ] = {}  # holds the axis, so that its id stays its own

    def of(self, axis: Axis) -> Tensor | None:
        """Kept indices; None when all stay."""
        if axis is None:
            return None
        if id(axis) not in self._known:
            kept = self.graph.kept(axis, self.units)
            self._known[id(axis)] = (axis, None if kept is None else torch.tensor(kept, dtype=torch.long))
        return self._known[id(axis)][1]

    def dims(self, operand: Operand) -> dict[int, Tensor]:
        """Kept indices of every dimension that loses some."""
        found = ((dim, self.of(axis)) for dim, axis in enumerate(operand.labels))
        return {dim: kept for dim, kept in found if kept is not None}


@final
class Replay(TorchDispatchMode):
    """A dispatch mode that replays ``graph.steps`` on the full-size model.

    Args:
        graph: the log.
        survivors: what stays.
        visit: called after every step with its number, the step, its arguments and its output tensors.

    After the run ``counted`` tells whether any operator counted over an axis that loses indices; a sum over
    zeros does not.
    """

    def __init__(self, graph: Graph, survivors: Survivors, visit: Visit | None = None) -> None:
        super().__init__()
        self.graph, self.survivors, self.visit = graph, survivors, visit
        self.number = 0
        self.counted = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        step = in_step(self.graph, self.number, func)
        out = func(*args, **(kwargs or {}))
        if step.counted and not func._schema.is_mutable and self._loses(step, args, kwargs or {}):
            self.counted = True
            self._on_kept(func, step, args, kwargs or {}, out)
        self.number += 1
        if self.visit is not None:
            self.visit(self.number - 1, step, args, tensors_in(out))
        return out

    def _loses(self, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        inputs = step.inputs
        if adds(step) and self._silent(step, tensors_of((*args, *kwargs.values()))):
            return False
        if step.op == "aten.native_group_norm.default":  # groups that go as a whole take nothing from others
            kept = self.survivors.of(inputs[0].labels[1])
            inner = args[4] // args[6]
            members = None if kept is None else (kept // inner).unique(return_counts=True)[1]
            return members is not None and bool((members < inner).any())
        return any(
            self.survivors.of(inputs[position].labels[dim]) is not None for position, dim in step.counted
        )

    def _silent(self, step: Step, tensors: list[Tensor]) -> bool:
        """Whether there are zeros wherever something goes."""
        for position, dim in step.counted:
            x, kept = tensors[position], self.survivors.of(step.inputs[position].labels[dim])
            if kept is not None and bool(x.index_fill(dim, kept.to(x.device), 0).any()):
                return False
        return True

    def _on_kept(
        self, func: OpOverload, step: Step, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        """Overwrite ``out`` (which has the strides to keep) with the result on kept indices, and zeros."""
        small_args = [self._smaller(value, given) for value, given in zip(args, step.args, strict=True)]
        small_kwargs = {key: self._smaller(value, step.kwargs[key]) for key, value in kwargs.items()}
        _resize(func, args, small_args, self.survivors.dims(step.inputs[0]).get(1))
        small_out = func(*small_args, **small_kwargs)
        for whole, part, given in zip(tensors_in(out), tensors_in(small_out), step.outputs, strict=True):
            for dim, kept in self.survivors.dims(given).items():
                shape = [*part.shape]
                shape[dim] = whole.shape[dim]
                part = part.new_zeros(shape).index_copy_(dim, kept.to(part.device), part)
            if part.shape == whole.shape:  # scratch outputs may be of any size
                whole.copy_(part)

    def _smaller(self, value: Any, given: Any) -> Any:
        if isinstance(value, Tensor):
            return take(value, self.survivors.dims(given)) if isinstance(given, Operand) else value
        if isinstance(value, (list, tuple)):
            return [self._smaller(v, g) for v, g in zip(value, given, strict=True)]
        return value


def _resize(func: OpOverload, args: tuple[Any, ...], small: list[Any], channels: Tensor | None) -> None:
    """The few operators that are told sizes which their tensors have as well."""
    packet = func._schema.name.split("::")[1]
    if packet in ("native_layer_norm", "_fused_rms_norm", "rms_norm"):
        small[1] = list(small[0].shape[-len(args[1]) :])
    elif packet == "native_group_norm" and channels is not None:
        small[4] = len(channels)
        small[6] = len((channels // (args[4] // args[6])).unique())  # groups of which something stays


def adds(step: Step) -> bool:
    """Whether the operator runs over a whole dimension but takes a zero for nothing."""
    return step.op.split(".")[1] in ADDING


def in_step(graph: Graph, number: int, func: OpOverload) -> Step:
    """The step that ``func`` must be."""
    steps = graph.steps
    if number >= len(steps):
        raise UnprovenError(f"one more operator than watched, {func}", graph, len(steps) - 1)
    if steps[number].op != str(func):
        raise UnprovenError(f"{func} in the place of {steps[number].op}", graph, number)
    return steps[number]


def tensors_in(out: Any) -> list[Tensor]:
    """The tensors of an operator's result, in the order of its step's outputs."""
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [y for item in out for y in tensors_in(item)]
    return []
