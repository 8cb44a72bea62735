"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import hashlib
import importlib
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.files import read_json, read_tensors, write_json
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
    Path | None,
    typer.Option(help="A safetensors file with trained weights to start from; random ones by default."),
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

_TEXT = "ptb"  # tokens instead of images


@final
@dataclass(frozen=True)
class Recipe:
    """How to build the network of a run again, and where it began; kept as ``model.json`` in its folder.

    Args:
        model: name in the zoo or ``module:function``.
        shape: of one example.
        classes: or tokens of the vocabulary.
        dataset: name in the zoo.
        seed: of weights, data and training.
        weights: SHA-256 of the file with trained weights; empty for random ones.
    """

    model: str
    shape: tuple[int, ...]
    classes: int
    dataset: str
    seed: int = 0
    weights: str = ""

    def examples(self, batch: int) -> Tensor:
        """Random inputs of the shape and type that the network takes."""
        if self.dataset == _TEXT:
            return torch.randint(self.classes, (batch, *self.shape))
        return torch.randn(batch, *self.shape)


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
    recipe = Recipe(model, tuple(splits.train.shape), splits.train.classes, chosen, seed)
    network = construct(recipe)
    if weights:
        load_weights(network, weights)
        recipe = replace(recipe, weights=hashlib.sha256(weights.read_bytes()).hexdigest())
    task = language_modeling() if chosen == _TEXT else classification()
    _try(network, splits, task, recipe)
    return network, splits, task, recipe


def claim(path: Path, settings: object) -> None:
    """Write the settings of a run, or check that they are those with which its folder was begun.

    Raises:
        UsageError: the folder holds a run with other settings, whose checkpoints would be reused.
    """
    if not path.exists():
        write_json(path, settings)
        return
    begun = read_json(path, type(settings))
    if begun != settings:
        raise UsageError(
            f"continuing the run in '{path.parent}'",
            got=_differing(settings, begun),
            expected=f"{_differing(begun, settings)}, as the run was started",
            hint="name another folder with --output, or delete this one",
        )


def construct(recipe: Recipe) -> nn.Module:
    """A fresh network: of the zoo, or what ``module:function`` returns."""
    if ":" not in recipe.model:
        return build(recipe.model, recipe.shape, recipe.classes)
    module, _, name = recipe.model.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # a script of the user's, beside which the command is run
    try:
        factory: Callable[[], nn.Module] = getattr(importlib.import_module(module), name)
        network = factory()
    except Exception as error:  # code of the user's: anything may come out of it
        raise UsageError(
            f"--model {recipe.model}",
            got=_said(error),
            expected="an importable module and a function in it that takes no arguments",
            hint="run the command in the folder of the module, or install it",
        ) from error
    finally:
        sys.path.remove(here)
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


def numbers(text: str, least: int = 1) -> tuple[int, ...]:
    """Integers separated by commas, none below ``least``."""
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < least:
        expected = f"integers from {least} on, separated by commas, e.g. 1,64"
        raise UsageError("reading a list of numbers", got=f"'{text}'", expected=expected)
    return found


def command_line() -> str:
    """What was typed, for reports: the program's name instead of its path."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def _try(network: nn.Module, splits: Splits, task: Task, recipe: Recipe) -> None:
    """Run the network once, so that one that does not suit the data is found before anything is written."""
    example, target = (part.unsqueeze(0) for part in splits.train[0])
    training = network.training
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            task.items(network.eval()(example), target)
            # Classes that an output lacks show only when they are asked for.
            task.loss(network(example), torch.full_like(target, recipe.classes - 1))
    except Exception as error:  # code of the user's: anything may come out of it
        raise UsageError(
            f"running {recipe.model} on one example of {recipe.dataset}",
            got=_said(error),
            expected=f"a network from {recipe.shape} to {recipe.classes} classes",
            hint="--traceback, before the command, shows the line",
        ) from error
    network.train(training)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _differing(settings: object, other: object) -> str:
    """The fields of one of two dataclasses of a kind that the other has otherwise."""
    pairs = (
        (field.name, getattr(settings, field.name), getattr(other, field.name)) for field in fields(settings)
    )
    return ", ".join(f"{name} {mine}" for name, mine, theirs in pairs if mine != theirs)
