"""Formats that round at random, so that what is rounded is right in the mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gracile.algebra.format import Format
from gracile.algebra.philox import Random, philox


@final
@dataclass(frozen=True)
class Stochastic(Format):
    """A format whose numbers are rounded up with the probability of the distance from the lower one.

    Args:
        form: whose scale and levels are used.
        random: the stream; the same one rounds the same numbers alike.
    """

    form: Format
    random: Random

    @property
    def bits(self) -> float:  # type: ignore[override]
        return self.form.bits

    @property
    def levels(self) -> int:
        return self.form.levels

    def scale(self, rows: Tensor) -> Tensor:
        return self.form.scale(rows)

    def _whole(self, x: Tensor) -> Tensor:
        index = torch.arange(x.numel(), device=x.device)
        u = (philox(index, self.random)[0] + 0.5) * 2.0**-32
        return (x + u.view_as(x)).floor()


def stochastic(form: Format, random: Random) -> Format:
    """``form`` with random rounding: E[round(x)] = x for all x within its range.

    Args:
        form: e.g. :class:`gracile.algebra.Ternary`, as TernGrad (C4) has it.
        random: seed, layer, step and lane; the next step takes another one.

    >>> from gracile.algebra.format import Uniform
    >>> tern = stochastic(Uniform(2), Random(seed=1))
    >>> x = torch.full((10000,), 0.25); x[0] = 1.0
    >>> tern.round(x).unique(), round(float(tern.round(x).mean()), 2)
    (tensor([0., 1.]), 0.25)
    """
    return Stochastic(form, random)
