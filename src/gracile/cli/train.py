"""``gracile train``: ordinary training, with checkpoints that resume."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, final

import torch
import typer
from rich.console import Console

from gracile.algebra import Lasso, Term
from gracile.cli import links, options
from gracile.files import write_json, write_tensors
from gracile.graph import watch
from gracile.train import JsonLines, Structure, constant, cosine, fit, step

_SCHEDULES = {"constant": constant, "cosine": cosine, "step": step}


@final
@dataclass(frozen=True)
class _Settings:
    """What a run was started with; kept as ``settings.json`` in its folder."""

    epochs: int
    batch_size: int
    rate: float
    momentum: float
    decay: float
    schedule: str
    strength: float
    patience: int | None


def command(
    model: options.Model = "lenet",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    data: options.Data = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training data.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Samples in one step.", min=1)] = 64,
    rate: Annotated[float, typer.Option(help="Learning rate of SGD with momentum.", min=0)] = 0.05,
    momentum: Annotated[float, typer.Option(help="Momentum of SGD.", min=0)] = 0.9,
    decay: Annotated[float, typer.Option(help="Weight decay.", min=0)] = 0.0,
    schedule: Annotated[
        Literal["constant", "cosine", "step"], typer.Option(help="How the learning rate falls.")
    ] = "cosine",
    strength: Annotated[
        float,
        typer.Option(help="Group Lasso on everything that can be removed together; 0 for none.", min=0),
    ] = 0.0,
    patience: Annotated[
        int | None,
        typer.Option(
            help="Stop after this many epochs without a better validation score; by default never.", min=1
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Train nothing: say what gracile links says, on the links measured."),
    ] = False,
    seed: options.Seed = 0,
    output: options.Output = Path("runs/train"),
) -> None:
    """Train a network, plainly or with group Lasso on its units.

    Checkpoints go to the output folder; the same command continues an interrupted run from the newest
    of them, with the result that it would have had without the stop. Other options need another folder.
    The test set is looked at once, at the end. Under torchrun it trains on all processes.

    Example: gracile train --model resnet20 --dataset cifar10 --epochs 60 -o runs/resnet20
    """
    if probe:
        links.command(model=model, dataset=dataset, data=data, batch_size=batch_size, seed=seed)
        return
    console = Console()
    network, splits, task, recipe = options.prepare(model, weights, dataset, data, seed)
    example = splits.train[0][0].unsqueeze(0)
    methods = [Structure([Term(watch(network, example).grouping(), Lasso(), strength)])] if strength else []
    options.claim(output / "model.json", recipe)
    settings = _Settings(epochs, batch_size, rate, momentum, decay, schedule, strength, patience)
    options.claim(output / "settings.json", settings)
    history = fit(
        network,
        splits,
        task,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=momentum, weight_decay=decay),
        schedule=_SCHEDULES[schedule](),
        methods=methods,
        patience=patience,
        seed=seed,
        folder=output / "checkpoints",
        loggers=[JsonLines(output / "log.jsonl")],
    )
    write_json(output / "history.json", history)
    trained = write_tensors(output / "model.safetensors", network.state_dict())
    console.print(
        f"{model} on {recipe.dataset}: test {history.score} [bold]{history.test.score:.4f}[/bold] "
        f"(epoch {history.selected} of {len(history.epochs)}; {history.stopped})"
    )
    console.print(f"Weights: {trained}")
