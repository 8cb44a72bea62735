"""Train, learn structure, remove what died, fine-tune, measure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from gracile.cost import count, environment, measure
from gracile.errors import RefusedError, UsageError
from gracile.graph import watch
from gracile.pipeline.outcome import Latency, Outcome, layers, snapshot
from gracile.pipeline.strengths import guided
from gracile.reduce import Refusal, remove, save
from gracile.train import History, Method, Splits, Structure, Task, cosine, evaluate, fit


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
    rate: float = 0.05
    rate_learn: float = 1.0
    rate_tune: float = 0.5
    batch_size: int = 64
    latency_batches: tuple[int, ...] = (1, 64)

    def __post_init__(self) -> None:
        epochs = self.dense >= 0 and self.learn >= 1 and self.tune >= 0
        rates = self.rate > 0 and self.rate_learn > 0 and self.rate_tune > 0
        batches = min((self.batch_size, *self.latency_batches)) >= 1
        if not (epochs and rates and batches and 0 <= self.strength < inf and isfinite(self.guidance)):
            raise UsageError(
                "planning",
                got=str(self),
                expected="learn of at least 1 epoch, positive rates and batch sizes, the rest 0 or more",
            )


def slim(
    model: nn.Module,
    splits: Splits,
    task: Task,
    plan: Plan,
    *,
    title: str,
    command: str = "",
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
    announce: Callable[[str], None] = lambda stage: None,
) -> tuple[nn.Module, Outcome]:
    """Make ``model`` smaller and faster by group Lasso on its units; ``model`` ends dense and trained.

    The units are found by watching one forward pass: everything that must go together is one group,
    so that what the penalty zeroes can be taken out. Test data is looked at once for each network.

    Args:
        model: any network that takes one tensor.
        splits: train, validation and test data.
        task: loss and score.
        plan: how long and how hard.
        title: what is being reduced, for the report.
        command: how to do it again, for the report.
        seed: every random choice follows from it.
        folder: where checkpoints of unfinished stages and the reduced network go.
        progress: show progress bars.
        announce: called with one sentence before each stage.

    Raises:
        UsageError: nothing died: the strength is too low or the epochs are too few.
        RefusedError: nothing of what died can go, as when whole layers died: the strength is too high.

    Source: C6 (SSL), its three stages; the groups are coupled over layers as in C3 (ISS).
    """
    example = splits.train[0][0].unsqueeze(0)

    def train(stage: str, network: nn.Module, epochs: int, rate: float, *methods: Method) -> History:
        return fit(
            network,
            splits,
            task,
            epochs=epochs,
            batch_size=plan.batch_size,
            optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
            schedule=cosine(),
            methods=methods,
            # The rate falls to nothing: the last weights are the converged ones, and no epoch is
            # picked for its luck on a small validation set.
            select="last",
            seed=seed,
            folder=folder / "checkpoints" / stage if folder else None,
            progress=progress,
        )

    histories = []
    if plan.dense:
        announce(f"Training the dense network for {plan.dense} epochs")
        histories.append(("dense", train("dense", model, plan.dense, plan.rate)))
    dense = copy.deepcopy(model)

    announce(f"Learning structure for {plan.learn} epochs")
    graph = watch(model, example)
    structure = Structure(guided(graph, model, count(model, example), plan.strength, plan.guidance))
    learned = copy.deepcopy(model)
    rate = plan.rate * plan.rate_learn
    histories.append(("structure", train("learn", learned, plan.learn, rate, structure)))

    announce("Removing what died")
    try:
        reduction = remove(learned, example)
    except RefusedError as error:
        raise RefusedError(
            error.operation,
            got=error.got,
            expected=error.expected,
            hint="lower the strength if a whole layer died, else look at what graph.pins() tells",
        ) from error
    reduced = reduction.model
    if sum(p.numel() for p in reduced.parameters()) == sum(p.numel() for p in model.parameters()):
        raise UsageError(
            "removing what died",
            got=f"no dead unit after {plan.learn} epochs at strength {plan.strength:g}",
            expected="at least one",
            hint="raise the strength or train longer",
        )
    if plan.tune:
        announce(f"Fine-tuning the reduced network for {plan.tune} epochs")
        histories.append(("fine-tune", train("tune", reduced, plan.tune, plan.rate * plan.rate_tune)))
    if folder:
        save(folder / "reduced", reduced, reduction.cut)

    announce("Measuring latency, dense and reduced in turn")
    costs = count(dense, example), count(reduced, example)
    outcome = Outcome(
        title=title,
        command=command,
        seed=seed,
        score=task.name,
        before=snapshot(evaluate(dense, splits.test, task, plan.batch_size).score, costs[0]),
        after=snapshot(evaluate(reduced, splits.test, task, plan.batch_size).score, costs[1]),
        layers=layers(dense, reduced, costs),
        latencies=tuple(_latency(dense, reduced, example, batch) for batch in plan.latency_batches),
        histories=tuple(histories),
        equality=reduction.verdict.error,
        verdict=reduction.verdict.kind,
        refused=tuple(_told(refusal) for refusal in reduction.refused),
        environment=environment(),
    )
    return reduced, outcome


def _told(refusal: Refusal) -> str:
    place = ", ".join(part for part in (refusal.operator, refusal.source) if part)
    return f"{refusal.unit}: {refusal.reason}" + (f" ({place})" if place else "")


def _latency(dense: nn.Module, reduced: nn.Module, example: Tensor, batch: int) -> Latency:
    inputs = example.expand(batch, *example.shape[1:]).contiguous()
    timings = measure({"dense": dense.eval(), "reduced": reduced.eval()}, inputs)
    return Latency(batch, timings["dense"], timings["reduced"])
