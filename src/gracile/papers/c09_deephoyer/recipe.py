"""C9: Hoyer-Square against L1, from the same trained network, at matched accuracy.

For each penalty and strength: train with the penalty, cut small weights, fine-tune with the zeros held.
Each penalty then names its sparsest network whose *validation* accuracy is within half a point of the
dense one; test data only reports. Small data sets are judged over several splits into training and
validation data, whose accuracies and nonzeros are averaged before anything is chosen: half a point of a few
hundred images would be one image.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gracile.algebra import L1, HoyerSquare, Penalty, Term, layer, threshold_
from gracile.papers.registry import Result, Scale
from gracile.train import (
    Freeze,
    History,
    Method,
    Splits,
    Structure,
    classification,
    cosine,
    fit,
)
from gracile.zoo import build, load

ALLOWED_LOSS = 0.005  # of validation accuracy, against the dense network
THRESHOLD = 1e-3  # weights up to this are cut; C9's scripts cut at 1e-4 after many more epochs


@dataclass(frozen=True)
class _Setting:
    """A network on a data set, and how long it is trained."""

    network: str
    data: str
    splits: int
    dense: int
    learn: int
    tune: int
    batch_size: int
    strengths: dict[str, tuple[float, ...]]  # the two penalties have different units


_WIDE = (5e-4, 1e-3, 2e-3, 3e-3, 5e-3)
_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting("mlp", "digits", 3, 40, 60, 20, 64, {"Hoyer-Square": _WIDE, "L1": _WIDE}),
    "cpu": _Setting(
        "mlp",
        "fashion-mnist",
        splits=1,
        dense=10,
        learn=10,
        tune=4,
        batch_size=128,
        strengths={"Hoyer-Square": (3e-5, 5e-5, 6.5e-5, 8e-5), "L1": (7e-5, 1e-4, 1.4e-4, 1.8e-4)},
    ),
}
_PENALTIES: dict[str, Penalty] = {"Hoyer-Square": HoyerSquare(), "L1": L1()}


@dataclass(frozen=True)
class _Network:
    """One network, or the average of several."""

    validation: float
    test: float
    nonzeros: float


def run(scale: Scale, seed: int) -> list[Result]:
    """Dense accuracy, and the nonzeros that each penalty needs."""
    setting = _SETTINGS[scale]
    found: dict[tuple[str, float], list[_Network]] = {}
    for number in range(setting.splits):
        for key, network in _networks(setting, seed * setting.splits + number):
            found.setdefault(key, []).append(network)
    averages = {key: _average(networks) for key, networks in found.items()}
    dense = averages.pop(("dense", 0.0))
    results = [
        Result("dense", f"test accuracy, dense {setting.network} on {setting.data}", 100 * dense.test, "%"),
        Result("weights", f"weights of the dense {setting.network}", dense.nonzeros),
    ]
    needed = {}
    for penalty in _PENALTIES:
        accurate = [
            network
            for (name, _), network in averages.items()
            if name == penalty and network.validation >= dense.validation - ALLOWED_LOSS
        ]
        # Without an accurate sparse network the dense one is what a penalty has to offer.
        best = min(accurate, key=lambda network: network.nonzeros, default=dense)
        needed[penalty] = best.nonzeros
        results += [
            Result(f"{penalty} nonzeros", f"nonzeros with {penalty}", best.nonzeros),
            Result(f"{penalty} ratio", f"compression with {penalty}", dense.nonzeros / best.nonzeros, "x"),
            Result(f"{penalty} accuracy", f"test accuracy with {penalty}", 100 * best.test, "%"),
        ]
    advantage = needed["L1"] / needed["Hoyer-Square"]
    quantity = "nonzeros of L1 over nonzeros of Hoyer-Square, at most 0.5 points below dense"
    return [
        *results,
        Result("advantage", quantity, advantage, "x", claim="beats-l1", holds=advantage > 1),
    ]


def _networks(setting: _Setting, seed: int) -> Iterator[tuple[tuple[str, float], _Network]]:
    """The dense network and all sparse ones of one split."""
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    dense = build(setting.network, splits)
    history = _train(dense, splits, setting, setting.dense, seed)
    yield ("dense", 0.0), _network(dense, history)
    for penalty in _PENALTIES:
        for strength in setting.strengths[penalty]:
            yield (penalty, strength), _sparse(dense, penalty, strength, splits, setting, seed)


def _network(model: nn.Module, history: History) -> _Network:
    nonzeros = sum(int(p.count_nonzero()) for p in model.parameters())
    return _Network(history.best.score, history.test.score, nonzeros)


def _average(networks: list[_Network]) -> _Network:
    return _Network(
        statistics.mean(n.validation for n in networks),
        statistics.mean(n.test for n in networks),
        statistics.mean(n.nonzeros for n in networks),
    )


def _sparse(
    dense: nn.Module, penalty: str, strength: float, splits: Splits, setting: _Setting, seed: int
) -> _Network:
    model = copy.deepcopy(dense)
    # Biases are penalized as well, as in the authors' scripts.
    terms = [Term(layer(name), _PENALTIES[penalty], strength) for name, _ in model.named_parameters()]
    _train(model, splits, setting, setting.learn, seed, Structure(terms, mode="loss"))
    threshold_(model.parameters(), THRESHOLD)
    return _network(model, _train(model, splits, setting, setting.tune, seed, Freeze()))


def _train(
    model: nn.Module,
    splits: Splits,
    setting: _Setting,
    epochs: int,
    seed: int,
    *methods: Method,
) -> History:
    return fit(
        model,
        splits,
        classification(),
        epochs=epochs,
        batch_size=setting.batch_size,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=cosine(),
        methods=methods,
        seed=seed,
        select="last",
    )
