"""Train, cut down to a budget, fine-tune; once, or in rounds with fine-tuning in between."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from gracile.errors import UsageError
from gracile.files import read_json, write_json
from gracile.graph import Cut, watch
from gracile.pipeline.budget import Budget, choose, ranking, spent
from gracile.pipeline.journey import Journey, Plan, told
from gracile.pipeline.latency import Scouted, fit_to, scout, to_latency
from gracile.pipeline.outcome import Outcome
from gracile.reduce import load, remove, save
from gracile.train import Splits, Task


@final
@dataclass(frozen=True)
class Evidence:
    """What is known of one round's cut; kept beside it, since timing it again would choose otherwise."""

    cut: Cut
    said: str
    equality: float
    verdict: str
    refused: tuple[str, ...]
    share: float


def slim_to(
    model: nn.Module,
    splits: Splits,
    task: Task,
    plan: Plan,
    budget: Budget,
    *,
    title: str,
    command: str = "",
    seed: int = 0,
    folder: Path | None = None,
    progress: bool = True,
    announce: Callable[[str], None] = lambda stage: None,
) -> tuple[nn.Module, Outcome]:
    """Cut ``model`` down to a budget and fine-tune what is left; ``model`` ends dense and trained.

    Before anything is trained it is made sure that the budget can be met. In each round the least important
    units go (:mod:`gracile.pipeline.latency`, :func:`gracile.reduce.within`), and the ``tune`` epochs of the
    plan are shared out among the rounds.

    Args:
        model: any network that takes one tensor.
        splits: train, validation and test data.
        task: loss and score.
        plan: how long and how hard; ``learn``, ``strength`` and ``guidance`` have no part in this.
        budget: what may be left.
        title: what is being reduced, for the report.
        command: how to do it again, for the report.
        seed: every random choice follows from it; what is timed does not.
        folder: where checkpoints of unfinished stages and the reduced network go.
        progress: show progress bars.
        announce: called with one sentence before each stage.

    Raises:
        RefusedError, UsageError: the budget cannot be met (the message names the lowest that can), or
            nothing can go.
    """
    journey = Journey(splits, task, plan, seed, folder, progress)
    rounds = folder / "rounds" if folder else None
    scouted = None
    if rounds is None or not _done(rounds / "1"):
        scouted = _ahead(model, journey, budget, announce)
    histories = []
    if plan.dense:
        announce(f"Training the dense network for {plan.dense} epochs")
        histories.append(("dense", journey.train("dense", model, plan.dense, plan.rate)))
    dense = copy.deepcopy(model).eval()
    network, known = copy.deepcopy(dense), []
    for number in range(1, budget.rounds + 1):
        place = rounds / str(number) if rounds else None
        if place and _done(place):
            known.append(read_json(place / "evidence.json", Evidence))
            network = load(place, dense)
        else:
            network, evidence = _cut(network, dense, journey, budget, number, scouted, known, announce)
            known.append(evidence)
            if place:
                save(place, network, *(each.cut for each in known))
                write_json(place / "evidence.json", evidence)
        announce(f"Round {number} of {budget.rounds}: {known[-1].said}")
        epochs = plan.tune * number // budget.rounds - plan.tune * (number - 1) // budget.rounds
        if epochs:
            stage = "fine-tune" if budget.rounds == 1 else f"fine-tune {number}"
            announce(f"Fine-tuning for {epochs} epochs")
            rate = plan.rate * plan.rate_tune
            histories.append((stage, journey.train(f"tune{number}", network, epochs, rate)))
    if folder:
        save(folder / "reduced", network, *(each.cut for each in known))
    announce("Measuring latency, dense and reduced in turn")
    outcome = journey.outcome(
        dense,
        network,
        title=title,
        command=command,
        histories=histories,
        equality=max(each.equality for each in known),
        verdict=" and ".join(dict.fromkeys(each.verdict for each in known)),
        refused=[line for each in known for line in each.refused],
        asked=known[-1].said,
    )
    return network, outcome


def _done(place: Path) -> bool:
    return (place / "evidence.json").exists()


def _ahead(
    model: nn.Module, journey: Journey, budget: Budget, announce: Callable[[str], None]
) -> Scouted | None:
    """Refuse a budget that cannot be met, before anything is trained."""
    if budget.of == "latency":
        return scout(
            model,
            journey.inputs(budget.batch),
            latency_s=budget.latency_s,
            share=budget.left,
            limits=budget.limits,
            threads=budget.threads,
            limit_s=budget.limit_s,
            announce=announce,
        )
    graph = watch(model, journey.example)
    choose(budget, budget.left or 0.0, ranking("magnitude", journey.splits, journey.task))(graph, model)
    return None


def _cut(
    network: nn.Module,
    dense: nn.Module,
    journey: Journey,
    budget: Budget,
    number: int,
    scouted: Scouted | None,
    known: list[Evidence],
    announce: Callable[[str], None],
) -> tuple[nn.Module, Evidence]:
    """One round: cut what is left of the network down to this round's share of the dense one."""
    importance = ranking(budget.importance, journey.splits, journey.task)
    if budget.of == "latency":
        whole = scouted.share if scouted else known[0].share  # of the last round
        share, inputs = whole ** (number / budget.rounds), journey.inputs(budget.batch)
        if scouted and budget.rounds == 1:
            fitted = fit_to(
                network,
                inputs,
                scouted=scouted,
                importance=importance,
                limits=budget.limits,
                announce=announce,
            )
        else:
            fitted = to_latency(
                network,
                inputs,
                share=share,
                importance=importance,
                limits=budget.limits,
                threads=budget.threads,
                limit_s=budget.limit_s / budget.rounds,
                dense=dense,
                announce=announce,
            )
        reduction, said, share = fitted.reduction, str(fitted), whole
    else:
        assert budget.left is not None
        share = budget.left ** (number / budget.rounds)
        whole, now = (spent(budget, each, journey.example) for each in (dense, network))
        reduction = remove(network, journey.example, units=choose(budget, share * whole / now, importance))
        found = spent(budget, reduction.model, journey.example) / whole
        said = f"asked {share:.1%} of {budget.of}, left {found:.1%}"
        if found > share * 1.02:
            raise UsageError(
                "meeting a budget",
                got=f"{found:.1%} of {budget.of} after what was refused",
                expected=f"{share:.1%}",
                hint="; ".join(told(refusal) for refusal in reduction.refused[:2]),
            )
    refused = tuple(told(refusal) for refusal in reduction.refused)
    evidence = Evidence(reduction.cut, said, reduction.verdict.error, reduction.verdict.kind, refused, share)
    return reduction.model, evidence
