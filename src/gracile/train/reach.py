"""Learn structure until a share of the groups is gone: state a goal, not a strength."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from gracile.algebra import Grouping, Groups, Term, Trimmed, add_gradient_
from gracile.errors import FileError, UsageError
from gracile.train.method import Method, Run
from gracile.train.schedule import cubic
from gracile.train.structure import steps_of
from gracile.train.task import Task

FIRST = 0.1  # of the mean gradient of a group: a group whose gradient is below its strength can stay at zero
GROWTH = 1.2  # of a strength that is behind, for each look
LOOKS = 100  # at how many groups are gone, until they should be


@final
@dataclass(frozen=True)
class Floor:
    """The validation score that must be kept.

    Args:
        score: e.g. 0.9 of accuracy.
        task: whose score it is, and whether higher is better.
    """

    score: float
    task: Task

    def holds(self, metrics: Mapping[str, float]) -> bool:
        """Whether an epoch's metrics are not below it; a score that is not a number is."""
        found = metrics[self.task.name]
        return found == self.score or self.task.improves(found, self.score)


@final
class Reach(Method):
    """Zero a share of the groups, with a strength that finds itself.

    In every grouping the m = min(round(share * groups), groups - 1) smallest groups pay the trimmed group
    Lasso, the others nothing, so the share cannot be overshot. The strength starts at a tenth of the mean
    gradient of a group (a group stays at zero where its strength exceeds its gradient) and is looked at
    ``LOOKS`` times: behind the share that a cubic ramp asks for it grows by ``GROWTH``, ahead of it it
    falls. A group that one step of the penalty would carry through zero is zero from then on, and held
    there. When the ramp ends, those of the m smallest that are not yet zero are set to zero: the share is
    met exactly, and ``forced`` says how many it took. What is left of the run lets the others make up for
    it.

    With a ``floor`` nothing is forced and everything pauses while the validation score is below it. The
    ramp is then a straight one: nobody knows yet which share will be too much. Should the run end below,
    the weights of the last epoch above come back: as many groups go as the score allows. If no epoch was
    above, the last weights stay and ``kept`` is False. Start from a trained network: an untrained one is
    below every floor.

    Share 0 leaves training bit-identical.

    Args:
        groupings: in each of which the share is to go, e.g. ``graph.grouping([block.id])`` for every block.
            Groups without members are not counted.
        share: of the groups, in [0, 1).
        by: the part of the run by which it is reached, in (0, 1].
        floor: the score to keep.

    Raises:
        UsageError: a share or a part outside its range.

    Source: the ramp is that of Zhu and Gupta (2017), the trimmed penalty see
    :class:`gracile.algebra.Trimmed`; the feedback is ours.

    >>> from gracile.algebra import filters
    >>> model = torch.nn.Linear(2, 4)
    >>> reach = Reach([filters("weight")], share=0.5, by=0.5)
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=10)
    >>> reach.start(run)
    >>> run.step = 5; reach.after_step(run); (model.weight == 0).all(1).sum(), reach.gone
    (tensor(2), [0.5])
    """

    def __init__(
        self, groupings: Iterable[Grouping], share: float, *, by: float = 0.7, floor: Floor | None = None
    ) -> None:
        self.groupings = tuple(groupings)
        self.share, self.by, self.floor = share, by, floor
        if not 0 <= share < 1:
            raise UsageError("Reach", got=f"share={share}", expected="a share of the groups in [0, 1)")
        if not 0 < by <= 1:
            raise UsageError("Reach", got=f"by={by}", expected="a part of the run in (0, 1]")
        self.strengths: list[float] = []
        self.dead: list[Tensor] = []  # truth values, one for each group
        self.forced = 0
        self.paused = False
        self._counted: list[Tensor] = []  # groups that have members
        self._snapshot: dict[str, Tensor] = {}
        self._looked = 0

    @property
    def gone(self) -> list[float]:
        """Share of the groups that are zero, for each grouping."""
        return [
            (dead & counted).sum().item() / max(1, int(counted.sum()))
            for dead, counted in zip(self.dead, self._counted, strict=True)
        ]

    @property
    def kept(self) -> bool:
        """Whether the floor, if there is one, has held in the last epoch or in one that was put back."""
        return not self.paused

    def start(self, run: Run) -> None:
        groups = self._groups(run)
        self.strengths, self.forced, self.paused, self._looked = [], 0, False, 0
        self._counted = [g.sizes > 0 for g in groups]
        self.dead = [g.norms.detach() == 0 for g in groups]
        self._snapshot = {}

    def after_backward(self, run: Run) -> None:
        """Zero the gradients of what is gone, so that it does not count when gradients are clipped."""
        if not self.share:
            return
        gradients = {name: p.grad for name, p in run.parameters.items() if p.grad is not None}
        for grouping, dead in zip(self.groupings, self.dead, strict=True):
            if dead.any() and all(view.tensor in gradients for view in grouping.views):
                _zero(grouping.of(gradients), dead)

    def gradients(self, run: Run) -> None:
        if not self._active(run):
            return
        if not self.strengths:
            self.strengths = self._first(run)
        add_gradient_(self._terms(), run.parameters)

    def after_step(self, run: Run) -> None:
        if not self.share:
            return
        if self._active(run) and self.strengths:
            self._let_die(run)
            self._look(run)
        elif self.floor is None and run.progress >= self.by and any(self._missing()):
            self._force(run)

    def mask(self, run: Run) -> None:
        if self.share:
            for groups, dead in zip(self._groups(run), self.dead, strict=True):
                if dead.any():
                    _zero(groups, dead)

    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        if self.floor is None or not self.share:
            return
        self.paused = not self.floor.holds(metrics)
        if not self.paused:
            self._snapshot = {name: t.detach().clone() for name, t in run.model.state_dict().items()}

    def finish(self, run: Run) -> None:
        if self.paused and self._snapshot:
            run.model.load_state_dict(self._snapshot)
            self.dead = [groups.norms.detach() == 0 for groups in self._groups(run)]
            self.paused = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "share": float(self.share),
            "by": float(self.by),
            "strengths": [float(strength) for strength in self.strengths],
            "dead": {str(i): dead for i, dead in enumerate(self.dead)},
            "forced": self.forced,
            "looked": self._looked,
            "paused": self.paused,
            "snapshot": dict(self._snapshot),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was stored; UsageError for another goal, FileError for other groups."""
        for name in ("share", "by"):
            if state.get(name) != getattr(self, name):
                raise UsageError(
                    "resuming Reach",
                    got=f"{name}={getattr(self, name)}",
                    expected=f"{state.get(name)}, as the run was started",
                    hint="use another folder for another run",
                )
        stored = state.get("dead")
        found = list(stored.values()) if isinstance(stored, dict) else []
        if [(d.dtype, d.shape) for d in found] != [(d.dtype, d.shape) for d in self.dead]:
            raise FileError("restoring Reach", got="other groups", expected="those of its groupings")
        self.dead = [new.to(old.device) for new, old in zip(found, self.dead, strict=True)]
        self.strengths, self.forced = list(state["strengths"]), int(state["forced"])
        self._looked, self.paused = int(state["looked"]), bool(state["paused"])
        self._snapshot = dict(state["snapshot"])

    def _groups(self, run: Run) -> list[Groups]:
        parameters = run.parameters
        return [grouping.of(parameters) for grouping in self.groupings]

    def _active(self, run: Run) -> bool:
        """Whether anything is to pay in this step."""
        return bool(self.share) and run.progress < self.by and not self.paused and any(self._missing())

    def _missing(self) -> list[int]:
        """How many groups are still to go, for each grouping."""
        return [
            max(0, self._asked(counted) - int((dead & counted).sum()))
            for dead, counted in zip(self.dead, self._counted, strict=True)
        ]

    def _asked(self, counted: Tensor) -> int:
        """How many groups are to go; one stays, since a layer cannot do without any."""
        count = int(counted.sum())
        return max(0, min(round(self.share * count), count - 1))

    def _terms(self) -> list[Term]:
        """The penalties; the share is made one of all groups, since those without members are smallest."""
        terms = []
        for grouping, counted, strength in zip(self.groupings, self._counted, self.strengths, strict=True):
            empty = len(counted) - int(counted.sum())
            paying = self._asked(counted) + empty
            terms.append(Term(grouping, Trimmed(paying / len(counted)), strength))
        return terms

    def _first(self, run: Run) -> list[float]:
        parameters = run.parameters
        strengths = []
        for grouping, counted in zip(self.groupings, self._counted, strict=True):
            named = {view.tensor: parameters[view.tensor] for view in grouping.views}
            slopes = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in named.items()}
            norms = grouping.of(slopes).norms[counted]
            strengths.append(FIRST * norms.mean().item() if len(norms) else 0.0)
        return strengths

    @torch.no_grad()
    def _let_die(self, run: Run) -> None:
        lengths = steps_of(run)
        for term, groups, dead in zip(self._terms(), self._groups(run), self.dead, strict=True):
            length = max((lengths.get(view.tensor, 0.0) for view in term.grouping.views), default=0.0)
            norms = groups.norms
            penalty = term.penalty
            assert isinstance(penalty, Trimmed)
            dead |= (penalty.slope(norms) > 0) & (norms <= length * term.strength)

    def _look(self, run: Run) -> None:
        """Compare with the ramp, at most once for each hundredth of the way."""
        way = min(1.0, (run.step + 1) / max(1, run.steps) / self.by)
        if int(way * LOOKS) == self._looked:
            return
        self._looked = int(way * LOOKS)
        wanted = self.share * (cubic()(way) if self.floor is None else way)
        self.strengths = [
            strength * (GROWTH if gone < wanted else 1 / GROWTH)
            for strength, gone in zip(self.strengths, self.gone, strict=True)
        ]

    @torch.no_grad()
    def _force(self, run: Run) -> None:
        for groups, dead, counted, missing in zip(
            self._groups(run), self.dead, self._counted, self._missing(), strict=True
        ):
            norms = torch.where(counted & ~dead, groups.norms, torch.inf)
            dead[norms.argsort(stable=True)[:missing]] = True
            _zero(groups, dead)
            self.forced += missing


def _zero(groups: Groups, dead: Tensor) -> None:
    groups.scale_((~dead).to(groups.slices[0].tensor.dtype))
