"""``gracile reduce``: the main job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, final

import typer
from rich.console import Console

from gracile.cli import options
from gracile.errors import UsageError
from gracile.files import write_json, write_tensors
from gracile.pipeline import Budget, Plan, publish, slim, slim_to, summarize
from gracile.pipeline.budget import Ranking, read_latency

_PLANS = {
    "digits": Plan(dense=30, learn=50, tune=60, strength=4e-3, guidance=0.0, rate_tune=0.4, batch_size=32),
    "mnist": Plan(dense=2, learn=3, tune=2, strength=4e-3, rate=0.02),
    "fashion-mnist": Plan(dense=2, learn=3, tune=2, strength=4e-3, rate=0.02),
    "cifar10": Plan(dense=30, learn=40, tune=20, strength=1e-3),
    "ptb": Plan(dense=6, learn=10, tune=4, strength=1e-3, rate=1.0, batch_size=20),
    "speech": Plan(dense=20, learn=30, tune=10, strength=6e-3, guidance=0.0, rate=0.1, batch_size=32),
}

_LEARNED, _BUDGET = "By learned structure", "By a budget"


def command(
    model: options.Model = "lenet",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    data: options.Data = None,
    strength: Annotated[
        float | None,
        typer.Option(help="Strength of the group Lasso; more removes more.", rich_help_panel=_LEARNED),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strongly the penalty of a unit follows the computation it causes: "
            "0 not at all, 1 in proportion.",
            rich_help_panel=_LEARNED,
        ),
    ] = None,
    gone: Annotated[
        float | None,
        typer.Option(
            help="Share of the units of every layer that is to go, e.g. 0.7; the strength finds itself.",
            rich_help_panel=_LEARNED,
        ),
    ] = None,
    lose: Annotated[
        float | None,
        typer.Option(
            help="Share of the validation score that may be lost, e.g. 0.01; as many units go as it allows.",
            rich_help_panel=_LEARNED,
        ),
    ] = None,
    learn: Annotated[
        int | None, typer.Option(help="Epochs with the penalty.", rich_help_panel=_LEARNED)
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(
            help="Time that one pass may take on this machine: [bold]5ms[/bold], or [bold]60%[/bold] of the "
            "dense network's. Measured before, while choosing, and afterwards.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    macs: Annotated[
        float | None,
        typer.Option(help="Share of the multiply-accumulates to keep, e.g. 0.5.", rich_help_panel=_BUDGET),
    ] = None,
    parameters: Annotated[
        float | None,
        typer.Option(help="Share of the parameters to keep, e.g. 0.5.", rich_help_panel=_BUDGET),
    ] = None,
    importance: Annotated[
        Ranking | None,
        typer.Option(
            help="What units are ranked by within a layer: norms of their weights, batch-norm scales, the "
            "first-order change of the loss, or mean activations. Magnitude by default.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(
            help="A layer that stays as it is, or a pattern such as 'layer1.*'; may be given again.",
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            help="Shrink in this many steps, with fine-tuning after each; one by default.",
            min=1,
            rich_help_panel=_BUDGET,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Samples in the pass that --latency times; one by default.", min=1, rich_help_panel=_BUDGET
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="Threads that it may use; one by default.", min=1, rich_help_panel=_BUDGET),
    ] = None,
    dense: Annotated[int | None, typer.Option(help="Epochs of ordinary training (0 with --weights).")] = None,
    tune: Annotated[int | None, typer.Option(help="Epochs of fine-tuning the reduced network.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of the dense training.")] = None,
    seed: options.Seed = 0,
    output: options.Output = Path("runs/reduce"),
) -> None:
    """Make a network smaller and faster, and prove it.

    Trains the network (or takes your weights), decides which channels, neurons and heads can go, removes
    them, fine-tunes, and measures both networks in turn. There are two ways to decide:

    [bold]By learned structure[/bold] (the default): group Lasso makes the weights of what is not needed zero.
    How much goes follows from --strength, or from a goal: --gone says which share of the units, --lose how
    much of the score, and the strength finds itself.

    [bold]By a budget[/bold]: --latency, --macs or --parameters says how much may be left, and the least
    important units go. A budget that cannot be met is refused before any training, with the lowest that
    can. For a latency, widths are timed on this machine and chosen by importance for each millisecond, and
    the result is measured against the dense network; keep the machine otherwise idle.

    Epochs, rate, strength and guidance have defaults that suit the data set; plan.json tells those of a run.

    Writes report.html, outcome.json, dense.safetensors and the folder reduced, which
    [bold]gracile.reduce.load[/bold] reads. An interrupted run continues when the same command is
    given again; other options need another folder.

    Example: gracile reduce --model resnet20 --dataset cifar10 --strength 1e-3 -o runs/resnet20

    Example: gracile reduce --model lenet --latency 50% --protect conv1 --rounds 2 -o runs/fast
    """
    console = Console()
    learned = {"strength": strength, "guidance": guidance, "gone": gone, "lose": lose, "learn": learn}
    if (gone is not None or lose is not None) and (strength is not None or guidance is not None):
        raise UsageError(
            "gracile reduce",
            got="a goal (--gone, --lose) with --strength or --guidance",
            expected="one of the two: with a goal the strength finds itself",
        )
    chosen = {
        "importance": importance,
        "protect": tuple(protect) if protect else None,
        "rounds": rounds,
        "batch": batch,
        "threads": threads,
    }
    budget = _budget(latency, macs, parameters, learned, chosen)
    network, splits, task, recipe = options.prepare(model, weights, dataset, data, seed)
    given = {**learned, "dense": dense, "tune": tune, "rate": rate}
    plan = replace(_PLANS[recipe.dataset], **{k: v for k, v in given.items() if v is not None})
    if weights and dense is None:
        plan = replace(plan, dense=0)
    options.claim(output / "model.json", recipe)
    options.claim(output / "plan.json", plan)
    options.claim(output / "budget.json", _Asked(budget))
    settings: dict[str, Any] = {
        "title": f"{model} on {recipe.dataset}",
        "command": options.command_line(),
        "seed": seed,
        "folder": output,
        "announce": lambda stage: console.print(f"[bold]{stage}[/bold]", highlight=False),
    }
    if budget is None:
        _, outcome = slim(network, splits, task, plan, **settings)
    else:
        _, outcome = slim_to(network, splits, task, plan, budget, **settings)
    write_tensors(output / "dense.safetensors", network.state_dict())
    write_json(output / "outcome.json", outcome)
    page = publish(outcome, output / "report.html")
    summarize(outcome)
    console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/link]")


@final
@dataclass(frozen=True)
class _Asked:
    """The budget of a run; none where structure is learned. Kept as ``budget.json`` in its folder."""

    budget: Budget | None


def _budget(
    latency: str | None,
    macs: float | None,
    parameters: float | None,
    learned: dict[str, Any],
    chosen: dict[str, Any],
) -> Budget | None:
    """The budget that the options stand for, if any."""
    asked = {"latency": latency, "macs": macs, "parameters": parameters}
    named = [f"--{name}" for name, value in asked.items() if value is not None]
    others = learned if named else chosen
    foreign = [f"--{name}" for name, value in others.items() if value is not None]
    if len(named) > 1 or foreign:
        raise UsageError(
            "gracile reduce",
            got=" with ".join([*named, *foreign]) if named else f"{foreign[0]} without a budget",
            expected="one of --latency, --macs, --parameters with what chooses by a budget, or none of them",
            hint="--strength, --guidance, --gone, --lose and --learn belong to learned structure",
        )
    given = {name: value for name, value in chosen.items() if value is not None}
    build: Callable[..., Budget] = Budget
    if latency is not None:
        seconds, share = read_latency(latency)
        return build("latency", share, seconds, **given)
    if macs is not None or parameters is not None:
        return build("macs" if macs is not None else "parameters", macs or parameters, **given)
    return None
