"""Train, learn structure, remove what died, fine-tune, measure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import nn

from gracile.cost import count
from gracile.errors import RefusedError, UsageError
from gracile.graph import Graph, watch
from gracile.pipeline.journey import Journey, Plan, told
from gracile.pipeline.outcome import Outcome
from gracile.pipeline.strengths import guided
from gracile.reduce import remove, save
from gracile.reduce.select import silent
from gracile.train import Floor, Reach, Splits, Structure, Task, evaluate


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
        RefusedError: nothing of what died can go.

    Source: C6 (SSL), its three stages; the groups are coupled over layers as in C3 (ISS).
    """
    journey = Journey(splits, task, plan, seed, folder, progress)
    example = journey.example
    histories = []
    if plan.dense:
        announce(f"Training the dense network for {plan.dense} epochs")
        histories.append(("dense", journey.train("dense", model, plan.dense, plan.rate)))
    dense = copy.deepcopy(model)

    announce(f"Learning structure for {plan.learn} epochs")
    graph = watch(model, example)
    structure = _structure(graph, model, journey)
    learned = copy.deepcopy(model)
    rate = plan.rate * plan.rate_learn
    histories.append(("structure", journey.train("learn", learned, plan.learn, rate, structure)))

    if isinstance(structure, Reach) and not structure.kept:
        raise RefusedError(
            "learning structure",
            got=f"a validation score below {1 - (plan.lose or 0):.1%} of the dense network's in every epoch",
            expected="an epoch that loses less",
            hint="train longer, or with a smaller rate while structure is learned, or allow more to be lost",
        )

    announce("Removing what died")
    gone = silent(graph, learned)
    died = [
        f"one unit of {block.name}, which died altogether: lower the strength, unless a shortcut passes it"
        for block in graph.blocks
        if gone[list(block.units)].all()
    ]
    try:
        reduction = remove(learned, example)
    except RefusedError as error:
        raise RefusedError(
            error.operation,
            got=error.got,
            expected=error.expected,
            hint="look at what graph.pins() tells",
        ) from error
    reduced = reduction.model
    if sum(p.numel() for p in reduced.parameters()) == sum(p.numel() for p in model.parameters()):
        raise UsageError(
            "removing what died",
            got=f"no dead unit after {plan.learn} epochs at strength {plan.strength:g}",
            expected="at least one",
            hint="raise the strength, ask for more or train longer",
        )
    if plan.tune:
        announce(f"Fine-tuning the reduced network for {plan.tune} epochs")
        histories.append(("fine-tune", journey.train("tune", reduced, plan.tune, plan.rate * plan.rate_tune)))
    if folder:
        save(folder / "reduced", reduced, reduction.cut)

    announce("Measuring latency, dense and reduced in turn")
    outcome = journey.outcome(
        dense,
        reduced,
        title=title,
        command=command,
        histories=histories,
        equality=reduction.verdict.error,
        verdict=reduction.verdict.kind,
        refused=[*map(told, reduction.refused), *died],
    )
    return reduced, outcome


_NEARLY_ALL = 0.95  # what is aimed at when only the score limits how many go


def _structure(graph: Graph, model: nn.Module, journey: Journey) -> Structure | Reach:
    """What learns structure: penalties of given strength, or a goal that finds its own."""
    plan = journey.plan
    if plan.gone is None and plan.lose is None:
        return Structure(guided(graph, model, count(model, journey.example), plan.strength, plan.guidance))
    groupings = [graph.grouping([block.id]) for block in graph.blocks]
    if plan.lose is None:
        return Reach(groupings, plan.gone or 0.0)
    task, splits = journey.task, journey.splits
    score = evaluate(model, splits.validation, task, plan.batch_size).score
    least = score * (1 - plan.lose if task.better == "higher" else 1 + plan.lose)
    return Reach(groupings, plan.gone or _NEARLY_ALL, floor=Floor(least, task))
