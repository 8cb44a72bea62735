"""A finite set of numbers that weights, gradients or conductances are rounded to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gracile.errors import ShapeError, UsageError


@final
@dataclass(frozen=True)
class Codes:
    """Numbers of a format: whole numbers, and what they are multiples of.

    Args:
        values: whole numbers, of the shape of what was encoded.
        scale: broadcasts against ``values``.
    """

    values: Tensor
    scale: Tensor


class Format(ABC):
    """A finite set of numbers, up to a scale; ``bits`` tells how many one of them takes."""

    bits: float

    @abstractmethod
    def encode(self, x: Tensor, along: int | None = None) -> Codes:
        """The codes nearest to ``x``.

        Args:
            x: finite numbers.
            along: dimension whose every index has a scale of its own, e.g. 0 for filters; one scale for
                all by default.
        """

    def decode(self, codes: Codes) -> Tensor:
        """The numbers that codes stand for."""
        return codes.values * codes.scale

    def round(self, x: Tensor, along: int | None = None) -> Tensor:
        """``decode(encode(x))``: the number of the format nearest to each of ``x``."""
        return self.decode(self.encode(x, along)).to(x.dtype)


@final
@dataclass(frozen=True)
class Uniform(Format):
    """Equally spaced numbers around zero: x = s q with q in {-L, ..., L}, L = 2^(bits-1) - 1, s = max|x| / L.

    Zero stays zero, the largest number is exact, and no error exceeds s / 2.

    Args:
        bits: 2 to 16.

    Raises:
        UsageError: other bits.

    >>> Uniform(3).round(torch.tensor([0.9, -0.4, 0.0, 0.5]))
    tensor([ 0.9000, -0.3000,  0.0000,  0.6000])
    """

    bits: int

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 2 <= self.bits <= 16:
            raise UsageError(
                "uniform format", got=f"{self.bits!r} bits", expected="a whole number from 2 to 16"
            )

    def encode(self, x: Tensor, along: int | None = None) -> Codes:
        """The codes nearest to ``x``; raises ShapeError where ``x`` is no finite floating-point numbers."""
        if not x.is_floating_point() or not bool(x.isfinite().all()):
            raise ShapeError(
                "encoding",
                got=f"{x.dtype} of shape {tuple(x.shape)}",
                expected="finite floating-point numbers",
            )
        levels = 2 ** (self.bits - 1) - 1
        others = [dim for dim in range(x.dim()) if along is None or dim != along % x.dim()]
        largest = x.detach().abs().amax(others, keepdim=True) if others and x.numel() else x.detach().abs()
        scale = largest.double() / levels  # in double precision: the smallest float32 divided is not zero
        codes = (x.detach().double() / torch.where(scale > 0, scale, 1.0)).round().clamp_(-levels, levels)
        return Codes(codes.to(torch.int16 if self.bits > 8 else torch.int8), scale.to(x.dtype))
