"""What every journey does alike: train a stage so that it can be resumed, and tell how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import final
from zlib import crc32

import torch
from torch import Tensor, nn

from gracile.cost import count, environment, measure
from gracile.errors import UsageError
from gracile.pipeline.outcome import Latency, Outcome, layers, snapshot
from gracile.reduce import Refusal
from gracile.train import History, Method, Splits, Task, cosine, evaluate, fit


@final
@dataclass(frozen=True)
class Plan:
    """How long and how hard.

    Args:
        dense: epochs of ordinary training; 0 when the network comes trained.
        learn: epochs with the penalty.
        tune: epochs of the reduced network.
        strength: of the group Lasso on the average unit, in loss for each unit of norm; units that
            cost more pay more (see :func:`gracile.pipeline.strengths.guided`).
        guidance: how much more, see there; 0 makes all units pay the same.
        gone: share of the units of every block that is to go, in (0, 1); the strength then finds itself
            (:class:`gracile.train.Reach`) and ``strength`` and ``guidance`` have no part in this.
        lose: share of the dense network's validation score that may be lost, in (0, 1). As many units go as
            that allows, ``gone`` of them at most (nearly all by default).
        rate: learning rate of the dense training; learning structure and fine-tuning take
            ``rate_learn`` and ``rate_tune`` of it.
        batch_size: samples in one step.
        latency_batches: batch sizes at which latency is measured.

    Raises:
        UsageError: a number makes no sense.
    """

    dense: int = 12
    learn: int = 18
    tune: int = 8
    strength: float = 3e-3
    guidance: float = 0.5
    gone: float | None = None
    lose: float | None = None
    rate: float = 0.05
    rate_learn: float = 1.0
    rate_tune: float = 0.5
    batch_size: int = 64
    latency_batches: tuple[int, ...] = (1, 64)

    def __post_init__(self) -> None:
        epochs = self.dense >= 0 and self.learn >= 1 and self.tune >= 0
        rates = self.rate > 0 and self.rate_learn > 0 and self.rate_tune > 0
        batches = min((self.batch_size, *self.latency_batches)) >= 1
        goals = all(0 < goal < 1 for goal in (self.gone, self.lose) if goal is not None)
        strengths = 0 <= self.strength < inf and isfinite(self.guidance)
        if not (epochs and rates and batches and goals and strengths):
            raise UsageError(
                "planning",
                got=str(self),
                expected="learn of at least 1 epoch, positive rates and batch sizes, shares between 0 and 1, "
                "the rest 0 or more",
            )


@final
@dataclass(frozen=True)
class Journey:
    """The data, the plan and the folder of one run."""

    splits: Splits
    task: Task
    plan: Plan
    seed: int
    folder: Path | None
    progress: bool

    @property
    def example(self) -> Tensor:
        """One training input, as a batch of one."""
        return self.splits.train[0][0].unsqueeze(0)

    def train(self, stage: str, network: nn.Module, epochs: int, rate: float, *methods: Method) -> History:
        """Train in place; a stage that was interrupted goes on from its checkpoints.

        Every stage has a seed of its own: with one for all, it would begin with the batches and the dropout
        masks of the stage before, which the network knows by heart.
        """
        return fit(
            network,
            self.splits,
            self.task,
            epochs=epochs,
            batch_size=self.plan.batch_size,
            optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
            schedule=cosine(),
            methods=methods,
            # The rate falls to nothing: the last weights are the converged ones, and no epoch is
            # picked for its luck on a small validation set.
            select="last",
            seed=self.seed + crc32(stage.encode()) % 1_000_003,
            folder=self.folder / "checkpoints" / stage if self.folder else None,
            progress=self.progress,
        )

    def outcome(
        self,
        dense: nn.Module,
        reduced: nn.Module,
        *,
        title: str,
        command: str,
        histories: Sequence[tuple[str, History]],
        equality: float,
        verdict: str,
        refused: Sequence[str],
        asked: str = "",
    ) -> Outcome:
        """Judge both networks on the test set, count them, and time them in turns."""
        costs = count(dense, self.example), count(reduced, self.example)
        scores = (
            evaluate(network, self.splits.test, self.task, self.plan.batch_size).score
            for network in (dense, reduced)
        )
        before, after = (snapshot(score, cost) for score, cost in zip(scores, costs, strict=True))
        return Outcome(
            title=title,
            command=command,
            seed=self.seed,
            score=self.task.name,
            before=before,
            after=after,
            layers=layers(dense, reduced, costs),
            latencies=tuple(self._latency(dense, reduced, batch) for batch in self.plan.latency_batches),
            histories=tuple(histories),
            equality=equality,
            verdict=verdict,
            refused=tuple(refused),
            environment=environment(),
            asked=asked,
        )

    def inputs(self, batch: int) -> Tensor:
        """The example, as often as ``batch`` says."""
        return self.example.expand(batch, *self.example.shape[1:]).contiguous()

    def _latency(self, dense: nn.Module, reduced: nn.Module, batch: int) -> Latency:
        timings = measure({"dense": dense.eval(), "reduced": reduced.eval()}, self.inputs(batch))
        return Latency(batch, timings["dense"], timings["reduced"])


def told(refusal: Refusal) -> str:
    """A refusal in one line, for reports."""
    place = ", ".join(part for part in (refusal.operator, refusal.source) if part)
    return f"{refusal.unit}: {refusal.reason}" + (f" ({place})" if place else "")
