"""T1: a large batch with noise on the weights against one without, and against a small batch.

``tiny``: an MLP with batch norm on digits, a fifth of whose training labels are drawn anew. ``cpu``: the
authors' large-batch recipe on Fashion-MNIST: batches of 2048 in ghost batches of 128, the learning rate
multiplied by the square root of 2048 / 128. All runs see every image equally often, so a large batch takes
fewer steps. Strengths are chosen by validation accuracy, whose labels are right; test data only report.
Sharpness is measured on the data that were trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import Subset

from gracile.algebra import Noise
from gracile.papers.registry import Result, Scale
from gracile.train import SmoothOut, Splits, classification, cosine, evaluate, fit, sharpness
from gracile.zoo import load

FLATTER = 0.8  # of the sharpness of the large batch: what the noise has to reach
CLIP = 5.0  # largest norm of the gradients, the authors'


@dataclass(frozen=True)
class _Setting:
    """Data and its wrong labels, the hidden layers, batches, and the strengths of each kind of noise."""

    data: str
    wrong: float
    hidden: tuple[int, ...]
    epochs: int
    rate: float
    small: int
    large: int
    ghost: int
    measured: int  # samples on which sharpness is measured
    strengths: dict[Noise, tuple[float, ...]]


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        "digits",
        wrong=0.2,
        hidden=(128,) * 5,
        epochs=40,
        rate=0.05,
        small=64,
        large=512,
        ghost=128,
        measured=1078,
        strengths={"uniform": (0.03, 0.05, 0.1), "filter": (0.3, 0.6, 0.9)},
    ),
    "cpu": _Setting(
        "fashion-mnist",
        wrong=0.0,
        hidden=(256,) * 5,
        epochs=12,
        rate=0.05,
        small=128,
        large=2048,
        ghost=128,
        measured=4000,
        strengths={"uniform": (0.01, 0.02), "filter": (0.2, 0.4)},
    ),
}


@dataclass(frozen=True)
class _Run:
    """What came out of one training run; accuracies in percent."""

    validation: float
    test: float
    sharpness: float


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracy and sharpness of every way to train, and what noise does to both."""
    setting = _SETTINGS[scale]
    splits = _with_wrong_labels(load(setting.data, seed=seed), setting.wrong, seed)
    train = partial(_trained, splits, setting, seed)
    large = train(setting.large)
    runs = {
        "small batch": train(setting.small),
        "large batch": large,
        "large batch, best epoch": train(setting.large, select="best"),
    }
    results, judged = [], []
    for kind, strengths in setting.strengths.items():
        found = {s: train(setting.large, SmoothOut(s, kind, seed=seed)) for s in strengths}
        chosen = max(strengths, key=lambda s: found[s].validation)
        results.append(Result(f"strength {kind}", f"chosen strength, {kind} noise", chosen))
        runs[f"{kind} noise"] = found[chosen]
        judged += _judged(kind, found[chosen], large)
    for name, found_run in runs.items():
        results += [
            Result(f"{name} accuracy", f"test accuracy, {name}", found_run.test, "%"),
            Result(f"{name} sharpness", f"sharpness, {name}", found_run.sharpness, "%"),
        ]
    return results + judged


def _judged(kind: str, noisy: _Run, large: _Run) -> list[Result]:
    ratio, gain = noisy.sharpness / large.sharpness, noisy.test - large.test
    return [
        Result(
            f"{kind} ratio",
            f"sharpness with {kind} noise over that of the large batch without",
            ratio,
            claim="flatter",
            holds=ratio <= FLATTER and gain >= 0,
        ),
        Result(
            f"{kind} gain",
            f"points of test accuracy that {kind} noise adds to the large batch",
            gain,
            "points",
            claim="generalizes",
            holds=gain >= 0,
        ),
    ]


def _trained(
    splits: Splits,
    setting: _Setting,
    seed: int,
    batch_size: int,
    *methods: SmoothOut,
    select: Literal["best", "last"] = "last",
) -> _Run:
    torch.manual_seed(seed)
    model = _network(splits.train.shape, splits.train.classes, setting.hidden)
    large = batch_size > setting.ghost
    fit(
        model,
        splits,
        classification(),
        epochs=setting.epochs,
        batch_size=batch_size,
        ghost_batch=setting.ghost if large else None,
        optimizer=partial(
            torch.optim.SGD, lr=setting.rate * (batch_size / setting.small) ** 0.5, momentum=0.9
        ),
        schedule=cosine(),
        methods=methods,
        clip=CLIP,
        seed=seed,
        select=select,
        progress=False,
    )
    measured = Subset(splits.train, range(setting.measured))
    accuracies = [
        100 * evaluate(model, part, classification()).score for part in (splits.validation, splits.test)
    ]
    return _Run(*accuracies, sharpness(model, measured, classification(), batch_size=2048))


def _network(shape: Sequence[int], classes: int, hidden: tuple[int, ...]) -> nn.Module:
    """The authors' F1: fully connected layers, each with batch norm and ReLU."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = torch.Size(shape).numel()
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def _with_wrong_labels(splits: Splits, share: float, seed: int) -> Splits:
    """A share of the training labels drawn anew from all classes; validation and test stay right."""
    data: Any = splits.train
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(len(data), generator=generator) < share
    random = torch.randint(data.classes, (len(data),), generator=generator)
    return replace(splits, train=replace(data, targets=torch.where(drawn, random, data.targets)))
