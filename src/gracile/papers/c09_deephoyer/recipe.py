"""C9: Hoyer-Square against L1, from the same trained network, at matched accuracy.

For each penalty and strength: train with the penalty, cut small weights, fine-tune with the zeros held.
Each penalty then names its sparsest network whose *validation* accuracy is within half a point of the
dense one; test data only reports.
"""

from __future__ import annotations

import copy
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
    Schedule,
    Splits,
    Structure,
    classification,
    constant,
    cosine,
    evaluate,
    fit,
)
from gracile.zoo import build, load

ALLOWED_LOSS = 0.005  # of validation accuracy, against the dense network
THRESHOLD = 1e-2  # weights up to this are cut; C9's scripts cut at 1e-4 after many more epochs


@dataclass(frozen=True)
class _Setting:
    """A network on a data set, and how long it is trained."""

    network: str
    data: str
    dense: int
    learn: int
    tune: int
    batch_size: int
    strengths: tuple[float, ...]


_GRID = (3e-4, 1e-3, 2e-3, 4e-3)
_FINE = (3e-5, 1e-4, 3e-4, 1e-3)  # more data: a step of the penalty is taken more often
_SETTINGS: dict[Scale, tuple[_Setting, ...]] = {
    "tiny": (_Setting("mlp", "digits", 40, 60, 20, 64, _GRID),),
    "cpu": (
        _Setting("mlp", "fashion-mnist", 12, 16, 8, 128, _FINE),
        _Setting("lenet", "fashion-mnist", 5, 6, 3, 128, _FINE[1:]),
    ),
}
_PENALTIES: dict[str, Penalty] = {"Hoyer-Square": HoyerSquare(), "L1": L1()}


@dataclass(frozen=True)
class _Sparse:
    """One sparse network."""

    validation: float
    test: float
    nonzeros: int


def run(scale: Scale, seed: int) -> list[Result]:
    """Dense accuracy, and the nonzeros that each penalty needs, for each network of the scale."""
    results = []
    for setting in _SETTINGS[scale]:
        results += _compare(setting, seed)
    return results


def _compare(setting: _Setting, seed: int) -> list[Result]:
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    dense = build(setting.network, splits)
    history = _train(dense, splits, setting, setting.dense, seed)
    floor = history.best.score - ALLOWED_LOSS
    total = sum(p.numel() for p in dense.parameters())
    name = f"{setting.network} on {setting.data}"
    results = [
        Result(f"{name}: dense", f"test accuracy of the dense {name}", 100 * history.test.score, "%"),
        Result(f"{name}: weights", f"weights of the dense {name}", total),
    ]
    best: dict[str, _Sparse | None] = {}
    for penalty in _PENALTIES:
        found = [_sparse(dense, penalty, s, splits, setting, seed) for s in setting.strengths]
        accurate = [network for network in found if network.validation >= floor]
        best[penalty] = chosen = min(accurate, key=lambda network: network.nonzeros, default=None)
        if chosen:
            results += [
                Result(f"{name}: {penalty} nonzeros", f"nonzeros with {penalty}", chosen.nonzeros),
                Result(
                    f"{name}: {penalty} ratio", f"compression with {penalty}", total / chosen.nonzeros, "x"
                ),
                Result(
                    f"{name}: {penalty} accuracy", f"test accuracy with {penalty}", 100 * chosen.test, "%"
                ),
            ]
    # Without an accurate sparse network the dense one is what a penalty has to offer.
    needed = {penalty: found.nonzeros if found else total for penalty, found in best.items()}
    advantage = needed["L1"] / needed["Hoyer-Square"]
    results.append(
        Result(
            f"{name}: advantage",
            f"nonzeros of L1 over nonzeros of Hoyer-Square, {name}, at most 0.5 points below dense",
            advantage,
            "x",
            claim="beats-l1",
            holds=advantage > 1,
        )
    )
    return results


def _sparse(
    dense: nn.Module, penalty: str, strength: float, splits: Splits, setting: _Setting, seed: int
) -> _Sparse:
    model = copy.deepcopy(dense)
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    terms = [Term(layer(name), _PENALTIES[penalty], strength) for name in weights]
    structure = Structure(terms, mode="loss")
    # At a constant rate: one that falls to nothing stops small weights on their way to zero.
    _train(model, splits, setting, setting.learn, seed, structure, schedule=constant())
    threshold_(weights.values(), THRESHOLD)
    history = _train(model, splits, setting, setting.tune, seed, Freeze())
    nonzeros = sum(int(p.count_nonzero()) for p in model.parameters())
    return _Sparse(evaluate(model, splits.validation, classification()).score, history.test.score, nonzeros)


def _train(
    model: nn.Module,
    splits: Splits,
    setting: _Setting,
    epochs: int,
    seed: int,
    *methods: Method,
    schedule: Schedule | None = None,
) -> History:
    return fit(
        model,
        splits,
        classification(),
        epochs=epochs,
        batch_size=setting.batch_size,
        optimizer=partial(torch.optim.Adam, lr=1e-3),
        schedule=schedule or cosine(),
        methods=methods,
        seed=seed,
        select="last",
    )
