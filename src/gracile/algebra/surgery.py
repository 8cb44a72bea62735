"""Which single weights live: rules for learning element-wise sparsity (C23 (direct sparse convolutions)).

A :class:`Rule` looks at the weights, at their gradients and at which of them lived so far, and says which
live now. What is done with the others is not its business: they may be zeroed for good, or hidden while a
full copy of them goes on learning, so that they can come back (dynamic network surgery).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gracile.errors import UsageError


class Rule(ABC):
    """Decides which weights live."""

    @abstractmethod
    def alive(self, weights: Tensor, gradients: Tensor | None, before: Tensor) -> Tensor:
        """Truth values in the shape of ``weights``.

        Args:
            weights: their values, of any shape.
            gradients: of the loss, penalties included; ``None`` where there are none, which counts as 0.
            before: which lived before, truth values.
        """


@final
@dataclass(frozen=True)
class Threshold(Rule):
    """|w| > threshold lives.

    Args:
        threshold: 0 or more.

    >>> Threshold(0.1).alive(torch.tensor([0.3, -0.1]), None, torch.tensor([True, True]))
    tensor([ True, False])
    """

    threshold: float

    def __post_init__(self) -> None:
        _require("Threshold", "threshold", self.threshold)

    def alive(self, weights: Tensor, gradients: Tensor | None, before: Tensor) -> Tensor:
        return ~(weights.abs() <= self.threshold)  # what is not a number lives, so that it is seen


@final
@dataclass(frozen=True)
class GradientThreshold(Rule):
    """|w| > th(g) lives, with th(g) = 1 / (|g| / th0 + 1 / (kappa th0)).

    A weight that the loss does not care about (g = 0) must exceed kappa th0; one that it moves can be small.
    The gradient counts the regularizer's.

    Args:
        th0: scale of the threshold, positive.
        kappa: how much larger the threshold is where there is no gradient, positive.

    Source: the authors' solver for C23 (SkimCaffe), with these defaults: th(0) = 1e-3, th(1) = 9.1e-5.

    >>> GradientThreshold().threshold(torch.tensor([0.0, 1.0]))
    tensor([1.0000e-03, 9.0909e-05])
    """

    th0: float = 1e-4
    kappa: float = 10.0

    def __post_init__(self) -> None:
        for name, value in (("th0", self.th0), ("kappa", self.kappa)):
            if not 0 < value < float("inf"):
                raise UsageError("GradientThreshold", got=f"{name}={value}", expected="a positive number")

    def threshold(self, gradients: Tensor) -> Tensor:
        """th(g), for gradients of any shape."""
        return 1.0 / (gradients.abs() / self.th0 + 1.0 / (self.kappa * self.th0))

    def alive(self, weights: Tensor, gradients: Tensor | None, before: Tensor) -> Tensor:
        limits = self.threshold(torch.zeros_like(weights) if gradients is None else gradients)
        return ~(weights.abs() <= limits)


@final
@dataclass(frozen=True)
class Hysteresis(Rule):
    """|w| < lower dies, |w| >= upper comes back, and in between nothing changes.

    Args:
        lower: 0 or more.
        upper: at least ``lower``.

    Source: dynamic network surgery (Guo, Yao and Chen 2016), which C23 guides as GDNS.

    >>> before = torch.tensor([True, True, False, False])
    >>> Hysteresis(0.1, 0.2).alive(torch.tensor([0.05, 0.15, 0.15, 0.25]), None, before)
    tensor([False,  True, False,  True])
    """

    lower: float
    upper: float

    def __post_init__(self) -> None:
        _require("Hysteresis", "lower", self.lower)
        if not self.upper >= self.lower:
            raise UsageError("Hysteresis", got=f"upper={self.upper}", expected=f"lower={self.lower} or more")

    def alive(self, weights: Tensor, gradients: Tensor | None, before: Tensor) -> Tensor:
        size = weights.abs()
        return torch.where(before, ~(size < self.lower), ~(size < self.upper))


@torch.no_grad()
def prune_(weights: Tensor, gradients: Tensor | None, rule: Rule) -> None:
    """Set the weights that ``rule`` lets die to zero, in place; their values are forgotten.

    They can grow again from zero where gradients carry them over the threshold in one step.

    Args:
        weights, gradients: of one tensor, e.g. a parameter and its ``grad``.
        rule: sees weights that are not zero as alive.

    >>> w = torch.tensor([1.0, 5e-4, 5e-4]); prune_(w, torch.tensor([0.0, 0.0, 1.0]), GradientThreshold()); w
    tensor([1.0000e+00, 0.0000e+00, 5.0000e-04])
    """
    weights.masked_fill_(~rule.alive(weights, gradients, weights != 0), 0.0)


def _require(rule: str, name: str, value: float) -> None:
    if not value >= 0:  # also true for NaN
        raise UsageError(rule, got=f"{name}={value}", expected="0 or more")
