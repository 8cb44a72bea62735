"""Several stages after each other, with what each of them gained and lost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from torch import nn

from gracile.cost import Traffic, count, traffic
from gracile.pipeline.journey import Journey, Plan
from gracile.pipeline.stages import Stage, State, check
from gracile.train import Splits, Task, evaluate


@final
@dataclass(frozen=True)
class Leg:
    """The network as one stage left it.

    Args:
        stage: what was done, e.g. ``Bits(bits=8)``.
        validation: score on the validation set.
        test: score on the test set, which nothing was chosen by.
        parameters: numbers, zeros included.
        macs: multiply-accumulates for one example, zeros included.
        stored: bytes of weights and their indices, in the bits that they are stored in.
        moved: bytes that one pass reads and writes.
    """

    stage: str
    validation: float
    test: float
    parameters: int
    macs: float
    stored: float
    moved: float


@final
@dataclass(frozen=True)
class Passage:
    """All legs, the dense network's first."""

    score: str
    legs: tuple[Leg, ...]

    def times_fewer(self, of: str) -> float:
        """The dense network's ``macs``, ``stored``, ... over the last one's.

        >>> dense = Leg("dense", 0.9, 0.9, 10, 100.0, 40.0, 60.0)
        >>> Passage("accuracy", (dense, replace(dense, stored=10.0))).times_fewer("stored")
        4.0
        """
        return float(getattr(self.legs[0], of) / getattr(self.legs[-1], of))


def compose(
    model: nn.Module,
    splits: Splits,
    task: Task,
    stages: Sequence[Stage],
    plan: Plan,
    *,
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
    announce: Callable[[str], None] = lambda stage: None,
) -> tuple[State, Passage]:
    """Train ``model``, then send a copy of it through the stages in the given order.

    Args:
        model: any network that takes one tensor; it ends dense and trained.
        splits: train, validation and test data.
        task: loss and score.
        stages: e.g. ``[LowRank(0.9), Units(0.5), Bits(8)]``.
        plan: epochs and rate of the dense training, rates and batch size of the stages.
        seed: every random choice follows from it.
        folder: where checkpoints of unfinished trainings go.
        progress: show progress bars.
        announce: called with one sentence before each stage.

    Raises:
        RefusedError: the order is illegal, before anything is trained; or a stage finds nothing to do.

    Source: C11 and C16, which name the parts (low rank, structure, precision, the cost of memory access); how
    they are put together here is ours.
    """
    check(stages)
    journey = Journey(splits, task, plan, seed, folder, progress)
    if plan.dense:
        announce(f"Training the dense network for {plan.dense} epochs")
        journey.train("dense", model, plan.dense, plan.rate)
    state = State(copy.deepcopy(model).eval(), {})
    legs = [_leg("dense", state, journey)]
    for stage in stages:
        announce(str(stage))
        after = stage.run(state, journey)
        state = replace(after, made=state.made | {stage.makes})
        legs.append(_leg(str(stage), state, journey))
    return state, Passage(task.name, tuple(legs))


def _leg(stage: str, state: State, journey: Journey) -> Leg:
    model, example = state.model.eval(), journey.example
    cost = count(model, example)
    rows: Sequence[Traffic] = traffic(model, example, bits=state.bits)
    scores = [
        evaluate(model, part, journey.task, journey.plan.batch_size).score
        for part in (journey.splits.validation, journey.splits.test)
    ]
    return Leg(
        stage,
        *scores,
        parameters=cost.parameters,
        macs=cost.macs,
        stored=sum(row.weights + row.indices for row in rows),
        moved=sum(row.bytes for row in rows),
    )
