"""C22: a network that has learned one domain, used in another, with and without unlabeled samples of it.

Source-only and adapted training are the same in everything else: network, first weights, source samples,
epochs, optimizer. Nothing is selected: epochs are fixed and the last weights count, since in earnest there
would be no target label to select by. One setting of the alignments serves all pairs and networks.

The compact network is also compared with 3x3 convolutions of about as many parameters on one domain alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from gracile.papers.registry import Result, Scale
from gracile.train import (
    MMD,
    Adapt,
    Adversarial,
    Alignment,
    Entropy,
    Splits,
    adapt_batch_norm,
    classification,
    cosine,
    evaluate,
    fit,
    warmup,
)
from gracile.zoo import Images, conv_m, conv_m_small, digits, domain, load, plain_small

ENOUGH = 10.0  # points of target accuracy that adapting should gain
CONVOLUTIONS = ("Conv-M", "3x3")


@final
@dataclass(frozen=True)
class _Setting:
    """Pairs of domains, and how long is trained on each.

    Attributes:
        images: (source, target) for the two convolutional networks.
        objects: (source, target) for the perceptron.
        samples: most source, and most target, images to learn from.
        alone: data of one domain, the most images of it to learn from, and passes over them.
        epochs, object_epochs: passes over the source samples.
    """

    images: tuple[tuple[str, str], ...]
    objects: tuple[tuple[str, str], ...]
    samples: int
    alone: tuple[str, int, int]
    epochs: int
    object_epochs: int = 1
    batch_size: int = 64
    alignments: tuple[Alignment, ...] = (MMD(1.0), Adversarial(0.3), Entropy(0.1, warmup(0.3)))


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        (("digits", "inverted"), ("digits", "rotated"), ("digits", "blurred")),
        (),
        samples=1000,
        alone=("digits", 2000, 25),
        epochs=25,
        batch_size=32,
    ),
    "cpu": _Setting(
        (("usps", "mnist16"), ("mnist16", "usps")),
        (("amazon", "webcam"), ("webcam", "caltech")),
        samples=6000,
        alone=("fashion-mnist", 10_000, 3),
        epochs=5,
        object_epochs=15,
    ),
}


@dataclass(frozen=True)
class _Scores:
    """Accuracies on test data in %; ``renewed`` with the target's batch-norm statistics."""

    source: float
    target: float
    renewed: float | None


def run(scale: Scale, seed: int) -> list[Result]:
    """Target accuracies with source labels alone, with the target's batch-norm statistics, and adapted."""
    setting = _SETTINGS[scale]
    size = sum(p.numel() for p in conv_m().parameters()) / 1e6
    fits = abs(size / 4.1 - 1) <= 0.05
    results = [Result("parameters", "parameters of Conv-M", size, "M", claim="parameters", holds=fits)]
    gains: dict[str, list[float]] = {name: [] for name in (*CONVOLUTIONS, "perceptron")}
    for pair, names, epochs in (
        *((pair, CONVOLUTIONS, setting.epochs) for pair in setting.images),
        *((pair, ("perceptron",), setting.object_epochs) for pair in setting.objects),
    ):
        source, target = _worlds(*pair, setting.samples, seed)
        for name in names:
            plain, adapted = (
                _trained(name, source, target, setting, epochs, seed, alignments)
                for alignments in ((), setting.alignments)
            )
            gains[name].append(adapted.target - plain.target)
            results += _lines(f"{pair[0]} to {pair[1]}, {name}", plain, adapted)
    return results + _summary(gains) + _alone(setting, seed)


def _lines(what: str, plain: _Scores, adapted: _Scores) -> list[Result]:
    gain = adapted.target - plain.target
    lines = [
        Result(f"{what}: source", f"{what}: source accuracy, source only", plain.source, "%"),
        Result(f"{what}: plain", f"{what}: target accuracy, source only", plain.target, "%"),
        Result(f"{what}: adapted", f"{what}: target accuracy, adapted", adapted.target, "%"),
        Result(f"{what}: gain", f"{what}: gained by adapting", gain, "points"),
    ]
    if plain.renewed is not None:
        quantity = f"{what}: target accuracy, source only with the target's batch-norm statistics"
        lines.insert(2, Result(f"{what}: renewed", quantity, plain.renewed, "%"))
    return lines


