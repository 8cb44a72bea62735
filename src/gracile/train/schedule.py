"""How a rate changes during a run: pure functions of progress.

A schedule is ``factor(progress)`` with progress in [0, 1). It multiplies learning rates (in
:func:`gracile.train.fit`) or strengths (in :class:`gracile.train.Structure`). Having no state, it
resumes exactly and needs no place in a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from gracile.errors import UsageError

Schedule = Callable[[float], float]


def constant() -> Schedule:
    """Always 1.

    >>> constant()(0.7)
    1.0
    """
    return lambda progress: 1.0


def cosine(warmup: float = 0.0, floor: float = 0.0) -> Schedule:
    """Linear from 0 to 1 while progress < warmup, then half a cosine from 1 to ``floor``.

    With t = (progress - warmup) / (1 - warmup): floor + (1 - floor) (1 + cos(pi t)) / 2.

    Args:
        warmup: share of the run, in [0, 1).
        floor: factor at the end of the run.

    >>> rate = cosine(warmup=0.2)
    >>> rate(0.1), rate(0.2), round(rate(0.6), 3)
    (0.5, 1.0, 0.5)
    """
    _within("cosine schedule", "warmup", warmup)

    def factor(progress: float) -> float:
        if progress < warmup:
            return progress / warmup
        t = (progress - warmup) / (1.0 - warmup)
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * t))

    return factor


def step(at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """Multiply by ``factor`` each time progress reaches a value of ``at``.

    Args:
        at: shares of the run, each in [0, 1).
        factor: what one step multiplies the rate by.

    >>> rate = step(at=(0.5, 0.75))
    >>> rate(0.49), rate(0.5), round(rate(0.9), 4)
    (1.0, 0.1, 0.01)
    """
    for share in at:
        _within("step schedule", "at", share)
    return lambda progress: float(factor ** sum(progress >= share for share in at))


def warmup(over: float) -> Schedule:
    """Linear from 0 to 1 while progress < ``over``, then 1; for strengths that should grow in.

    >>> rate = warmup(0.5)
    >>> rate(0.0), rate(0.25), rate(0.8)
    (0.0, 0.5, 1.0)
    """
    _within("warm-up schedule", "over", over)
    return lambda progress: progress / over if progress < over else 1.0


def _within(operation: str, name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UsageError(operation, got=f"{name}={value}", expected="a share of the run in [0, 1)")
