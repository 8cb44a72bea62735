"""What :class:`gracile.train.Adapt` can ask of two domains: small descriptions, any of them together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import final

from torch import Tensor

from gracile.algebra import coral, mean_entropy, mmd
from gracile.errors import ShapeError, UsageError
from gracile.train import ranks
from gracile.train.critic import Critic
from gracile.train.schedule import Schedule, constant, logistic_ramp


@final
@dataclass(frozen=True)
class Seen:
    """What one pass over both domains gave.

    Args:
        source: features of this rank's source samples, shape (n, d).
        target: features of this rank's target samples, shape (n, d).
        output: what the model returned for the target samples.
        ranks: processes that train together.
    """

    source: Tensor
    target: Tensor
    output: object
    ranks: int = 1

    @cached_property
    def whole(self) -> tuple[Tensor, Tensor]:
        """Features of the samples of all ranks, of which this rank's are differentiable."""
        return ranks.beside(self.source, self.ranks), ranks.beside(self.target, self.ranks)


@dataclass(frozen=True)
class Alignment(ABC):
    """One wish about the two domains, with a strength.

    Args:
        strength: in units of the loss; 0 or more.
        schedule: multiplies the strength as a function of progress.

    Raises:
        UsageError: a strength that is negative or not finite.
    """

    strength: float
    schedule: Schedule = field(default_factory=constant)

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):  # also true for NaN
            raise UsageError(
                type(self).__name__, got=f"strength={self.strength}", expected="a finite number, 0 or more"
            )

    def now(self, progress: float) -> float:
        """The strength at this point of the run."""
        return self.strength * self.schedule(progress) if self.strength else 0.0

    def critic(self, features: int, seed: int, device: str) -> Critic | None:
        """The network that it trains beside the model, if it needs one."""
        return None

    @abstractmethod
    def loss(self, seen: Seen, strength: float, critic: Critic | None) -> Tensor:
        """What is added to the loss: a 0-d tensor whose gradient is averaged over ranks."""


@final
@dataclass(frozen=True)
class MMD(Alignment):
    """strength * MMD^2 of the features of all ranks' samples (:func:`gracile.algebra.mmd`).

    >>> MMD(0.5).now(0.3)
    0.5
    """

    def loss(self, seen: Seen, strength: float, critic: Critic | None) -> Tensor:
        return strength * seen.ranks * mmd(*seen.whole)


@final
@dataclass(frozen=True)
class Coral(Alignment):
    """strength * CORAL of the features of all ranks' samples (:func:`gracile.algebra.coral`)."""

    def loss(self, seen: Seen, strength: float, critic: Critic | None) -> Tensor:
        return strength * seen.ranks * coral(*seen.whole)


@final
@dataclass(frozen=True)
class Entropy(Alignment):
    """strength * mean entropy of the predictions on target samples (:func:`gracile.algebra.mean_entropy`).

    The model must return logits of shape (n, classes). Alone it can decide everything for one class; beside
    it something should hold the domains together.
    """

    def loss(self, seen: Seen, strength: float, critic: Critic | None) -> Tensor:
        if not isinstance(seen.output, Tensor):
            raise ShapeError(
                "Entropy", got=f"a {type(seen.output).__name__} from the model", expected="logits, one tensor"
            )
        return strength * mean_entropy(seen.output)


@final
@dataclass(frozen=True)
class Adversarial(Alignment):
    """A critic learns to tell the domains apart, and the features to deceive it, by a reversed gradient.

    Strength and schedule multiply the reversed gradient that reaches the features. The critic itself always
    learns at its own ``rate``.

    Args:
        strength, schedule: as in :class:`Alignment`; the schedule is ``logistic_ramp()`` by default.
        hidden: neurons of the critic's hidden layer.
        rate: learning rate of the critic.

    Raises:
        UsageError: a number out of its range.

    Source: Ganin et al. (2016).

    >>> Adversarial(1.0).now(0.0), round(Adversarial(1.0).now(0.5), 2)
    (0.0, 0.99)
    """

    schedule: Schedule = field(default_factory=logistic_ramp)
    hidden: int = 64
    rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isinstance(self.hidden, int) and self.hidden >= 1 and 0 < self.rate < float("inf")):
            raise UsageError(
                "Adversarial",
                got=f"hidden={self.hidden!r}, rate={self.rate}",
                expected="1 or more neurons and a positive rate",
            )

    def critic(self, features: int, seed: int, device: str) -> Critic | None:
        return Critic(features, self.hidden, self.rate, seed, device)

    def loss(self, seen: Seen, strength: float, critic: Critic | None) -> Tensor:
        assert critic is not None  # made by the method, from `critic` above
        return critic.loss(seen.source, seen.target, strength)