def _summary(gains: dict[str, list[float]]) -> list[Result]:
    enough = sum(gain >= ENOUGH for gain in [*gains["Conv-M"], *gains["perceptron"]])
    better = [ours - theirs for ours, theirs in zip(*(gains[name] for name in CONVOLUTIONS), strict=True)]
    more = sum(better) / len(better)
    return [
        Result(
            "pairs",
            f"pairs on which Conv-M (or the perceptron) gains {ENOUGH:g} points or more",
            enough,
            holds=enough >= 2,
        ),
        Result("Conv-M gains more", "mean gain of Conv-M over that of 3x3 convolutions", more, "points"),
    ]


def _alone(setting: _Setting, seed: int) -> list[Result]:
    data, most, epochs = setting.alone
    splits = _fewer(load(data, seed=seed), most, seed)
    results = []
    for name in CONVOLUTIONS:
        scores = _trained(name, splits, splits, setting, epochs, seed, ())
        size = sum(p.numel() for p in _NETWORKS[name][0](splits.train.shape).parameters()) / 1e3
        results += [
            Result(f"alone {name}", f"{data}: test accuracy, {name}", scores.source, "%"),
            Result(f"alone {name} size", f"{data}: parameters, {name}", size, "k"),
        ]
    return results


def _trained(
    name: str,
    source: Splits,
    target: Splits,
    setting: _Setting,
    epochs: int,
    seed: int,
    alignments: Iterable[Alignment],
) -> _Scores:
    torch.manual_seed(seed)
    build, at = _NETWORKS[name]
    model = build(source.train.shape)
    methods = [Adapt(target.train, at, chosen, seed)] if (chosen := tuple(alignments)) else []
    history = fit(
        model,
        source,
        classification(),
        epochs=epochs,
        batch_size=setting.batch_size,
        optimizer=partial(torch.optim.Adam, lr=2e-3),
        schedule=cosine(),
        methods=methods,
        select="last",
        seed=seed,
    )
    renewed = None
    if name in CONVOLUTIONS:
        generator = torch.Generator().manual_seed(seed)
        batches = DataLoader(
            target.train, setting.batch_size, shuffle=True, drop_last=True, generator=generator
        )
        renewed = _percent(adapt_batch_norm(model, batches), target)
    return _Scores(100 * history.test.score, _percent(model, target), renewed)


def _percent(model: nn.Module, target: Splits) -> float:
    return 100 * evaluate(model, target.test, classification()).score


def _perceptron(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Linear(shape[0], 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10))


_NETWORKS: dict[str, tuple[Callable[[tuple[int, ...]], nn.Module], str]] = {
    "Conv-M": (conv_m_small, "pool"),
    "3x3": (plain_small, "pool"),
    "perceptron": (_perceptron, "1"),
}
"""Name -> (function of the shape of a sample, the module whose output is the feature)."""


def _worlds(source: str, target: str, samples: int, seed: int) -> tuple[Splits, Splits]:
    """Both domains; where they are made from the same digits, no image is in both to learn from."""
    if source == "digits":
        both, half = digits(seed), len(digits(seed).train) // 2
        first, second = (both.train.take(part.numpy()) for part in torch.arange(2 * half).split(half))
        change = _CHANGES[target]
        home = Splits(first, both.validation, both.test)
        return home, Splits(change(second), change(both.validation), change(both.test))
    home, away = (_fewer(domain(name, seed=seed), samples, seed) for name in (source, target))
    return home, away


def _fewer(parts: Splits, most: int, seed: int) -> Splits:
    """At most so many images to learn from, and a sixth as many to watch the loss with."""
    if not isinstance(parts.train, Images):
        return parts
    generator = torch.Generator().manual_seed(seed)

    def some(images: Images, count: int) -> Images:
        return images.take(torch.randperm(len(images), generator=generator)[:count].numpy())

    return Splits(some(parts.train, most), some(parts.validation, most // 6), parts.test)


def _changed(images: Images, change: Callable[[Tensor], Tensor]) -> Images:
    pixels = change(images.pixels.float() / images.top).clamp(0, 1) * images.top
    new = pixels.round().to(torch.uint8)
    return Images(new, images.targets, images.classes, images.mean, images.std, images.top)


def _rotate(pixels: Tensor, degrees: float = 35.0) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    grid = functional.affine_grid(turn.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=False)
    return functional.grid_sample(pixels, grid, align_corners=False)


def _blur(pixels: Tensor) -> Tensor:
    return functional.avg_pool2d(pixels, 3, stride=1, padding=1)


_CHANGES: dict[str, Callable[[Images], Images]] = {
    "inverted": partial(_changed, change=lambda pixels: 1.0 - pixels),
    "rotated": partial(_changed, change=_rotate),
    "blurred": partial(_changed, change=_blur),
}
