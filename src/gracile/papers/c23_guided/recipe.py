"""C23: prune where the roofline says that it pays, and nowhere else.

From one dense network without batch normalization all convolutions are pruned with L1, guided by the roofline
of a machine or unguided, and fine-tuned. Of the strengths of each way the one with the least projected time
is taken whose accuracy on *validation* data is within half a point of dense; test data only reports. Machines
are the published Xeon and the one at hand, whose three numbers are measured, alpha with the sparse kernels.
Networks are chosen by projected time for one image. Then their convolutions are compiled for those kernels
and timed beside every dense engine, so that what is projected for this machine stands beside what is measured
on it; for :data:`BATCH` images, since layers this small take no longer than a call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from gracile.algebra import GradientThreshold, Lasso, Term, elements
from gracile.cost import Machine, Roof, Roofline, calibrate, densities, machines, roofline
from gracile.papers.c23_guided.measured import convolutions, kernels, together
from gracile.papers.registry import Result, Scale
from gracile.train import (
    Freeze,
    Guided,
    Method,
    Prune,
    Splits,
    Structure,
    Surgery,
    classification,
    cosine,
    fit,
)
from gracile.zoo import load

RATE = 0.05
ALLOWED_LOSS = 0.005  # of validation accuracy, when strengths are chosen
BATCH = 16  # of the measured times
OFF = 0.35  # of a projected speed-up, by which the measured one may differ
XEON, HERE = "xeon-e5-2697v4", "this machine"

Prunes = Callable[[float, str], Sequence[Method]]
"""Makes the methods that prune, from a strength and the name of a weight."""


@dataclass(frozen=True)
class _Setting:
    """Data and the most training images, widths of the two pairs of convolutions, epochs and strengths."""

    data: str
    images: int
    widths: tuple[int, int]
    dense: int
    learn: int
    tune: int
    batch_size: int
    patience: int  # comparisons, one each epoch, before a layer is given up
    strengths: tuple[float, ...]


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting("digits", 10_000, (32, 64), 20, 30, 10, 64, 5, (1e-3, 2e-3, 4e-3)),
    "cpu": _Setting("fashion-mnist", 12_000, (16, 32), 8, 4, 1, 128, 2, (2e-3, 3e-3)),
}


@dataclass(frozen=True)
class _Network:
    """A trained network."""

    model: nn.Module
    validation: float
    test: float


@dataclass(frozen=True)
class _Training:
    """What all trainings of one seed share."""

    setting: _Setting
    splits: Splits
    seed: int

    def __call__(self, model: nn.Module, epochs: int, rate: float, *methods: Method) -> _Network:
        history = fit(
            model,
            self.splits,
            classification(),
            epochs=epochs,
            batch_size=self.setting.batch_size,
            optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
            schedule=cosine(),
            methods=methods,
            seed=self.seed,
            select="last",
            progress=False,
        )
        return _Network(model, history.best.score, history.test.score)


def run(scale: Scale, seed: int) -> list[Result]:
    """The published bounds; densities, projected times and accuracies with and without guidance."""
    setting = _SETTINGS[scale]
    splits = _loaded(setting, seed)
    training = _Training(setting, splits, seed)
    torch.manual_seed(seed)
    dense = training(_model(splits, setting.widths), setting.dense, RATE)
    example = splits.test[0][0][None]
    here = calibrate(convolution=kernels, limit_s=5.0)
    roofs = {
        name: roofline(dense.model, example, machine, layers=[nn.Conv2d])
        for name, machine in ((XEON, machines()[XEON]), (HERE, here))
    }
    results = [
        *_published(),
        Result("dense", "test accuracy, dense", 100 * dense.test, "%"),
        *_measured(here),
    ]
    many = example.expand(BATCH, *example.shape[1:]).contiguous()
    measurable = roofline(dense.model, many, here, layers=[nn.Conv2d])
    ways: dict[str, tuple[str, bool, Prunes]] = {
        "unguided L1": (XEON, False, _l1),
        "guided L1": (XEON, True, _l1),
        "guided surgery": (XEON, True, _surgery),
        "guided L1 here": (HERE, True, _l1),
    }
    times = {}
    for way, (name, guided, prunes) in ways.items():
        best = _best(training, dense, roofs[name], guided, prunes)
        times[way] = _projected(best, roofs[name])
        results += _judged(way, best, dense, name, roofs[name])
        results += _compared(way, best, measurable, many)
    gain = times["unguided L1"] / times["guided L1"]
    quantity = "projected time without guidance over that with, each the fastest within half a point"
    return [*results, Result("guidance", quantity, gain, "x", claim="guided", holds=gain > 1)]


def _loaded(setting: _Setting, seed: int) -> Splits:
    splits = load(setting.data, seed=seed)
    few = splits.train.take(np.arange(min(setting.images, len(splits.train))))
    return Splits(few, splits.validation, splits.test)


def _best(training: _Training, dense: _Network, roofs: Roofline, guided: bool, prunes: Prunes) -> _Network:
    """Of all strengths the accurate network that is projected to be fastest; dense if none is accurate."""
    setting = training.setting
    found = []
    for strength in setting.strengths:
        prune = partial(prunes, strength)
        methods = [m for row in roofs.rows for m in prune(row.weight)]
        if guided:
            methods = [Guided(roofs.rows, prune, patience=setting.patience)]
        learned = training(copy.deepcopy(dense.model), setting.learn, RATE, *methods)
        found.append(training(learned.model, setting.tune, RATE / 10, Freeze()))
    accurate = [network for network in found if network.validation >= dense.validation - ALLOWED_LOSS]
    return min(accurate, key=lambda network: _projected(network, roofs), default=dense)


def _judged(way: str, found: _Network, dense: _Network, machine: str, roofs: Roofline) -> list[Result]:
    lost = 100 * (dense.test - found.test)
    projected = _projected(found, roofs)
    guided = way != "unguided L1"
    rows = densities(found.model, [row.weight for row in roofs.rows])
    return [
        Result(f"{way} accuracy", f"test accuracy, {way}", 100 * found.test, "%"),
        Result(f"{way} lost", f"accuracy lost, {way}", lost, "points", holds=lost <= 1.0 if guided else None),
        Result(
            f"{way} time",
            f"projected time of convolutions on {machine}, {way}, of dense",
            100 * projected,
            "%",
            holds=projected <= 0.6 if guided else None,
        ),
        *(
            Result(f"{way} density {n}", f"density of convolution {n}, {way}", 100 * rows[row.weight], "%")
            for n, row in enumerate(roofs.rows, start=1)
        ),
    ]


def _compared(way: str, found: _Network, here: Roofline, example: Tensor) -> list[Result]:
    """Measured and projected speed-up on this machine; how far apart, for layers in their useful range."""
    rows = convolutions(found.model, example)
    shares = densities(found.model, [row.weight for row in here.rows])
    what = f"speed-up of the convolutions over the fastest dense engines, {way}, batch {BATCH}, 1 thread"
    apart = [
        100 * abs(row.speedup / here[row.layer].speedup(row.density) - 1)
        for row in rows
        if here[row.layer].lower <= row.density <= here[row.layer].upper
    ]
    results = [
        Result(f"{way} faster", f"measured {what}", together(rows), "x", "speedup-xeon"),
        Result(f"{way} projected", f"projected {what}", here.speedup(shares), "x"),
    ]
    if apart:
        quantity = f"largest distance of a layer's measured speed-up from the projected one, {way}"
        results.append(Result(f"{way} off", quantity, max(apart), "%", holds=max(apart) <= 100 * OFF))
    return results


def _published() -> list[Result]:
    """The golden figures: conv5 of AlexNet, and a 1x1 layer of GoogLeNet."""
    xeon, atom = machines()[XEON], machines()["atom-c2750"]
    conv5 = {m.name: Roof("conv5", "conv5.weight", 149.5e6, 432_640, 1_769_472, m) for m in (xeon, atom)}
    reduce = Roof("5x5_reduce", "weight", 2 * 14**2 * 480 * 16, 4 * (480 + 16) * 14**2, 4 * 480 * 16, xeon)
    results = []
    for machine, short in ((xeon, "xeon"), (atom, "atom")):
        lower, gain = conv5[machine.name].lower, conv5[machine.name].speedup(0.09)
        near = abs(lower - {"xeon": 0.02, "atom": 0.01}[short]) <= 0.001
        results += [
            Result(
                f"lower {short}",
                f"lower bound of conv5, {machine.name}",
                lower,
                claim=f"lower-{short}",
                holds=near,
            ),
            Result(
                f"gain {short}",
                f"projected speed-up of conv5 at 0.09, {machine.name}",
                gain,
                "x",
                claim=f"speedup-{short}",
            ),
        ]
    most = reduce.speedup(0.0)
    quantity = f"largest projected speed-up of inception_4a/5x5_reduce, {xeon.name}"
    return [*results, Result("never", quantity, most, "x", claim="never", holds=most < 1)]


def _measured(machine: Machine) -> list[Result]:
    what = "with the sparse kernels, 1 thread"
    return [
        Result("flops", "measured dense arithmetic, 1 thread", machine.flops_per_s / 1e9, "GFLOP/s"),
        Result("bytes", "measured memory traffic of a copy, 1 thread", machine.bytes_per_s / 1e9, "GB/s"),
        Result("alpha", f"measured time of a nonzero over that of a dense product, {what}", machine.alpha),
    ]


def _model(splits: Splits, widths: tuple[int, int]) -> nn.Module:
    """Two pairs of 3x3 convolutions, a pooling after each, and one linear layer."""
    channels, height, width = splits.train.shape
    layers: list[nn.Module] = []
    for filters in widths:
        for inputs in (channels, filters):
            layers += [nn.Conv2d(inputs, filters, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels, height, width = filters, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, splits.train.classes))


def _l1(strength: float, name: str) -> Sequence[Method]:
    """As the authors prune: L1, then a threshold that is lower where the loss cares (GESL)."""
    return [_penalty(strength, name), Prune([name], GradientThreshold())]


def _surgery(strength: float, name: str) -> Sequence[Method]:
    """The same on a full copy behind the scenes, so that weights can come back (GDNS)."""
    return [_penalty(strength, name), Surgery([name], GradientThreshold())]


def _penalty(strength: float, name: str) -> Structure:
    return Structure([Term(elements(name), Lasso(), strength)], threshold=0.0)


def _projected(network: _Network, roofs: Roofline) -> float:
    """Projected time over that of the dense network."""
    return 1 / roofs.speedup(densities(network.model, [row.weight for row in roofs.rows]))
