"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from torch import nn

from gracile.errors import UsageError
from gracile.files import read_tensors
from gracile.train import Splits, Task, classification, language_modeling
from gracile.zoo import available, build, load, loaders, models

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help=f"A network of the zoo ({', '.join(models)}) or [bold]module:function[/bold] of your own, "
        "called without arguments.",
    ),
]
Weights = Annotated[
    Path | None, typer.Option(help="A safetensors file with trained weights for the network.")
]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        help=f"One of {', '.join(loaders)}. By default fashion-mnist where its files are, else digits.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help="Folder with the data sets; GRACILE_DATA by default.", envvar="GRACILE_DATA"),
]
Seed = Annotated[int, typer.Option(help="Every random choice follows from it.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for everything that is written.")]


@final
@dataclass(frozen=True)
class Recipe:
    """How to build the network of a run again; kept as ``model.json`` in its folder."""

    model: str
    shape: tuple[int, ...]
    classes: int
    dataset: str


def choose(dataset: str | None, data: Path | None) -> str:
    """The data set to use: the one asked for, else Fashion-MNIST if it is there, else digits."""
    return dataset or ("fashion-mnist" if available("fashion-mnist", data) else "digits")


def prepare(
    model: str, weights: Path | None, dataset: str | None, data: Path | None, seed: int
) -> tuple[nn.Module, Splits, Task, Recipe]:
    """The network, the data and the task that the options stand for."""
    chosen = choose(dataset, data)
    splits = load(chosen, data, seed)
    torch.manual_seed(seed)
    recipe = Recipe(model, tuple(splits.train.shape), splits.train.classes, chosen)
    network = construct(recipe)
    if weights:
        load_weights(network, weights)
    return network, splits, language_modeling() if chosen == "ptb" else classification(), recipe


def construct(recipe: Recipe) -> nn.Module:
    """A fresh network: of the zoo, or what ``module:function`` returns."""
    if ":" not in recipe.model:
        return build(recipe.model, recipe.shape, recipe.classes)
    module, _, name = recipe.model.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # a script of the user's, beside which the command is run
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--model {recipe.model}",
            got=str(error),
            expected="an importable module and a function in it",
            hint="run the command in the folder of the module, or install it",
        ) from error
    finally:
        sys.path.pop(0)
    network = factory()
    if not isinstance(network, nn.Module):
        raise UsageError(
            f"--model {recipe.model}", got=f"a {type(network).__name__}", expected="a torch.nn.Module"
        )
    return network


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file strictly, naming what does not fit."""
    try:
        network.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise UsageError(
            f"loading '{path}'",
            got="tensors that do not fit: " + " ".join(str(error).split())[:400],
            expected=f"the tensors of {type(network).__name__}",
        ) from error


def numbers(text: str) -> tuple[int, ...]:
    """Positive integers separated by commas."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 0:
        raise UsageError("reading a list of numbers", got=f"'{text}'", expected="e.g. 1,64")
    return found


def command_line() -> str:
    """What was typed, for reports: the program's name instead of its path."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
