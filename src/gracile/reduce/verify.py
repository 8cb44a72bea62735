"""The judge: a reduced network must compute what the masked one computes.

Numbers decide, on inputs that the graph was not made from. First the *structure* is tried on copies with
jittered weights, where nothing is zero by chance: full size with the removed slices set to zero, against
reduced. Then, where the removed units are dead already, the *function*: the reduced model against the
original. Operators that count over a cut axis see the kept indices only (see :mod:`gracile.reduce.replay`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.graph import Cut, Graph, Outputs, Step
from gracile.reduce.apply import apply_, refresh_, take
from gracile.reduce.copies import duplicate, undisturbed
from gracile.reduce.probes import Inputs, copied, fresh, jitter_, leaves, mapped, scramble_, twice
from gracile.reduce.replay import Replay, Survivors, UnprovenError, in_step, tensors_in

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}
SUSPICIOUS = (
    3e-6  # in float32: rounding seldom reaches it, and a constant that is slightly off may stay near it
)
CLEARLY = 4  # by how much a cut must move the output more than its error: a mistake moves it as much


@dataclass(frozen=True)
class Verdict:
    """What verification found.

    ``kind`` is ``"exact"`` when the reduced network equals the masked one as it is, ``"renormalized"`` when
    it does so after operators that count (LayerNorm, softmax, mean) were told to count kept indices only.
    ``error`` is the largest difference over the largest reference value, among all entries of an output and
    among those that depend on what is removed; ``moved`` says by how much the same
    measure changed between the full network and the masked one, on jittered weights: how much was at stake.
    """

    kind: Literal["exact", "renormalized"]
    error: float
    moved: float


def verify(
    model: nn.Module,
    graph: Graph,
    units: Iterable[int],
    cut: Cut,
    inputs: Inputs,
    *,
    reduced: nn.Module | None = None,
    tolerance: float | None = None,
) -> Verdict:
    """Prove that cutting ``units`` from ``model`` is masking them, or raise.

    Args:
        model: the full-size model that was watched.
        graph: what :func:`gracile.graph.watch` learned of it.
        units: what goes.
        cut: ``graph.cut(units)``.
        inputs: positional and named arguments of the example; other numbers are drawn from it.
        reduced: the final reduced model, when the units are dead and it must equal ``model`` itself.
        tolerance: largest allowed error, relative to the largest reference value; by default 1e-9 in
            float64, 1e-4 in float32, 2e-2 in float16, 5e-2 in bfloat16.

    Raises:
        UnprovenError: outputs differ, the reduced model fails, or the masked units never reach the output.
    """
    survivors = Survivors(graph, units)
    for weights in other_weights(model):
        verdict = _same_structure(weights, graph, survivors, cut, inputs, tolerance)
        if verdict.moved > CLEARLY * verdict.error:
            break
    else:
        raise UnprovenError("an output that does not depend on what was removed: nothing is proven", graph)
    if reduced is None:
        return verdict
    error = _same_function(model, reduced, graph, survivors, inputs, tolerance)
    return replace(verdict, error=max(error, verdict.error))


def other_weights(model: nn.Module) -> Iterator[nn.Module]:
    """Copies with jittered weights; then, if that leaves units silent, with others altogether."""
    jittered = duplicate(model)
    jitter_(jittered, seed=1)
    yield jittered
    for seed in (2, 3):
        for sign in (1.0, -1.0):
            scrambled = duplicate(model)
            scramble_(scrambled, seed, sign)
            yield scrambled


def _same_structure(
    full: nn.Module, graph: Graph, survivors: Survivors, cut: Cut, inputs: Inputs, tolerance: float | None
) -> Verdict:
    """Masked against reduced."""
    masked = duplicate(full)
    mask_(masked, graph, cut)
    small = duplicate(full)
    apply_(small, cut)
    error, moved, narrower = 0.0, 0.0, False
    for number, (probe, before) in enumerate(trials(full, graph, inputs)):
        try:
            reference, counted = _reference(masked, graph, survivors, probe)
        except UnprovenError:  # a larger batch may be a longer sequence, which the log cannot follow
            if number:
                break
            raise
        try:
            found = run(small, probe, graph.outputs)
        except Exception as failure:
            step = _first_difference(masked, small, graph, survivors, inputs)
            reason = f"the reduced model fails ({type(failure).__name__}: {str(failure)[:200]})"
            raise UnprovenError(reason, graph, step) from failure
        changed = _changed(before, reference)
        this = difference(reference, found)
        if this < math.inf:  # a huge constant beside what can change sets no scale for it
            this = max(this, difference(_only(reference, changed), _only(found, changed)))
        bound = tolerance if tolerance is not None else tolerance_of(reference)
        if tolerance is None and SUSPICIOUS < this < math.inf:
            wide = _in_float64(masked, small, graph, survivors, probe, changed)
            bound = bound if wide is None else (this if wide <= TOLERANCE[torch.float64] else 0.0)
        if not this <= bound:
            step = _first_difference(masked, small, graph, survivors, inputs)
            raise UnprovenError(f"a relative error of {this:.1e}", graph, step)
        narrower |= counted
        stake = difference(_only(before, changed), _only(reference, changed))
        error, moved = max(error, this), max(moved, stake)
    return Verdict("renormalized" if narrower else "exact", error, moved)


def _in_float64(
    masked: nn.Module,
    small: nn.Module,
    graph: Graph,
    survivors: Survivors,
    inputs: Inputs,
    changed: list[Tensor],
) -> float | None:
    """The difference where rounding explains nothing; None if the model computes in float32 all the same."""

    def widened(x: Tensor) -> Tensor:
        return x.double() if x.dtype == torch.float32 else x

    single = _Single()
    try:
        wide_masked, wide_small = duplicate(masked).double(), duplicate(small).double()
        wide = mapped(inputs[0], widened), mapped(inputs[1], widened)
        with single:
            reference = _reference(wide_masked, graph, survivors, wide)[0]
            found = run(wide_small, wide, graph.outputs)
    except Exception:
        return None
    if single.seen:
        return None
    return max(difference(reference, found), difference(_only(reference, changed), _only(found, changed)))


class _Single(TorchDispatchMode):
    """Notes whether any operator gives float32."""

    seen = False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= any(y.dtype == torch.float32 and y.dim() > 0 for y in tensors_in(out))
        return out


def _same_function(
    model: nn.Module,
    reduced: nn.Module,
    graph: Graph,
    survivors: Survivors,
    inputs: Inputs,
    tolerance: float | None,
) -> float:
    """Largest error of the reduced model against the original one."""
    error = 0.0
    for number, (probe, before) in enumerate(trials(model, graph, inputs)):
        try:
            reference = _reference(model, graph, survivors, probe)[0] if _counts(graph) else before
        except UnprovenError:
            if number:
                break
            raise
        this = difference(reference, run(reduced, probe, graph.outputs))
        if not this <= (tolerance if tolerance is not None else tolerance_of(reference)):
            raise UnprovenError(f"a relative error of {this:.1e} against the original model", graph)
        error = max(error, this)
    return error


@torch.no_grad()
def mask_(model: nn.Module, graph: Graph, cut: Cut) -> None:
    """Set everything to zero that ``cut`` would remove from parameters, in place.

    The direction of a weight norm keeps its values where it produces units: 0/0 is not zero, and its
    magnitude is set to zero anyway.
    """
    directions = {
        (step.inputs[0].name, step.args[2] if len(step.args) > 2 else 0)
        for step in graph.steps
        if step.op.startswith("aten._weight_norm_interface")
    }
    parameters = dict(model.named_parameters())
    for name, dims in cut.tensors.items():
        if name in parameters:
            for dim, kept in dims.items():
                if (name, dim) not in directions:
                    gone = torch.ones(parameters[name].shape[dim], dtype=torch.bool)
                    gone[list(kept)] = False
                    parameters[name].index_fill_(dim, gone.nonzero().flatten().to(parameters[name].device), 0)
    refresh_(model)


def difference(reference: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over the largest reference value; infinite where shapes or kinds differ."""
    if len(reference) != len(found):
        return float("inf")
    largest = 0.0
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if a.is_floating_point() or a.is_complex():
            same = (a == b) | (a.isnan() & b.isnan())
            finite = a[a.isfinite()].abs()
            scale = float(finite.max()) if finite.numel() else 1.0
            gap = float((a - b)[~same].abs().max()) if not same.all() else 0.0
            largest = max(largest, gap / (scale or 1.0) if gap == gap else float("inf"))
        elif not torch.equal(a, b):
            return float("inf")
    return largest


