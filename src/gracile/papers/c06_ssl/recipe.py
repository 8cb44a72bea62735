"""C6: group Lasso against L1 at equal element sparsity, and what removing the dead units gains.

Two questions, two parts. *Structure*: from one dense network, learn with group Lasso on rows and columns
and with L1 on elements, and compare the rows and columns that died at about the same share of zero elements.
*Speed*: the whole journey (``gracile.pipeline.slim``), with the reduced network measured beside the dense.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from gracile.algebra import L1, Grouping, Lasso, Term, View, layer, shapes
from gracile.cost import measure
from gracile.papers.registry import Result, Scale
from gracile.pipeline import Outcome, Plan, slim
from gracile.train import Freeze, History, Splits, Structure, classification, cosine, fit
from gracile.zoo import build, load

LAYER = "conv2.weight"  # the layer whose rows and columns are compared
PENALIZED = ("conv1", "conv2", "fc1")


@dataclass(frozen=True)
class _Setting:
    """Data, epochs, and strengths; those of L1 are a grid to match element sparsity from."""

    data: str
    dense: int
    learn: int
    tune: int
    ssl: float
    l1: tuple[float, ...]
    journey: Plan


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        "digits",
        dense=25,
        learn=80,
        tune=40,
        ssl=6e-3,
        l1=(5e-4, 1e-3, 1.5e-3),
        journey=Plan(dense=30, learn=50, tune=60, strength=4e-3, guidance=0.0, rate_tune=0.4, batch_size=32),
    ),
    "cpu": _Setting(
        "fashion-mnist",
        dense=4,
        learn=3,
        tune=1,
        ssl=2.5e-3,
        l1=(5e-4, 8e-4),
        journey=Plan(dense=5, learn=7, tune=5, strength=2.7e-3, rate=0.02, rate_tune=1.0),
    ),
}


@dataclass(frozen=True)
class _Zeros:
    """Shares of the lowered matrix of :data:`LAYER` that are zero, and the accuracy after fine-tuning."""

    element: float
    row: float
    column: float
    accuracy: float
    rows: Tensor  # which live
    columns: Tensor


def run(scale: Scale, seed: int) -> list[Result]:
    """Shares of zeros with both penalties; accuracy, cost and measured latency of the reduced network."""
    setting = _SETTINGS[scale]
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    model = build("lenet", splits)
    _, outcome = slim(
        copy.deepcopy(model), splits, classification(), setting.journey, title="C6", seed=seed, progress=True
    )
    return _structure(model, splits, setting, seed) + _speed(outcome)


def _structure(model: nn.Module, splits: Splits, setting: _Setting, seed: int) -> list[Result]:
    history = _train(model, splits, setting.dense, 0.02, seed)
    both = [
        Term(grouping, Lasso(), setting.ssl)
        for name in PENALIZED
        for grouping in (_filters_with_bias(name), shapes(f"{name}.weight"))
    ]
    ours = _zeros(model, splits, setting, seed, both)
    candidates = [
        _zeros(model, splits, setting, seed, [Term(layer(f"{n}.weight"), L1(), s) for n in PENALIZED])
        for s in setting.l1
    ]
    theirs = min(candidates, key=lambda found: abs(found.element - ours.element))
    apart = abs(ours.element - theirs.element)
    more = ours.column - theirs.column
    gain = _matrix_product(ours)
    return [
        Result("dense accuracy", "test accuracy of the dense network", 100 * history.test.score, "%"),
        Result("ssl accuracy", "test accuracy with group Lasso", 100 * ours.accuracy, "%"),
        Result("l1 accuracy", "test accuracy with L1", 100 * theirs.accuracy, "%"),
        Result("ssl elements", f"zero elements of {LAYER}, group Lasso", 100 * ours.element, "%"),
        Result("l1 elements", f"zero elements of {LAYER}, L1", 100 * theirs.element, "%"),
        Result("ssl rows", f"zero rows of {LAYER}, group Lasso", 100 * ours.row, "%"),
        Result("l1 rows", f"zero rows of {LAYER}, L1", 100 * theirs.row, "%"),
        Result("ssl columns", f"zero columns of {LAYER}, group Lasso", 100 * ours.column, "%"),
        Result("l1 columns", f"zero columns of {LAYER}, L1", 100 * theirs.column, "%"),
        Result(
            "more columns",
            "points of zero columns that group Lasso has over L1, at element sparsity within 10 points",
            100 * more,
            "points",
            claim="structure",
            holds=more >= 0.30 and apart <= 0.10,
        ),
        Result(
            "product",
            f"speed-up of the matrix product of {LAYER} without its zero rows and columns",
            gain,
            "x",
            claim="alexnet-cpu",
            holds=gain >= 1.5,
        ),
    ]


def _speed(outcome: Outcome) -> list[Result]:
    before, after = outcome.before, outcome.after
    lost = 100 * (before.score - after.score)
    results = [
        Result("loss", "accuracy lost by the reduced network", lost, "points", holds=lost <= 0.5),
        Result("equality", "largest relative difference, masked to reduced", outcome.equality),
        Result("parameters", "dense parameters over reduced", before.parameters / after.parameters, "x"),
    ]
    if before.macs and after.macs:
        fewer = before.macs / after.macs
        results.append(Result("macs", "dense MACs over reduced", fewer, "x", holds=fewer >= 3))
    for latency in outcome.latencies:
        faster = latency.reduced.speedup
        results.append(
            Result(
                f"latency {latency.batch}",
                f"measured speed-up, batch {latency.batch}, {latency.reduced.threads} thread",
                faster,
                "x",
                claim="alexnet-no-loss",
                holds=faster >= 1.5 if latency.batch == 64 else None,
            )
        )
    return results


def _filters_with_bias(name: str) -> Grouping:
    """Rows with their bias: a dead row then emits zero and not a constant."""
    return Grouping((View(f"{name}.weight", "out ...", ("out",)), View(f"{name}.bias", "out", ("out",))))


def _zeros(dense: nn.Module, splits: Splits, setting: _Setting, seed: int, terms: list[Term]) -> _Zeros:
    model = copy.deepcopy(dense)
    _train(model, splits, setting.learn, 0.02, seed, Structure(terms))
    history = _train(model, splits, setting.tune, 0.01, seed, Freeze())
    alive = model.get_parameter(LAYER).detach().flatten(1) != 0
    rows, columns = alive.any(1), alive.any(0)
    element, row, column = (1 - part.double().mean().item() for part in (alive, rows, columns))
    return _Zeros(element, row, column, history.test.score, rows, columns)


def _matrix_product(found: _Zeros) -> float:
    """Measured: the lowered matrix with all its rows and columns against the one without the dead."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = len(found.rows), len(found.columns)
    dense = torch.randn(rows, columns, generator=generator)
    compact = dense[found.rows][:, found.columns].contiguous()
    pixels = torch.randn(columns, 4096, generator=generator)
    fewer = pixels[found.columns].contiguous()
    timings = measure({"dense": lambda: dense @ pixels, "compact": lambda: compact @ fewer}, rounds=60)
    return timings["compact"].speedup


def _train(
    model: nn.Module,
    splits: Splits,
    epochs: int,
    rate: float,
    seed: int,
    *methods: Structure | Freeze,
) -> History:
    return fit(
        model,
        splits,
        classification(),
        epochs=epochs,
        optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
        schedule=cosine(),
        methods=methods,
        seed=seed,
        select="last",
    )
