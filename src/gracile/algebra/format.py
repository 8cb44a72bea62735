"""A finite set of numbers that weights, gradients or conductances are rounded to."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gracile.algebra.grouping import Groups
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
    """Multiples of a scale, from -levels to levels times; ``bits`` tells how many one of them takes."""

    bits: float

    @property
    @abstractmethod
    def levels(self) -> int:
        """The largest code; zero and both signs are always there."""

    @abstractmethod
    def scale(self, rows: Tensor) -> Tensor:
        """The scale of every row.

        Args:
            rows: absolute values in double precision, shape (rows, numbers); rows may end in zeros.
        """

    def encode(self, x: Tensor, along: int | None = None) -> Codes:
        """The codes nearest to ``x``.

        Args:
            x: finite numbers.
            along: dimension whose every index has a scale of its own, e.g. 0 for filters; one scale for
                all by default.

        Raises:
            ShapeError: ``x`` is no finite floating-point numbers.
        """
        _require_finite(x)
        wide = x.detach().double()  # the smallest number of single precision, divided, is not zero
        if along is None or not x.dim():
            scale = self.scale(wide.abs().reshape(1, -1)).reshape([1] * x.dim())
        else:
            rows = wide.abs().movedim(along, 0).reshape(x.shape[along], x.numel() // max(x.shape[along], 1))
            shape = [size if dim == along % x.dim() else 1 for dim, size in enumerate(x.shape)]
            scale = self.scale(rows).reshape(shape)
        return Codes(self._codes(wide, scale), scale.to(x.dtype))

    def decode(self, codes: Codes) -> Tensor:
        """The numbers that codes stand for."""
        return codes.values * codes.scale

    def round(self, x: Tensor, along: int | None = None) -> Tensor:
        """``decode(encode(x))``: the number of the format nearest to each of ``x``."""
        return self.decode(self.encode(x, along)).to(x.dtype)

    @torch.no_grad()
    def round_(self, groups: Groups) -> None:
        """Round the members of every group, in place, with one scale for each group.

        Args:
            groups: disjoint, of finite numbers.

        Raises:
            ShapeError: numbers that are not finite; groups that share numbers, which can have one scale only.
        """
        if not groups.grouping.disjoint:
            raise ShapeError("rounding groups", got="groups that share numbers", expected="disjoint ones")
        for part in groups.slices:
            _require_finite(part.tensor)
        scales = self.scale(groups.matrix.detach().double().abs())
        for part, scale in groups.spread(scales, fill=0.0):
            wide = part.tensor.double()
            rounded = self._codes(wide, scale) * scale
            # a scale of 0 is that of slices in no group, and of groups of zeros
            part.tensor.copy_(torch.where(scale > 0, rounded, wide))

    def _codes(self, x: Tensor, scale: Tensor) -> Tensor:
        codes = self._whole(x / torch.where(scale > 0, scale, 1.0)) * (scale > 0)
        return codes.clamp_(-self.levels, self.levels).to(torch.int16 if self.levels > 127 else torch.int8)

    def _whole(self, x: Tensor) -> Tensor:
        return x.round()


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

    @property
    def levels(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    def scale(self, rows: Tensor) -> Tensor:
        return _largest(rows) / self.levels


@final
@dataclass(frozen=True)
class Ternary(Format):
    """Three numbers, {-s, 0, s}, with s = min(clip * sqrt(mean(x^2)), max|x|).

    Args:
        clip: in root mean squares; ``None`` for max|x|. Larger numbers become s.

    Raises:
        UsageError: a clip that is not positive.

    Source: C4 (TernGrad), whose gradients are rounded at random: see :func:`gracile.algebra.stochastic`.

    >>> Ternary().round(torch.tensor([0.9, -0.4, 0.0, 0.5]))
    tensor([0.9000, 0.0000, 0.0000, 0.9000])
    """

    clip: float | None = None
    bits = 2

    def __post_init__(self) -> None:
        if self.clip is not None and not self.clip > 0:
            raise UsageError(
                "ternary format", got=f"clip={self.clip!r}", expected="a positive number or None"
            )

    @property
    def levels(self) -> int:
        return 1

    def scale(self, rows: Tensor) -> Tensor:
        largest = _largest(rows)
        if self.clip is None or not rows.shape[1]:
            return largest
        return torch.minimum(self.clip * rows.square().mean(1).sqrt(), largest)


@final
@dataclass(frozen=True)
class OneLevel(Format):
    """Three numbers, {-q, 0, q}, with the q whose numbers lie nearest to x: min_q ||x - Q(x)||.

    With the k largest |x| rounded to q and the others to zero, the error is ||x||^2 - S_k^2 / k for
    q = S_k / k, S_k being their sum; so the best k is found by sorting, and no grid of q has to be tried.

    Source: C21 (one-level precision synapses), distribution-aware quantization.

    >>> OneLevel().round(torch.tensor([1.0, -1.2, 0.1, 0.0]))
    tensor([ 1.1000, -1.1000,  0.0000,  0.0000])
    """

    bits = 2

    @property
    def levels(self) -> int:
        return 1

    def scale(self, rows: Tensor) -> Tensor:
        if not rows.shape[1]:
            return _largest(rows)
        sums = rows.sort(1, descending=True).values.cumsum(1)
        counts = torch.arange(1, rows.shape[1] + 1, device=rows.device, dtype=rows.dtype)
        best = (sums.square() / counts).argmax(1, keepdim=True)
        return (sums / counts).gather(1, best)[:, 0]


def _largest(rows: Tensor) -> Tensor:
    return rows.amax(1) if rows.shape[1] else rows.new_zeros(len(rows))


def _require_finite(x: Tensor) -> None:
    if not x.is_floating_point() or not bool(x.isfinite().all()):
        raise ShapeError(
            "encoding",
            got=f"{x.dtype} of shape {tuple(x.shape)}",
            expected="finite floating-point numbers",
        )