def _changed(before: list[Tensor], after: list[Tensor]) -> list[Tensor]:
    """Which entries of the outputs differ; all where a shape does."""
    return [
        a != b if a.shape == b.shape else torch.ones_like(b, dtype=torch.bool)
        for a, b in zip(before, after, strict=True)
    ]


def _only(outputs: list[Tensor], entries: list[Tensor]) -> list[Tensor]:
    return [y[chosen] if y.shape == chosen.shape else y for y, chosen in zip(outputs, entries, strict=True)]


def tolerance_of(outputs: list[Tensor]) -> float:
    """The loosest tolerance among the outputs' dtypes."""
    return max((TOLERANCE.get(x.dtype, 0.0) for x in outputs), default=0.0)


def trials(model: nn.Module, graph: Graph, inputs: Inputs) -> Iterator[tuple[Inputs, list[Tensor]]]:
    """Fresh inputs that the model takes, then twice the batch if it takes that too; each with its outputs."""
    found: tuple[Inputs, list[Tensor]] | None = None
    failure = None
    for candidate in (fresh(inputs, seed=11), fresh(inputs, seed=11, integers=False), copied(inputs)):
        try:
            outputs = run(model, candidate, graph.outputs)
        except Exception as error:  # lengths that must fall, say
            failure = error
            continue
        finite = all(y.isfinite().all() for y in outputs)
        if found is None or finite:
            found = (candidate, outputs)
        if finite:
            break
    if found is None:
        raise UnprovenError(f"the full-size model fails on numbers like the example's ({failure})", graph)
    yield found
    larger = twice(found[0], seed=12)
    if larger is not None:
        try:
            outputs = run(model, larger, graph.outputs)
        except Exception:
            return  # the model's own limit, not the cut's
        yield larger, outputs


