"""C4: ternary gradients of 2 to 16 workers against single precision, in every mode that is offered.

The workers live in one process, with the numbers that the communication hook makes on as many machines (the
test-suite compares the two bit for bit; ``gather`` equals ``exact``, ``base3`` equals ``ternary``, and
sites are fewer workers with larger batches, so these are not trained again). Tensors of less than 1024
numbers travel in single precision, as the hook has it by default; one row packs them too. Batch, epochs and
learning rate are those of single precision. Small data sets are judged over several splits, whose
accuracies are averaged: half a point of a few hundred images would be two images. The ablation packs
everything and leaves out the clip, then the scales of single layers, at one or more learning rates; a
training that diverges counts as guessing. So that the order does not hang on which rates are tried, the
noise of the first gradient is measured as well.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from gracile.algebra.philox import Random
from gracile.errors import GracileError
from gracile.papers.registry import Result, Scale
from gracile.train import Splits, Workers, classification, cosine, fit
from gracile.wire import scaler, words
from gracile.wire.messages import average
from gracile.wire.modes import Mode
from gracile.wire.parts import Layer
from gracile.zoo import LeNet, load

LOST = 0.5  # points of accuracy that a mode may cost
SMALL = 1024  # numbers of a tensor that is packed, at least: the default of the hook
MODES: tuple[Mode, ...] = ("exact", "four-bit", "ternary")


@dataclass(frozen=True)
class _Setting:
    """LeNet on a data set, how it is trained, and the learning rates of the ablation."""

    data: str
    widths: tuple[int, int, int]
    images: int
    splits: int
    epochs: int
    rate: float
    rates: tuple[float, ...]
    batch_size: int
    modes: tuple[Mode, ...] = MODES
    workers: tuple[int, ...] = (2, 4, 8, 16)

    def network(self, splits: Splits) -> LeNet:
        """As the random state makes it."""
        train: Any = splits.train
        return LeNet(train.shape, train.classes, self.widths)


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        "digits",
        widths=(16, 32, 128),
        images=1078,
        splits=3,
        epochs=15,
        rate=0.05,
        rates=(0.05, 0.1),
        batch_size=64,
        modes=("fp16", *MODES),
    ),
    "cpu": _Setting(
        "fashion-mnist",
        widths=(8, 16, 64),
        images=6400,
        splits=1,
        epochs=12,
        rate=0.03,
        rates=(0.03,),
        batch_size=128,
    ),
}
_ABLATION: dict[str, dict[str, Any]] = {
    "layers' scales, clipped": {},
    "layers' scales": {"clip": None},
    "one scale": {"clip": None, "scale": "model"},
}
"""From the authors' method down to none of what they added to the bare idea."""


def run(scale: Scale, seed: int) -> list[Result]:
    """What ternary gradients cost by mode and number of workers, and what parts of the method are worth."""
    setting = _SETTINGS[scale]
    worlds = {s: _world(setting, s) for s in range(seed * setting.splits, (seed + 1) * setting.splits)}

    def accuracy(workers: int, mode: Mode, rate: float, **options: Any) -> float:
        return statistics.mean(
            _accuracy(setting, splits, rate, Workers(workers, mode, seed=number, **options), number)
            for number, splits in worlds.items()
        )

    plain = accuracy(1, "fp32", setting.rate)
    quantity = f"test accuracy, LeNet on {setting.data}, gradients in single precision"
    results = [Result("fp32", quantity, plain, "%")]
    for mode in setting.modes:
        claim = "no-loss" if mode == "exact" else None
        lost = {n: plain - accuracy(n, mode, setting.rate, smallest=SMALL) for n in setting.workers}
        results += [
            Result(f"{mode}, {n}", f"accuracy lost, {mode}, {n} workers", x, "points", claim, x <= LOST)
            for n, x in lost.items()
        ]
        mean = statistics.mean(lost.values())
        quantity = f"accuracy lost, {mode}, mean over numbers of workers"
        results.append(Result(f"{mode}, mean", quantity, mean, "points", claim, mean <= LOST))
    most = max(setting.workers)
    packed = plain - accuracy(most, "ternary", setting.rate)
    quantity = f"accuracy lost, ternary, {most} workers, small tensors packed too"
    results.append(Result("everything packed", quantity, packed, "points"))
    means = {
        name: statistics.mean(accuracy(4, "exact", rate, **options) for rate in setting.rates)
        for name, options in _ABLATION.items()
    }
    results += [
        Result(name, f"test accuracy, 4 workers, mean over learning rates, {name}", mean, "%")
        for name, mean in means.items()
    ]
    clipped, layers, one = means.values()
    noise = {name: _noise(setting, next(iter(worlds.values())), seed, name) for name in _ABLATION}
    results += [
        Result(f"noise, {name}", f"noise of the first ternary gradient, squared, {name}", value)
        for name, value in noise.items()
    ]
    ordered = list(noise.values()) == sorted(noise.values())
    ratio = noise["one scale"] / noise["layers' scales, clipped"]
    results += [
        Result(
            "noise ratio",
            "noise with one scale over that with layers' scales, clipped",
            ratio,
            "x",
            "order",
            ordered,
        ),
        Result(
            "clip gains", "points that the clip adds", clipped - layers, "points", "order", clipped > layers
        ),
        Result(
            "layers gain", "points that layers' own scales add", layers - one, "points", "order", layers > one
        ),
    ]
    return [*results, *_formulas(setting, seed)]


