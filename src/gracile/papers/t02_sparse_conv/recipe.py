"""T2: whole networks, trained to be sparse, run by sparse kernels, against dense engines.

From one common beginning a network goes on dense and sparse, for the same number of passes, with seeds of its
own for each. Single weights go by their magnitude; in a second row runs of 16 consecutive output channels do.
Densities are settings: nothing is selected by test data, which only report. Training looks at no test data at
all. Then the sparse programs and the dense network under every dense engine that is installed are timed in
turns, batch 1 on one thread; what is reported is relative to the fastest of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from gracile.cost import densities
from gracile.papers.c23_guided.measured import convolutions
from gracile.papers.registry import Result, Scale
from gracile.papers.t02_sparse_conv.parts import KINDS, PARTS, Part, prunable
from gracile.papers.t02_sparse_conv.timing import Timed, timed
from gracile.papers.t02_sparse_conv.training import networks
from gracile.train import Splits, evaluate

LOST = 1.0  # points of accuracy, or percent of perplexity, that zeros may cost


def run(scale: Scale, seed: int) -> list[Result]:
    """Scores, densities and measured times of all networks of a scale."""
    return [result for name in PARTS[scale] for result in one(name, scale, seed)]


def one(
    name: str, scale: Scale, seed: int, kinds: Sequence[str] = KINDS, folder: Path | None = None
) -> list[Result]:
    """The same of one network.

    Args:
        name: a key of ``PARTS[scale]``.
        scale, seed: as in :func:`run`.
        kinds: ``"dense"`` and others of :data:`KINDS`.
        folder: where trained networks are kept, and looked for before one is trained.
    """
    part = PARTS[scale][name]
    splits = part.splits(seed)
    trained = networks(name, part, splits, seed, kinds, folder)
    example = part.example(splits.test[0][0])
    return [
        *scores(name, part, trained, splits),
        *times(name, part, timed(trained, example)),
        *layers(name, part, trained, example),
    ]


def scores(name: str, part: Part, trained: Mapping[str, nn.Module], splits: Splits) -> list[Result]:
    """Validation and test scores, what zeros cost on test data, and the densities."""
    task, text = part.task, part.task.better == "lower"
    unit, scale = ("", 1.0) if text else ("%", 100.0)
    results, test = [], {}
    for kind, network in trained.items():
        for data, samples in (("validation", splits.validation), ("test", splits.test)):
            score = scale * evaluate(network, samples, task, part.batch_size).score
            results.append(Result(f"{name} {kind} {data}", f"{data} {task.name}, {name} {kind}", score, unit))
            test[kind] = score
    for kind in [kind for kind in trained if kind != "dense"]:
        lost = 100 * (test[kind] / test["dense"] - 1) if text else test["dense"] - test[kind]
        what, unit = ("perplexity gained", "%") if text else ("accuracy lost", "points")
        results += [
            Result(f"{name} {kind} lost", f"{what}, {name} {kind}", lost, unit, "accuracy", lost <= LOST),
            _density(name, kind, trained[kind]),
        ]
    return results


def _density(name: str, kind: str, network: nn.Module) -> Result:
    shares = densities(network, prunable(network))
    sizes = {weight: p.numel() for weight, p in network.named_parameters() if weight in shares}
    left = sum(shares[weight] * size for weight, size in sizes.items()) / sum(sizes.values())
    quantity = f"weights left in the pruned layers, {name} {kind}"
    return Result(f"{name} {kind} density", quantity, 100 * left, "%", "density")


def times(name: str, part: Part, found: Timed) -> list[Result]:
    """Times of one example, and how many times faster than the fastest dense engine the programs are."""
    results = [
        Result(f"{name} {engine}", f"time of one example, {name} dense in {engine}", 1e3 * seconds, "ms")
        for engine, seconds in found.dense.items()
    ]
    for kind, seconds in found.own.items():
        faster = found.faster(kind)
        what = f"measured speed-up over the fastest dense engine, {name} {kind}, batch 1, 1 thread"
        results += [
            Result(f"{name} {kind} time", f"time of one example, {name} {kind}", 1e3 * seconds, "ms"),
            Result(f"{name} {kind} faster", what, faster, "x", holds=faster >= part.faster),
        ]
    return results


def layers(name: str, part: Part, trained: Mapping[str, nn.Module], example: Tensor) -> list[Result]:
    """Speed-up of the pruned convolutions alone, which is what was published."""
    results = []
    for kind in [kind for kind in trained if kind != "dense" and part.beside]:
        pruned = set(prunable(trained[kind]))
        rows = [row for row in convolutions(trained[kind], example) if f"{row.layer}.weight" in pruned]
        gain = sum(row.dense_s for row in rows) / sum(row.sparse_s for row in rows)
        what = f"speed-up of the pruned convolutions over the fastest dense engine of each, {name} {kind}"
        results.append(Result(f"{name} {kind} convolutions", what, gain, "x", part.beside))
    return results