def run(model: nn.Module, inputs: Inputs, outputs: Outputs) -> list[Tensor]:
    args, named = copied(inputs)
    with undisturbed(model):
        return [y.clone() for y in leaves(outputs(model(*args, **named)))]


def _reference(
    model: nn.Module, graph: Graph, survivors: Survivors, inputs: Inputs
) -> tuple[list[Tensor], bool]:
    """Outputs, and whether an operator counted over what goes."""
    if not _counts(graph):
        return run(model, inputs, graph.outputs), False
    replay = Replay(graph, survivors)
    args, named = copied(inputs)
    with undisturbed(model), replay:
        output = model(*args, **named)
    return [y.clone() for y in leaves(graph.outputs(output))], replay.counted


def _counts(graph: Graph) -> bool:
    return any(step.counted for step in graph.steps)


def _first_difference(
    masked: nn.Module, small: nn.Module, graph: Graph, survivors: Survivors, inputs: Inputs
) -> int:
    """The first step at which the reduced model does something else than the kept part of the masked one."""
    sums: list[list[tuple[tuple[int, ...], float]]] = []

    def note(number: int, step: Step, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        sums.append(
            [_summary(take(y, survivors.dims(given))) for y, given in zip(outputs, step.outputs, strict=True)]
        )

    for model, mode in ((masked, Replay(graph, survivors, note)), (small, (follow := _Follow(graph, sums)))):
        args, named = copied(inputs)
        try:
            with undisturbed(model), mode:
                model(*args, **named)
        except UnprovenError as lost:
            return lost.step
        except Exception:  # in an operator, or in the Python that looked at the one before
            return follow.number if follow.inside else max(follow.number - 1, 0)
    return len(graph.steps) - 1


class _Follow(TorchDispatchMode):
    """Compares every step with what it should give."""

    def __init__(self, graph: Graph, sums: list[list[tuple[tuple[int, ...], float]]]) -> None:
        super().__init__()
        self.graph, self.sums = graph, sums
        self.number, self.inside = 0, False

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        step = in_step(self.graph, self.number, func)
        self.inside = True
        out = func(*args, **(kwargs or {}))
        self.inside = False
        for y, (shape, total) in zip(tensors_in(out), self.sums[self.number], strict=True):
            found = _summary(y)
            if found[0] != shape:
                raise UnprovenError(
                    f"shape {found[0]} instead of {shape} from {step.op}", self.graph, self.number
                )
            if abs(found[1] - total) > 1e-3 * max(abs(total), 1e-3) and step.op not in _SCRATCH:
                raise UnprovenError(f"other values from {step.op}", self.graph, self.number)
        self.number += 1
        return out


_SCRATCH = {"aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default"}


def _summary(y: Tensor) -> tuple[tuple[int, ...], float]:
    """Shape, and a number that changes when the values do."""
    values = y.detach().double() if not y.is_complex() else y.detach().abs().double()
    return tuple(y.shape), float(torch.linalg.vector_norm(values[values.isfinite()]))
