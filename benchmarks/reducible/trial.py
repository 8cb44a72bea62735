"""One architecture, half of every block of units gone, no hints: what happened."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from gracile.errors import GracileError
from gracile.graph import Graph
from gracile.reduce import Reduction, random_units, remove
from reducible.architecture import Architecture, Built
from reducible.check import against_masked, distance, outputs
from reducible.readying import counting, fresh, ready

Norms = Literal["renormalize", "keep"]
ENOUGH = 0.9  # of the parameters may be left for a network to count as reduced
EQUAL = {"float32": 1e-5, "float64": 1e-9}


@dataclass(frozen=True)
class Trial:
    """What was tried and what came of it; plain JSON types.

    ``outcome``: ``ok`` the network is smaller by at least a tenth and computes what is claimed; ``refused``
    with the reason; ``wrong`` it runs and computes something else; ``timeout`` it did not end;
    ``failed`` with an error that is no refusal; ``cannot build`` the architecture itself does not run.
    ``check`` names the function the reduced network was found equal to by :mod:`reducible.check`:
    ``masked`` an ordinary full-size copy with zeros, ``kept`` the same after a second removal
    with ``norms="keep"``, or none. ``own_s`` is CPU time less the number of calls of the model times the CPU
    time of one call; ``units`` and ``blocks`` are those offered, ``removed`` and ``reached`` how many of them
    went, wholly or in part.
    """

    name: str
    source: str
    family: str
    outcome: str
    reason: str = ""
    kind: str = ""
    error: float | None = None
    moved: float | None = None
    check: str = ""
    check_error: float | None = None
    check_error_float64: float | None = None
    parameters: int = 0
    left: float | None = None
    left_keep: float | None = None
    units: int = 0
    removed: int = 0
    blocks: int = 0
    reached: int = 0
    rounds: int = 0
    changed: float | None = None
    depends: float | None = None
    forward_s: float | None = None
    forwards: int = 0
    total_s: float | None = None
    own_s: float | None = None
    refusals: list[str] = field(default_factory=list)


@dataclass
class _Watching:
    """The choice of units, noting what it is offered."""

    fraction: float
    seed: int
    rounds: int = 0
    units: int = 0
    blocks: int = 0

    def __call__(self, graph: Graph, model: nn.Module) -> Iterable[int]:
        if self.rounds == 0:
            self.units, self.blocks = len(graph.units), len(graph.blocks)
        self.rounds += 1
        return random_units(graph, model, self.fraction, self.seed)


def attempt(
    architecture: Architecture,
    fraction: float = 0.5,
    seed: int = 0,
    norms: Norms = "renormalize",
    strict: bool = False,
) -> Trial:
    """Build, calibrate, remove the fraction of every block at random, and check the result independently.

    Args:
        architecture: what to try.
        fraction: share of every block of units to remove.
        seed: of the choice and of the jitter.
        norms: as of :func:`gracile.reduce.remove`.
        strict: where operators count over what was removed, so that no plain masked network exists, remove a
            second time with ``norms="keep"`` and check that result.
    """
    trial = Trial(architecture.name, architecture.source, architecture.family, "cannot build")
    try:
        wide, narrow = architecture.build(2), architecture.build(1)
        ready(wide, seed)
        narrow = replace(narrow, model=wide.model)
        trial = _described(trial, wide)
    except Exception as error:  # the architecture's own affair
        return replace(trial, reason=_said(error))
    forward_s = _forward_s(narrow)
    choice = _Watching(fraction, seed)
    started = time.process_time()
    try:
        with counting(wide.model) as calls:
            reduction = _removed(narrow, choice, norms)
    except GracileError as error:
        reduction, trial = None, replace(trial, outcome="refused", reason=_said(error))
    except Exception as error:  # whatever it is, it is a defect
        reduction, trial = None, replace(trial, outcome="failed", reason=_said(error))
    total_s = time.process_time() - started
    trial = replace(
        trial,
        forward_s=forward_s,
        forwards=calls[0],
        total_s=total_s,
        own_s=max(0.0, total_s - calls[0] * forward_s),
        units=choice.units,
        blocks=choice.blocks,
        rounds=choice.rounds,
    )
    if reduction is None:
        return trial
    trial = _judged(trial, wide, reduction)
    if strict and trial.outcome == "ok" and not trial.check:
        trial = _strictly(trial, wide, narrow, _Watching(fraction, seed))
    return trial


def _described(trial: Trial, built: Built) -> Trial:
    first = outputs(built.model, fresh(built, seed=1), built)
    second = outputs(built.model, fresh(built, seed=2), built)
    return replace(trial, parameters=_size(built.model), depends=distance(first, second))


def _removed(built: Built, choice: _Watching, norms: Norms) -> Reduction:
    more: dict[str, Any] = {}
    if built.outputs is not None and "outputs" in inspect.signature(remove).parameters:
        more["outputs"] = built.outputs
    return remove(built.model, *built.args, units=choice, norms=norms, **more, **built.kwargs)


def _judged(trial: Trial, built: Built, reduction: Reduction) -> Trial:
    verdict = reduction.verdict
    gone = _gone(reduction)
    trial = replace(
        trial,
        kind=verdict.kind,
        error=verdict.error,
        moved=verdict.moved,
        left=_size(reduction.model) / trial.parameters,
        removed=gone[0],
        reached=gone[1],
        refusals=sorted({str(refusal)[:300] for refusal in reduction.refused})[:20],
    )
    try:
        inputs = fresh(built, seed=3)
        trial = replace(
            trial,
            changed=distance(outputs(built.model, inputs, built), outputs(reduction.model, inputs, built)),
        )
        if verdict.kind == "exact":
            trial = _checked(trial, "masked", built, reduction)
    except Exception as error:  # it was shown to run at verification: now it does not
        return replace(trial, outcome="wrong", reason=f"the reduced model fails: {_said(error)}")
    if trial.outcome == "wrong":
        return trial
    if not trial.changed or trial.changed < 1e-6:
        return replace(trial, outcome="refused", reason="the output did not change: nothing is proven")
    if trial.left is not None and trial.left > ENOUGH:
        return replace(trial, outcome="refused", reason=_why_little(reduction))
    return replace(trial, outcome="ok")


def _checked(trial: Trial, check: str, built: Built, reduction: Reduction) -> Trial:
    single, double = against_masked(built.model, reduction.model, reduction.cut.tensors, built)
    trial = replace(trial, check=check, check_error=single, check_error_float64=double)
    if single > EQUAL["float32"] and double > EQUAL["float64"]:
        reason = f"differs from the {check} model by {single:.1e} ({double:.1e} in float64)"
        return replace(trial, outcome="wrong", reason=reason)
    return trial


def _strictly(trial: Trial, wide: Built, narrow: Built, choice: _Watching) -> Trial:
    """The same network with ``norms="keep"``, where plain masking must be met; a refusal is no failure."""
    try:
        reduction = _removed(narrow, choice, "keep")
    except GracileError as error:
        return replace(trial, refusals=[*trial.refusals, f"norms='keep': {_said(error)}"])
    if not reduction.cut.tensors:
        return replace(trial, refusals=[*trial.refusals, "norms='keep': there is a norm on every path"])
    if reduction.verdict.kind != "exact":
        return replace(trial, outcome="wrong", reason=f"norms='keep' gave {reduction.verdict.kind}")
    trial = replace(trial, left_keep=_size(reduction.model) / trial.parameters)
    return _checked(trial, "kept", wide, reduction)


@torch.no_grad()
def _forward_s(built: Built) -> float:
    """CPU seconds of one call: the smallest of three, the first of which warms up."""
    times = []
    for _ in range(3):
        args, kwargs = copy.deepcopy((built.args, built.kwargs))
        started = time.process_time()
        built.model(*args, **kwargs)
        times.append(time.process_time() - started)
    return min(times)


def _gone(reduction: Reduction) -> tuple[int, int]:
    """Units and blocks of which a slice of a parameter is gone."""
    gone = set()
    for view in reduction.graph.grouping().views:
        dim = view.pattern.split().index(view.by[0])
        kept = reduction.cut.tensors.get(view.tensor, {}).get(dim)
        if kept is not None:
            stays = set(kept)
            gone |= {unit for i, unit in enumerate(view.index) if unit >= 0 and i not in stays}
    return len(gone), sum(not gone.isdisjoint(block.units) for block in reduction.graph.blocks)


def _why_little(reduction: Reduction) -> str:
    """What holds the largest part of a network that did not get much smaller."""
    if reduction.refused:
        return str(max(reduction.refused, key=lambda refusal: refusal.count))[:400]
    pins = reduction.graph.pins()
    return f"{pins[0].tensor}: {pins[0].why} ({pins[0].op}, {pins[0].source})"[:400] if pins else "no units"


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:600]
