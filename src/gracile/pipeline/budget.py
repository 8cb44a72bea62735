"""A budget: how much of a network's parameters, multiply-accumulates or measured latency may be left."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from gracile.cost import macs_left
from gracile.errors import UsageError
from gracile.graph import watch
from gracile.reduce import (
    Importance,
    Limits,
    activation,
    batch_norm_scale,
    magnitude,
    parameters_left,
    taylor,
    within,
)
from gracile.reduce.budget import CostOf
from gracile.train import Splits, Task

Kind = Literal["parameters", "macs", "latency"]
Ranking = Literal["magnitude", "batch-norm", "taylor", "activation"]

COSTS: dict[str, CostOf] = {"parameters": parameters_left, "macs": macs_left}
_SAMPLES = 256  # training samples that Taylor and activations are averaged over
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6}


@final
@dataclass(frozen=True)
class Budget:
    """What is asked for, and what the choice may not do.

    Args:
        of: what is budgeted.
        left: share of the dense network's that may be left, 0 < left < 1; or
        latency_s: seconds that one pass may take.
        importance: what units are ranked by.
        protect: layers that stay as they are, names or patterns.
        rounds: in how many steps the network shrinks, with fine-tuning after each; the shares fall
            geometrically, left^(1/rounds) each.
        batch: samples of one pass whose latency is meant.
        threads: that torch may use in it.
        limit_s: about how long timing the widths may take.

    Raises:
        UsageError: a number makes no sense.
    """

    of: Kind
    left: float | None = None
    latency_s: float | None = None
    importance: Ranking = "magnitude"
    protect: tuple[str, ...] = ()
    rounds: int = 1
    batch: int = 1
    threads: int = 1
    limit_s: float = 60.0

    def __post_init__(self) -> None:
        asked = self.left if self.latency_s is None else self.latency_s
        one = (self.left is None) != (self.latency_s is None)
        fits = self.of == "latency" or self.latency_s is None
        small = self.left is None or 0 < self.left < 1
        counts = min(self.rounds, self.batch, self.threads) >= 1
        if not (one and fits and small and counts and 0 < (asked or 0) < float("inf") and self.limit_s > 0):
            raise UsageError(
                "setting a budget",
                got=str(self),
                expected="a share between 0 and 1 (or, of latency, seconds), and counts from 1 on",
            )

    @property
    def limits(self) -> Limits:
        """For the functions that choose."""
        return Limits(protect=self.protect)

    def __str__(self) -> str:
        asked = f"{self.left:.1%}" if self.left is not None else f"{(self.latency_s or 0) * 1e3:.3g} ms"
        return f"{asked} of {self.of}, by {self.importance}, in {self.rounds} round{'s' * (self.rounds > 1)}"


def read_latency(text: str) -> tuple[float | None, float | None]:
    """Seconds or a share, whichever ``text`` states.

    >>> read_latency("5ms"), read_latency("60%"), read_latency("0.6")
    ((0.005, None), (None, 0.6), (None, 0.6))
    """
    found = re.fullmatch(r"\s*([0-9.]+(?:e-?[0-9]+)?)\s*(s|ms|us|µs|%)?\s*", text)
    try:
        number, unit = (float(found[1]), found[2]) if found else (float("nan"), None)
    except ValueError:
        number, unit = float("nan"), None
    if not number > 0:
        raise UsageError(
            "reading a latency", got=f"'{text}'", expected="a time like 5ms or 800us, or a share like 60%"
        )
    if unit in _SECONDS:
        return number * _SECONDS[unit], None
    return None, number / 100 if unit == "%" else number


def ranking(name: Ranking, splits: Splits, task: Task) -> Importance:
    """The importance of that name; what needs data takes the first training samples."""
    if name == "magnitude":
        return magnitude
    if name == "batch-norm":
        return batch_norm_scale
    batches = _batches(splits)
    if name == "activation":
        return activation([inputs for inputs, _ in batches])
    return taylor(lambda model, batch: task.loss(model(batch[0]), batch[1]), batches)


def choose(budget: Budget, share: float, importance: Importance) -> Callable[[Any, nn.Module], list[int]]:
    """A choice for :func:`gracile.reduce.remove` that leaves ``share`` of parameters or MACs."""
    cost = COSTS[budget.of]
    return lambda graph, model: within(
        graph, model, share, cost=cost, importance=importance, limits=budget.limits
    )


def spent(budget: Budget, model: nn.Module, example: Tensor) -> float:
    """What ``model`` has of what is budgeted: parameters or MACs."""
    graph = watch(model, example)
    return COSTS[budget.of](graph, model)(np.zeros(len(graph.units), bool))


def _batches(splits: Splits) -> list[tuple[Tensor, Tensor]]:
    count = min(_SAMPLES, len(splits.train))
    pairs = [splits.train[i] for i in range(count)]
    inputs, targets = (torch.stack([torch.as_tensor(pair[side]) for pair in pairs]) for side in (0, 1))
    return list(zip(inputs.split(64), targets.split(64), strict=True))
