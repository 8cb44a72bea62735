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


def cubic(over: float = 1.0) -> Schedule:
    """From 0 to 1 while progress < ``over``, fast at first: 1 - (1 - progress / over)^3; then 1.

    For shares that should be gone: early in training much can go at once, late only little.

    Source: the sparsity ramp of Zhu and Gupta (2017).

    >>> ramp = cubic(0.5)
    >>> ramp(0.0), ramp(0.25), ramp(0.8)
    (0.0, 0.875, 1.0)
    """
    if not 0.0 < over <= 1.0:
        raise UsageError("cubic schedule", got=f"over={over}", expected="a share of the run in (0, 1]")
    return lambda progress: 1.0 - (1.0 - min(1.0, progress / over)) ** 3


def until(share: float) -> Schedule:
    """1 while progress < ``share``, then 0; for what should stop before the run ends.

    >>> force = until(0.5)
    >>> force(0.4), force(0.5)
    (1.0, 0.0)
    """
    _within("schedule that stops", "share", share)
    return lambda progress: 1.0 if progress < share else 0.0


def tanh_ramp(steepness: float = 10.0) -> Schedule:
    """A smooth step from 0 to 1 in the middle of the run: (tanh(steepness (progress - 1/2)) + 1) / 2.

    For noise that should come once the loss has fallen (T1 (SmoothOut), the authors' ``tanh``).

    >>> noise = tanh_ramp()
    >>> round(noise(0.0), 4), noise(0.5), round(noise(0.6), 4)
    (0.0, 0.5, 0.8808)
    """
    if not 0.0 < steepness < math.inf:
        raise UsageError("tanh schedule", got=f"steepness={steepness}", expected="a positive number")
    return lambda progress: 0.5 * (math.tanh(steepness * (progress - 0.5)) + 1.0)


def logistic_ramp(steepness: float = 10.0) -> Schedule:
    """From 0 to 1, fast at first: 2 / (1 + exp(-steepness * progress)) - 1.

    For an adversary that must have learned something before it is listened to.

    Source: Ganin et al. (2016), section 5.2.2, with steepness 10.

    >>> ramp = logistic_ramp()
    >>> ramp(0.0), round(ramp(0.1), 4), round(ramp(0.5), 4)
    (0.0, 0.4621, 0.9866)
    """
    if not 0.0 < steepness < math.inf:
        raise UsageError("logistic schedule", got=f"steepness={steepness}", expected="a positive number")
    return lambda progress: 2.0 / (1.0 + math.exp(-steepness * progress)) - 1.0


def sqrt_decay(steps: int, power: float = 0.55) -> Schedule:
    """Falls from 1 as sqrt(1 / (1 + t)^power), with t the optimizer steps done (T1 (SmoothOut), ``anneal``).

    Args:
        steps: of the whole run.
        power: how fast.

    >>> noise = sqrt_decay(steps=100)
    >>> noise(0.0), round(noise(0.15), 4), round(noise(0.99), 4)
    (1.0, 0.4665, 0.2818)
    """
    if steps < 1 or not 0.0 <= power < math.inf:
        raise UsageError(
            "decaying schedule", got=f"steps={steps}, power={power}", expected="1 or more steps, a power >= 0"
        )
    return lambda progress: float((1.0 + progress * steps) ** (-0.5 * power))


def _within(operation: str, name: str, value: float) -> None:
    if not 0.0 <= value < 1.0:
        raise UsageError(operation, got=f"{name}={value}", expected="a share of the run in [0, 1)")