def _world(setting: _Setting, seed: int) -> Splits:
    """Data without most of the validation part, by which nothing is selected here."""
    splits = load(setting.data, seed=seed)
    train: Any = Subset(splits.train, range(setting.images))
    train.shape, train.classes = splits.train.shape, splits.train.classes
    return Splits(train, Subset(splits.validation, range(200)), splits.test)


def _accuracy(setting: _Setting, splits: Splits, rate: float, method: Workers, seed: int) -> float:
    """In percent, of the test data."""
    torch.manual_seed(seed)
    model = setting.network(splits)
    try:
        history = fit(
            model,
            splits,
            classification(),
            epochs=setting.epochs,
            batch_size=setting.batch_size,
            ghost_batch=setting.batch_size // method.workers,
            optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
            schedule=cosine(),
            methods=[method],
            seed=seed,
            select="last",
            progress=False,
        )
    except GracileError:  # weights or a loss that is not finite
        return 100 / splits.train.classes
    return 100 * history.test.score


def _noise(setting: _Setting, splits: Splits, seed: int, name: str) -> float:
    """Mean of ||g' - g||^2 / ||g||^2 for the gradient g of a new network and what is made of it."""
    torch.manual_seed(seed)
    model = setting.network(splits)
    images, labels = next(iter(DataLoader(splits.train, 512)))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    true = {Layer(i, p.numel(), True): p.grad.flatten() for i, p in enumerate(model.parameters())}
    clip = _ABLATION[name].get("clip", 2.5)
    scales = {layer: scaler(g, clip) for layer, g in true.items()}
    if "scale" in _ABLATION[name]:
        scales = dict.fromkeys(true, max(scales.values()))
    drawn = [average([true], "exact", Random(seed, step=i), scales=scales) for i in range(20)]
    size = sum(float(g.square().sum()) for g in true.values())
    errors = [sum(float((d[n] - g).square().sum()) for n, g in true.items()) for d in drawn]
    return statistics.mean(errors) / size


def _formulas(setting: _Setting, seed: int) -> list[Result]:
    """Bits on the wire, and what the clip does to numbers from a normal distribution."""
    x = torch.randn(1_000_000, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    clipped = x.clamp(-2.5, 2.5)
    shorter = 100 * (1 - float(clipped.norm() / x.norm()))
    angle = math.degrees(math.acos(float(clipped @ x / clipped.norm() / x.norm())))
    size = 25_000_000
    return [
        Result(
            "bits", "bits of a number on the way there, 25 M numbers", 32 * words(size) / size, "bits", "bits"
        ),
        Result("length", "a gradient is shorter by the clip", shorter, "%", "clip-length", shorter <= 1.5),
        Result("angle", "a gradient is turned by the clip", angle, "degrees", "clip-angle", angle <= 3),
    ]
