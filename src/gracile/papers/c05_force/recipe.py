"""C5: accuracy after decomposition at equal rank, of networks trained with and without force.

One network without force and one for each strength, trained alike from the same start. One layer of each is
factorized at several ranks, and its accuracy is measured before and after a fixed fine-tune. The strength is
chosen by validation accuracy over all ranks; test data only report. The rank that keeps 95 % of the energy is
reported but judges nothing: force gathers energy in one direction while the classes sit in the rest.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gracile.algebra import filters, mean_cosine
from gracile.papers.registry import Result, Scale
from gracile.reduce import factorize, ranks_by_energy
from gracile.train import Force, Splits, attractions_of, classification, cosine, evaluate, fit, until
from gracile.zoo import build, load

LAYER = "conv2"
ENERGY = 0.95
FORCE_ENDS = 0.5  # share of the run; the rest of it is for the loss alone
RATE_TUNE = 0.01


@dataclass(frozen=True)
class _Setting:
    """Data, learning rate, epochs of training and of fine-tuning, ranks and strengths to compare."""

    data: str
    rate: float
    train: int
    tune: int
    ranks: tuple[int, ...]
    strengths: tuple[float, ...]


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting("digits", 0.05, train=40, tune=5, ranks=(3, 4, 6, 8), strengths=(0.05, 0.1, 0.2)),
    "cpu": _Setting("fashion-mnist", 0.02, train=3, tune=1, ranks=(4, 8), strengths=(0.05, 0.1, 0.2)),
}


@dataclass(frozen=True)
class _Small:
    """Accuracies of a factorized network in percent, before and after its fine-tune."""

    validation: float
    test: float
    tuned: float


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracies at every rank, and what force gains over the network without it."""
    setting = _SETTINGS[scale]
    splits = load(setting.data, seed=seed)
    networks = {s: _trained(splits, setting, s, seed) for s in (0.0, *setting.strengths)}
    small = {s: _factorized(network, splits, setting, seed) for s, network in networks.items()}
    best = max(setting.strengths, key=lambda s: statistics.mean(f.validation for f in small[s].values()))
    names = {0.0: "plain", best: "force"}
    results = [Result("strength", "chosen strength of the force", best)]
    for strength, name in names.items():
        results += _facts(networks[strength], splits, name)
    for rank in setting.ranks:
        for strength, name in names.items():
            found, at = small[strength][rank], f"of {LAYER} at rank {rank}, {name}"
            results += [
                Result(f"{name} {rank}", f"test accuracy {at}", found.test, "%"),
                Result(f"{name} {rank} tuned", f"test accuracy {at}, fine-tuned", found.tuned, "%"),
            ]
    gains = {s: (_gain(small, s, "test"), _gain(small, s, "tuned")) for s in setting.strengths}
    for strength, (gain, tuned) in gains.items():
        at = f"points gained at equal rank, strength {strength:g}"
        results += [
            Result(f"gain {strength:g}", at, gain, "points"),
            Result(f"gain {strength:g} tuned", f"{at}, fine-tuned", tuned, "points"),
        ]
    gain, tuned = gains[best]
    quantity = f"points of test accuracy gained by force at equal rank, mean over ranks {setting.ranks}"
    return [
        *results,
        Result("gain", quantity, gain, "points", claim="lower-rank", holds=gain > 0),
        Result(
            "gain tuned", f"{quantity}, fine-tuned", tuned, "points", claim="lower-rank", holds=tuned >= 0
        ),
    ]


def _trained(splits: Splits, setting: _Setting, strength: float, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build("lenet", splits)
    force = Force(attractions_of(model, strength), schedule=until(FORCE_ENDS))
    _train(model, splits, setting.train, setting.rate, seed, force)
    return model


def _factorized(model: nn.Module, splits: Splits, setting: _Setting, seed: int) -> dict[int, _Small]:
    found = {}
    for rank in setting.ranks:
        small = factorize(model, {LAYER: rank}, method="pca")
        validation, test = (_accuracy(small, part) for part in (splits.validation, splits.test))
        _train(small, splits, setting.tune, RATE_TUNE, seed)
        found[rank] = _Small(validation, test, _accuracy(small, splits.test))
    return found


def _facts(model: nn.Module, splits: Splits, name: str) -> list[Result]:
    rank = ranks_by_energy(model, ENERGY, [LAYER])[LAYER]
    alike = mean_cosine(filters(f"{LAYER}.weight").of(dict(model.named_parameters()))).item()
    return [
        Result(
            f"{name} accuracy",
            f"test accuracy of the whole network, {name}",
            _accuracy(model, splits.test),
            "%",
        ),
        Result(f"{name} cosine", f"mean cosine between the filters of {LAYER}, {name}", alike),
        Result(f"{name} energy rank", f"rank of {LAYER} that keeps 95 % of the energy, {name}", float(rank)),
    ]


def _gain(small: dict[float, dict[int, _Small]], strength: float, which: str) -> float:
    """Mean over the ranks of what a strength has over no force."""
    differences = [
        getattr(small[strength][rank], which) - getattr(plain, which) for rank, plain in small[0.0].items()
    ]
    return round(statistics.mean(differences), 6)  # where nothing is gained rounding errors are not either


def _accuracy(model: nn.Module, data: object) -> float:
    return 100 * evaluate(model, data, classification()).score


def _train(model: nn.Module, splits: Splits, epochs: int, rate: float, seed: int, *methods: Force) -> None:
    fit(
        model,
        splits,
        classification(),
        epochs=epochs,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=5e-4),
        schedule=cosine(),
        methods=methods,
        seed=seed,
        select="last",
        progress=False,
    )
