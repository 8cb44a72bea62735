"""What a journey leaves behind: numbers before and after, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import nn

from gracile.cost import Cost, Environment, Timing
from gracile.train import History


@final
@dataclass(frozen=True)
class Snapshot:
    """A network at one point of the journey.

    Args:
        score: on the test set, which nothing was chosen by.
        parameters: how many numbers are trained.
        macs: multiply-accumulates for one example; ``None`` if an operator has no known count.
        bytes: storage of parameters and buffers.
    """

    score: float
    parameters: int
    macs: float | None
    bytes: int


@final
@dataclass(frozen=True)
class Layer:
    """One layer with weights, before and after.

    Args:
        name: dotted path, or the class where the network is a single layer.
        width: its outputs: channels, neurons, or the hidden units of a recurrent layer.
        parameters: how many numbers are trained.
        macs: multiply-accumulates for one example.
    """

    name: str
    width: tuple[int, int]
    parameters: tuple[int, int]
    macs: tuple[float | None, float | None]


@final
@dataclass(frozen=True)
class Latency:
    """Measured in turns at one batch size."""

    batch: int
    dense: Timing
    reduced: Timing


@final
@dataclass(frozen=True)
class Outcome:
    """A finished journey.

    Args:
        title: what was reduced, in words.
        command: how to do it again.
        seed: every random choice followed from it.
        score: name of the score.
        before: the dense network.
        after: the reduced and fine-tuned network.
        layers: every layer with weights.
        latencies: at several batch sizes.
        histories: name of the stage and its training curve.
        equality: largest difference between outputs of the masked and the reduced network, before
            fine-tuning, relative to the size of the outputs.
        verdict: what that equality was measured against.
        refused: why something that could have gone was kept.
        environment: the machine.
        asked: for a budget, what was asked and what was measured.
    """

    title: str
    command: str
    seed: int
    score: str
    before: Snapshot
    after: Snapshot
    layers: tuple[Layer, ...]
    latencies: tuple[Latency, ...]
    histories: tuple[tuple[str, History], ...]
    equality: float
    verdict: str
    refused: tuple[str, ...]
    environment: Environment
    asked: str = ""


def snapshot(score: float, cost: Cost) -> Snapshot:
    """A network's score and totals."""
    return Snapshot(score, cost.parameters, _known(cost.macs), cost.bytes)


def layers(before: nn.Module, after: nn.Module, costs: tuple[Cost, Cost]) -> tuple[Layer, ...]:
    """Every layer that has a weight of two or more dimensions."""
    reduced = {row.layer: row for row in costs[1].rows}
    modules, smaller = (dict(model.named_modules(remove_duplicate=False)) for model in (before, after))
    return tuple(
        Layer(
            row.layer or row.kind,  # the network itself has no path
            (width, _width(smaller[row.layer])),
            (row.parameters, reduced[row.layer].parameters),
            (_known(row.macs), _known(reduced[row.layer].macs)),
        )
        for row in costs[0].rows
        if row.layer in modules and (width := _width(modules[row.layer]))
    )


_WIDTHS = ("out_channels", "out_features", "hidden_size", "embedding_dim")


def _width(module: nn.Module) -> int:
    """What the module says its number of outputs is, else the rows of its first weight; 0 without weights."""
    rows = [p.shape[0] for p in module.parameters(recurse=False) if p.dim() > 1]
    told = (getattr(module, name, None) for name in _WIDTHS)
    return next((width for width in told if isinstance(width, int)), rows[0]) if rows else 0


def _known(macs: float) -> float | None:
    return None if math.isnan(macs) else macs
