"""C12: cells and projections of an LSTMP go, in three steps: group Lasso from scratch, freeze, retrain.

The data are spoken digits and not the publication's corpus, and the network is small: accuracy stands
for the word error rate. The dense network is trained for as many epochs with the same optimizer, rates,
clipping and dropout. Strengths and epochs were chosen on validation data; test data only report.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from gracile.algebra import Lasso, Term
from gracile.cost import count, measure
from gracile.graph import Graph, watch
from gracile.papers.registry import Result, Scale
from gracile.reduce import dead, remove
from gracile.train import (
    Freeze,
    History,
    Method,
    Schedule,
    Splits,
    Structure,
    classification,
    cosine,
    evaluate,
    fit,
    warmup,
)
from gracile.zoo import LSTMClassifier, speech
from gracile.zoo.data.speech import SPEAKERS

GONE = 60.0  # percent of the groups, cells and projections together, that have to go
LOST = 1.5  # points of accuracy that this may cost
WARMUP = 0.5  # share of the epochs with penalty over which it grows to its strength


@dataclass(frozen=True)
class _Setting:
    """Speakers, sizes of the layers, epochs with the penalty and after it, strength for all groups."""

    speakers: Sequence[str]
    cells: tuple[int, ...]
    projections: tuple[int, ...]
    learn: int
    tune: int
    strength: float


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(SPEAKERS[:2], (48, 48), (24, 24), learn=50, tune=30, strength=7e-3),
    "cpu": _Setting(SPEAKERS, (128, 128), (64, 64), learn=20, tune=10, strength=2.5e-3),
}


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracy, groups removed, cost and measured latency."""
    setting = _SETTINGS[scale]
    splits = speech(seed=seed, speakers=setting.speakers)
    example = splits.train[0][0].unsqueeze(0)
    torch.manual_seed(seed)
    start = LSTMClassifier(example.shape[-1], 10, setting.cells, setting.projections)

    learn, tune = 10 * seed, 10 * seed + 1  # with one seed both parts would have the same batches and masks
    dense = copy.deepcopy(start)
    _train(dense, splits, setting.learn, learn)
    before = _train(dense, splits, setting.tune, tune, schedule=cosine())

    learned = copy.deepcopy(start)
    graph = watch(learned, example)
    found = families(graph)
    terms = [Term(graph.grouping(blocks), Lasso(), setting.strength) for blocks in found.values()]
    _train(learned, splits, setting.learn, learn, Structure(terms, schedule=warmup(WARMUP)))
    after = _train(learned, splits, setting.tune, tune, Freeze(), schedule=cosine())
    reduction = remove(learned, example)
    return [
        *_scores(before, after, evaluate(reduction.model, splits.test, classification()).score),
        *_groups(graph, learned, found, before.test.score - after.test.score),
        Result(
            "equality",
            "largest relative difference, masked to reduced",
            reduction.verdict.error,
            holds=reduction.verdict.error <= 1e-5,
        ),
        *_costs(dense, reduction.model, example),
    ]


def families(graph: Graph) -> dict[str, list[int]]:
    """The blocks of cells, which the projection matrix contracts, and of the projections that it makes."""
    found: dict[str, list[int]] = {"cells": [], "projections": []}
    for block in graph.blocks:
        for part in graph.units[block.units[0]].slices:
            if part.tensor.endswith("weight_hr_l0"):
                found["cells" if part.dim == 1 else "projections"].append(block.id)
    return found


def _train(
    model: nn.Module,
    splits: Splits,
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
        batch_size=32,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        schedule=schedule,
        methods=methods,
        clip=1.0,
        select="last",
        seed=seed,
    )


def _scores(before: History, after: History, reduced: float) -> list[Result]:
    lost = 100 * (before.test.score - reduced)
    return [
        Result("dense validation", "validation accuracy, dense LSTMP", 100 * before.best.score, "%"),
        Result("dense", "test accuracy, dense LSTMP on spoken digits", 100 * before.test.score, "%"),
        Result("sparse validation", "validation accuracy, sparse LSTMP", 100 * after.best.score, "%"),
        Result("reduced", "test accuracy of the reduced LSTMP", 100 * reduced, "%"),
        Result("lost", "accuracy lost", lost, "points", "loss", lost <= LOST),
    ]


def _groups(graph: Graph, model: nn.Module, found: dict[str, list[int]], lost: float) -> list[Result]:
    gone = set(dead(graph, model))
    results, counts = [], []
    for family, blocks in found.items():
        units = {unit for block in blocks for unit in graph.blocks[block].units}
        counts.append((len(gone & units), len(units)))
        share = 100 * counts[-1][0] / counts[-1][1]
        results.append(Result(family, f"{family} removed, of {counts[-1][1]} in both layers", share, "%"))
    share = 100 * sum(n for n, _ in counts) / sum(n for _, n in counts)
    holds = share >= GONE and 100 * lost <= LOST
    return [Result("groups", "groups removed, cells and projections", share, "%", "groups", holds), *results]


def _costs(dense: nn.Module, reduced: nn.Module, example: torch.Tensor) -> list[Result]:
    results = []
    layers = [module for module in reduced.modules() if isinstance(module, nn.LSTM)]
    for number, layer in enumerate(layers, start=1):
        results += [
            Result(f"cells {number}", f"cells left, layer {number}", layer.hidden_size),
            Result(f"projections {number}", f"projections left, layer {number}", layer.proj_size),
        ]
    before, after = count(dense, example), count(reduced, example)
    results += [
        Result("parameters", "dense parameters over reduced", before.parameters / after.parameters, "x"),
        Result("macs", "dense MACs over reduced", before.macs / after.macs, "x"),
    ]
    for batch in (1, 32):
        inputs = example.expand(batch, *example.shape[1:]).contiguous()
        timing = measure({"dense": dense.eval(), "reduced": reduced.eval()}, inputs)["reduced"]
        what = f"measured speed-up, batch {batch}, {timing.threads} thread"
        results.append(Result(f"latency {batch}", what, timing.speedup, "x"))
    return results
