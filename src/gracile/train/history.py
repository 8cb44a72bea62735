"""What a training run reports back: one frozen record for each epoch, and the final test."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final


@final
@dataclass(frozen=True)
class Metrics:
    """Mean loss and score over a data set."""

    loss: float
    score: float


@final
@dataclass(frozen=True)
class Epoch:
    """One pass over the training data.

    Args:
        number: from 1.
        step: optimizer steps completed by its end.
        train_loss: mean over the epoch's steps, without what methods add.
        validation: measured after the epoch.
        learning_rate: of the first parameter group in the epoch's last step.
        seconds: wall clock, training and validation; not part of equality.
    """

    number: int
    step: int
    train_loss: float
    validation: Metrics
    learning_rate: float
    seconds: float = field(compare=False)


@final
@dataclass(frozen=True)
class History:
    """A finished run.

    Args:
        epochs: in order.
        selected: number of the epoch whose weights the model has now.
        test: measured once, on those weights.
        score: what the score is called.
        stopped: why the run ended.

    >>> first = Epoch(1, 10, 0.5, Metrics(0.6, 0.9), 0.1, seconds=2.0)
    >>> history = History((first,), selected=1, test=Metrics(0.7, 0.8), score="accuracy", stopped="done")
    >>> history.best
    Metrics(loss=0.6, score=0.9)
    """

    epochs: tuple[Epoch, ...]
    selected: int
    test: Metrics
    score: str
    stopped: str

    @property
    def best(self) -> Metrics:
        """Validation metrics of the selected epoch."""
        return self.epochs[self.selected - 1].validation
