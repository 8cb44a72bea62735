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
        name: dotted path.
        width: outputs of its weight.
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


def snapshot(score: float, cost: Cost) -> Snapshot:
    """A network's score and totals."""
    return Snapshot(score, cost.parameters, _known(cost.macs), cost.bytes)


def layers(before: nn.Module, after: nn.Module, costs: tuple[Cost, Cost]) -> tuple[Layer, ...]:
    """Every layer that has a weight of two or more dimensions."""
    dense, reduced = ({row.layer: row for row in cost.rows} for cost in costs)
    smaller = dict(after.named_parameters())
    found = []
    for parameter, weight in before.named_parameters():
        name, _, kind = parameter.rpartition(".")
        if weight.dim() < 2 or kind not in ("weight", "weight_ih_l0", "weight_ih_l1"):
            continue
        a, b = dense[name], reduced[name]
        found.append(
            Layer(
                name,
                (weight.shape[0], smaller[parameter].shape[0]),
                (a.parameters, b.parameters),
                (_known(a.macs), _known(b.macs)),
            )
        )
    return tuple(found)


def _known(macs: float) -> float | None:
    return None if math.isnan(macs) else macs
