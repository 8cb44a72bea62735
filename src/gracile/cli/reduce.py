"""``gracile reduce``: the main job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gracile.cli import options
from gracile.files import write_json, write_tensors
from gracile.pipeline import Plan, publish, slim, summarize

_PLANS = {
    "digits": Plan(dense=30, learn=50, tune=60, strength=4e-3, guidance=0.0, rate_tune=0.4, batch_size=32),
    "mnist": Plan(dense=2, learn=3, tune=2, strength=4e-3, rate=0.02),
    "fashion-mnist": Plan(dense=2, learn=3, tune=2, strength=4e-3, rate=0.02),
    "cifar10": Plan(dense=30, learn=40, tune=20, strength=1e-3),
    "ptb": Plan(dense=6, learn=10, tune=4, strength=1e-3, rate=1.0, batch_size=20),
}


def command(
    model: options.Model = "lenet",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    data: options.Data = None,
    strength: Annotated[
        float | None, typer.Option(help="Strength of the group Lasso; more removes more.")
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strongly the penalty of a unit follows the computation it causes: "
            "0 not at all, 1 in proportion."
        ),
    ] = None,
    dense: Annotated[int | None, typer.Option(help="Epochs of ordinary training (0 with --weights).")] = None,
    learn: Annotated[int | None, typer.Option(help="Epochs with the penalty.")] = None,
    tune: Annotated[int | None, typer.Option(help="Epochs of fine-tuning the reduced network.")] = None,
    rate: Annotated[float | None, typer.Option(help="Learning rate of the dense training.")] = None,
    seed: options.Seed = 0,
    output: options.Output = Path("runs/reduce"),
) -> None:
    """Make a network smaller and faster, and prove it.

    Trains the network (or takes your weights), learns with group Lasso which channels and neurons are
    not needed, removes them, fine-tunes, and measures both networks in turn.

    Strength, guidance, epochs and rate have defaults that suit the data set; plan.json tells those of a run.

    Writes report.html, outcome.json, dense.safetensors and the folder reduced, which
    [bold]gracile.reduce.load[/bold] reads. An interrupted run continues when the same command is
    given again; other options need another folder.

    Example: gracile reduce --model resnet20 --dataset cifar10 --strength 1e-3 -o runs/resnet20
    """
    console = Console()
    network, splits, task, recipe = options.prepare(model, weights, dataset, data, seed)
    given = {
        "strength": strength,
        "guidance": guidance,
        "dense": dense,
        "learn": learn,
        "tune": tune,
        "rate": rate,
    }
    plan = replace(_PLANS[recipe.dataset], **{k: v for k, v in given.items() if v is not None})
    if weights and dense is None:
        plan = replace(plan, dense=0)
    title = f"{model} on {recipe.dataset}"
    options.claim(output / "model.json", recipe)
    options.claim(output / "plan.json", plan)
    _, outcome = slim(
        network,
        splits,
        task,
        plan,
        title=title,
        command=options.command_line(),
        seed=seed,
        folder=output,
        announce=lambda stage: console.print(f"[bold]{stage}[/bold]"),
    )
    write_tensors(output / "dense.safetensors", network.state_dict())
    write_json(output / "outcome.json", outcome)
    page = publish(outcome, output / "report.html")
    summarize(outcome)
    console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/link]")
