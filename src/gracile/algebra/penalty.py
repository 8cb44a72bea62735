"""The price of having groups: a scalar of their norms, or of their members.

Penalties add and scale (``Lasso() + 0.5 * Ridge()``) and work on every grouping. One that depends
on the norms alone tells its slope, from which its gradient costs one multiplication of the
weights; one that is proximal can also be stepped exactly, which makes exact zeros.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from gracile.algebra.grouping import Groups
from gracile.errors import UsageError


class Penalty(ABC):
    """A scalar of groups. ``degree`` d declares R(c w) = c^d R(w) for c > 0."""

    degree: ClassVar[int]

    @abstractmethod
    def __call__(self, groups: Groups) -> Tensor:
        """The penalty of ``groups``, a 0-d tensor, differentiable, zero for groups of zeros."""

    def __add__(self, other: Penalty) -> Sum:
        return Sum((self, other))

    def __mul__(self, factor: float) -> Scaled:
        return Scaled(factor, self)

    __rmul__ = __mul__


@final
@dataclass(frozen=True)
class Sum(Penalty):
    """The sum of penalties on the same groups."""

    parts: tuple[Penalty, ...]

    def __call__(self, groups: Groups) -> Tensor:
        return torch.stack([part(groups) for part in self.parts]).sum()


@final
@dataclass(frozen=True)
class Scaled(Penalty):
    """A penalty times a number."""

    factor: float
    penalty: Penalty

    def __call__(self, groups: Groups) -> Tensor:
        return self.factor * self.penalty(groups)


class NormPenalty(Penalty):
    """A penalty that depends on nothing but the groups' norms."""

    @abstractmethod
    def of_norms(self, norms: Tensor) -> Tensor:
        """The penalty as a function of the norms, of any shape."""

    def __call__(self, groups: Groups) -> Tensor:
        return self.of_norms(groups.norms)

    def slope(self, norms: Tensor) -> Tensor | float:
        """dR/dn for every norm n; the gradient at the members of a group is slope * w / n."""
        with torch.enable_grad():
            leaf = norms.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.of_norms(leaf), leaf)
        return slope


class Proximal(NormPenalty):
    """A norm penalty whose proximal step is known in closed form, for disjoint groups."""

    @abstractmethod
    def shrink(self, norms: Tensor, step: float) -> Tensor:
        """The norms after the step: argmin over m >= 0 of (m - n)^2 / 2 + step * r(m)."""


@final
@dataclass(frozen=True)
class Lasso(Proximal):
    """Group Lasso: R = sum_g ||w_g||, without a factor for the group's size (C6 (SSL)).

    Zero groups get the zero subgradient, as in the authors' code.

    >>> from gracile.algebra import filters
    >>> Lasso()(filters("w").of({"w": torch.tensor([[3.0, 4.0], [0.0, 0.0]])}))
    tensor(5.)
    """

    degree: ClassVar[int] = 1

    def of_norms(self, norms: Tensor) -> Tensor:
        return norms.sum()

    def slope(self, norms: Tensor) -> float:
        return 1.0

    def shrink(self, norms: Tensor, step: float) -> Tensor:
        return (norms - step).clamp_min_(0)


@final
@dataclass(frozen=True)
class Trimmed(Proximal):
    """Trimmed group Lasso: the sum of the norms of the smaller groups, R = sum of the m smallest ||w_g||.

    m = round(share * groups). The larger groups pay nothing, so however strong the penalty is, no more than
    the m smallest die: a share is reached without overshooting it. With share 1 it is :class:`Lasso`. Among
    equal norms the groups listed first pay. Its proximal step shrinks the m smallest norms.

    Args:
        share: of the groups that are to go, in [0, 1].

    Raises:
        UsageError: a share outside [0, 1].

    Source: the trimmed Lasso of Bertsimas, Copenhaver and Mazumder (2017), here of groups.

    >>> from gracile.algebra import filters
    >>> w = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    >>> Trimmed(2 / 3)(filters("w").of({"w": w}))
    tensor(3.)
    """

    share: float

    degree: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UsageError("trimmed group Lasso", got=f"share={self.share}", expected="a number in [0, 1]")

    def of_norms(self, norms: Tensor) -> Tensor:
        return (norms * self.slope(norms)).sum()

    @torch.no_grad()
    def slope(self, norms: Tensor) -> Tensor:
        paying = torch.zeros_like(norms).flatten()
        order = norms.flatten().argsort(stable=True)
        paying[order[: round(self.share * norms.numel())]] = 1.0
        return paying.view_as(norms)

    def shrink(self, norms: Tensor, step: float) -> Tensor:
        return (norms - step * self.slope(norms)).clamp_min_(0)


@final
@dataclass(frozen=True)
class Ridge(Proximal):
    """Half the sum of squares: R = 1/2 sum_g ||w_g||^2; its gradient is w, that of weight decay.

    >>> from gracile.algebra import layer
    >>> Ridge()(layer("w").of({"w": torch.tensor([3.0, 4.0])}))
    tensor(12.5000)
    """

    degree: ClassVar[int] = 2

    def of_norms(self, norms: Tensor) -> Tensor:
        return 0.5 * norms.square().sum()

    def slope(self, norms: Tensor) -> Tensor:
        return norms

    def shrink(self, norms: Tensor, step: float) -> Tensor:
        return norms / (1 + step)


@final
@dataclass(frozen=True)
class L1(Penalty):
    """Sum of absolute values: R = sum |w|, whatever the groups.

    For its proximal step (soft thresholding) use ``Lasso()`` on ``elements(...)``: the same number.

    >>> from gracile.algebra import layer
    >>> L1()(layer("w").of({"w": torch.tensor([3.0, -4.0])}))
    tensor(7.)
    """

    degree: ClassVar[int] = 1

    def __call__(self, groups: Groups) -> Tensor:
        return groups.absolute.sum()


@final
@dataclass(frozen=True)
class HoyerSquare(Penalty):
    """Hoyer-Square of the members, summed over groups: sum_g (sum |w|)^2 / sum w^2 (C9 (DeepHoyer)).

    Between 1 and the group's size, whatever the scale: it counts the numbers that matter. Members
    below sum w^2 / sum |w| shrink and those above grow. With ``layer(...)`` it is the element-wise
    regularizer of C9. A group of zeros counts 0, where the formula is undefined.

    >>> from gracile.algebra import layer
    >>> HoyerSquare()(layer("w").of({"w": torch.tensor([2.0, -2.0, 0.0])})).round(decimals=4)
    tensor(2.)
    """

    degree: ClassVar[int] = 0

    def __call__(self, groups: Groups) -> Tensor:
        # The ratio first, the square after: a tiny group does not underflow.
        return _ratio(groups.absolute, groups.norms).square().sum()


@final
@dataclass(frozen=True)
class GroupHoyer(NormPenalty):
    """Group Hoyer-Square: (sum_g ||w_g||)^2 / sum_g ||w_g||^2 (C9 (DeepHoyer)).

    Between 1 and the number of groups: it counts the groups that matter.

    >>> from gracile.algebra import filters
    >>> w = torch.tensor([[3.0, 4.0], [5.0, 0.0], [0.0, 0.0]])
    >>> GroupHoyer()(filters("w").of({"w": w})).round(decimals=4)
    tensor(2.)
    """

    degree: ClassVar[int] = 0

    def of_norms(self, norms: Tensor) -> Tensor:
        return _ratio(norms.sum(), torch.linalg.vector_norm(norms)).square()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator; 0 with gradient 0 where both are 0."""
    alive = denominator > 0
    return torch.where(alive, numerator / torch.where(alive, denominator, 1.0), 0.0)
