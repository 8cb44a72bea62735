"""C18: ranks that are clipped while training, against one cut at the same ranks; then wires that are deleted.

A trained LeNet is factorized at full rank and trained on while ranks are clipped. It is compared with the
full-rank network that is trained for as long with the same optimizer and rates, and with that network cut to
the same ranks without training. Then whole rows and columns of 64 x 64 crossbars are learned away from the
matrices that need more than one of them, and what is left is fine-tuned. Settings were chosen on validation
data; test data only report. Small data sets are judged over several splits, whose measurements are averaged:
half a point of a few hundred images would be two images.
"""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gracile.algebra import Grouping, Lasso, Term, crossbar_columns, crossbar_rows
from gracile.cost import crossbars
from gracile.papers.registry import Result, Scale
from gracile.reduce import factorize, remove
from gracile.train import (
    ClipRank,
    Freeze,
    History,
    Method,
    Splits,
    Structure,
    classification,
    cosine,
    evaluate,
    fit,
)
from gracile.zoo import build, load

LAYERS = ("conv1", "conv2", "fc1")  # the last layer stays whole, as in the publication
LOST = 0.5  # points of accuracy that each of the two steps may cost
GAINED = 0.5  # points that clipping has to be above one cut
AREA = 30.0  # percent of the crossbar area
DELETED = 40.0  # percent of the wires


@dataclass(frozen=True)
class _Setting:
    """Epochs of the four trainings; epsilon and epochs between clippings; strength for rows and columns."""

    data: str
    splits: int
    dense: int
    clip: int
    delete: int
    tune: int
    epsilon: float
    every: float
    strength: float
    weight_decay: float = 5e-4


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        "digits", 3, dense=20, clip=60, delete=60, tune=30, epsilon=0.05, every=2, strength=3e-3
    ),
    "cpu": _Setting(
        "fashion-mnist", 1, dense=2, clip=4, delete=3, tune=1, epsilon=0.02, every=0.2, strength=2e-3
    ),
}


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracy, ranks and area after clipping; accuracy, wires and routing area after deletion."""
    setting = _SETTINGS[scale]
    found = [_journey(setting, seed * setting.splits + number) for number in range(setting.splits)]
    mean = {key: statistics.mean(one[key] for one in found) for key in found[0]}
    lost, gained = mean["full"] - mean["clipped"], mean["clipped"] - mean["direct"]
    later = mean["clipped"] - mean["deleted"]
    return [
        Result("full", "test accuracy at full rank", mean["full"], "%"),
        Result("clipped", "test accuracy after rank clipping", mean["clipped"], "%"),
        Result("direct", "test accuracy of the full-rank network cut to the same ranks", mean["direct"], "%"),
        Result("lost", "accuracy lost by rank clipping", lost, "points", holds=lost <= LOST),
        Result("gained", "accuracy of rank clipping above one cut", gained, "points", holds=gained >= GAINED),
        *(Result(f"rank {name}", f"rank of {name}", mean[f"rank {name}"]) for name in LAYERS),
        Result("equality", "largest relative difference, clipped to removed", mean["equality"]),
        Result(
            "area",
            "crossbar area left by rank clipping",
            mean["area"],
            "%",
            claim="area-lenet",
            holds=mean["area"] <= AREA,
        ),
        Result("deleted", "test accuracy after deleting rows and columns", mean["deleted"], "%"),
        Result("lost to deletion", "accuracy lost by deletion", later, "points", holds=later <= LOST),
        Result(
            "wires", "wires between crossbars deleted", mean["wires"], "%", holds=mean["wires"] >= DELETED
        ),
        Result("routing", "routing area left by deletion", mean["routing"], "%", claim="routing-lenet"),
    ]


def _journey(setting: _Setting, seed: int) -> dict[str, float]:
    """What is measured on one split; accuracies, area and wires in percent."""
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    dense = build("lenet", splits)
    _train(dense, splits, setting, setting.dense, seed)

    full = copy.deepcopy(dense)
    before = _train(full, splits, setting, setting.clip, seed)
    clipping = ClipRank(setting.epsilon, every=round(setting.every * (len(splits.train) // 64)))
    factors = factorize(dense, _full_ranks(dense), "svd")
    after = _train(factors, splits, setting, setting.clip, seed, clipping)
    reduction = remove(factors, splits.train[0][0].unsqueeze(0))
    direct = evaluate(factorize(full, clipping.ranks), splits.test, classification())

    small = reduction.model
    groups = _wires(small)
    learn = Structure([Term(grouping, Lasso(), setting.strength) for grouping in groups])
    _train(small, splits, setting, setting.delete, seed, learn)
    deleted = _train(small, splits, setting, setting.tune, seed, Freeze(groups), rate=0.01)
    cost = crossbars(small)
    return {
        "full": 100 * before.test.score,
        "clipped": 100 * after.test.score,
        "direct": 100 * direct.score,
        **{f"rank {name}": float(rank) for name, rank in clipping.ranks.items()},
        "area": 100 * cost.cells / crossbars(dense).cells,
        "equality": reduction.verdict.error,
        "deleted": 100 * deleted.test.score,
        "wires": 100 * (1 - cost.wired),
        "routing": 100 * cost.routing,
    }


def _full_ranks(model: nn.Module) -> dict[str, int]:
    return {name: min(model.get_parameter(f"{name}.weight").flatten(1).shape) for name in LAYERS}


def _wires(model: nn.Module) -> list[Grouping]:
    """Rows and columns of the crossbars of every matrix that needs more than one."""
    weights = {f"{matrix.layer}.weight" for matrix in crossbars(model).tiled}
    return [
        grouping(name, model.get_parameter(name).shape)
        for name in sorted(weights)
        for grouping in (crossbar_rows, crossbar_columns)
    ]


def _train(
    model: nn.Module,
    splits: Splits,
    setting: _Setting,
    epochs: int,
    seed: int,
    *methods: Method,
    rate: float = 0.02,
) -> History:
    return fit(
        model,
        splits,
        classification(),
        epochs=epochs,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9, weight_decay=setting.weight_decay),
        schedule=cosine(),
        methods=methods,
        seed=seed,
        select="last",
    )
