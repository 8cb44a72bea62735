"""Filters that attract each other: a force that turns them towards a common direction.

With W_i the filters (the rows of the lowered matrix) and w_i = W_i / ||W_i|| the force on filter i is::

    dW_i = ||W_i|| * sum_j (f_ij - (f_ij . w_i) w_i)      l2: f_ij = w_j - w_i
                                                          l1: f_ij = (w_j - w_i) / ||w_j - w_i||

It is tangential: a filter turns and keeps its length. Turned filters span fewer dimensions, so that the layer
can be factorized with a lower rank. It is not the gradient of a penalty: that would divide by ||W_i||
where the authors multiply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from gracile.algebra.grouping import Grouping, Groups
from gracile.errors import ShapeError, UsageError

SHORT = 1e-4  # filters of this length or less neither attract nor are attracted
CLOSE = 1e-4  # l1: pairs that are this close do not attract each other
_NO_FORCE = 1e-8  # adaptive: a layer whose force is shorter is left alone


@final
@dataclass(frozen=True)
class Attraction:
    """``strength`` times the force between the filters of ``grouping``.

    Args:
        grouping: the filters, one for each group, e.g. ``filters("conv2.weight")``.
        strength: lambda; the gradient gets -strength * dW, so that descent attracts.
        kind: ``l2`` grows with the distance of a pair and costs one pass over the weights; ``l1`` is the
            same for every pair and costs two products with the matrix of all pairs.
        pairs: ``mean`` divides the sum over j by the number of filters (of a bank), so that a strength means
            the same for every width; ``sum`` is what the authors do: their strength is ours / that number.
        scale: ``adaptive`` makes the force of each grouping strength times as long as the gradient that is
            already there, whatever the number of filters.
        banks: filters attract each other only within each of this many equal runs. For a grouped convolution
            the number of its groups: their filters see different channels and can share no basis.

    Raises:
        UsageError: an unknown word, a strength that is negative or not finite, no bank.
    """

    grouping: Grouping
    strength: float = 1.0
    kind: Literal["l2", "l1"] = "l2"
    pairs: Literal["mean", "sum"] = "mean"
    scale: Literal["fixed", "adaptive"] = "fixed"
    banks: int = 1

    def __post_init__(self) -> None:
        words = {"kind": ("l2", "l1"), "pairs": ("mean", "sum"), "scale": ("fixed", "adaptive")}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise UsageError(
                    "attraction",
                    got=f"{name}={getattr(self, name)!r}",
                    expected=f"one of {', '.join(allowed)}",
                )
        if not 0 <= self.strength < float("inf"):  # also true for NaN
            raise UsageError(
                "attraction", got=f"strength={self.strength}", expected="a finite number, 0 or more"
            )
        if self.banks < 1:
            raise UsageError("attraction", got=f"banks={self.banks}", expected="1 or more")


@torch.no_grad()
def add_force_(attractions: Iterable[Attraction], tensors: Mapping[str, Tensor]) -> None:
    """Add -strength * dW to the gradient of every attraction, without building a graph.

    Call it after the backward pass and before the optimizer's step, as :func:`gracile.algebra.add_gradient_`.
    Tensors without a gradient get one. With N filters of D numbers ``l2`` takes O(N D) steps by the closed
    form sum_j f_ij = sum_j w_j - N w_i; ``l1`` takes O(N^2 D), with distances from the Gram matrix,
    D_ij = sqrt(2 - 2 w_i . w_j).

    Args:
        attractions: which filters, and how strongly.
        tensors: tensors by name, e.g. ``dict(model.named_parameters())``.

    Raises:
        ShapeError: a tensor is missing, or its filters do not divide into the banks.
        PatternError: a pattern does not fit its tensor.

    Source: C5 (force regularization), the authors' ``Degradation`` (l2) and ``Constant`` (l1), and
    ``adaptive``. In 32 bits l1 leaves out pairs closer than 1.4e-3 instead of 1e-4: the Gram matrix cannot
    tell nearer ones apart.

    >>> from gracile.algebra import filters
    >>> w = torch.tensor([[2.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> add_force_([Attraction(filters("w"), pairs="sum")], {"w": w}); w.grad
    tensor([[ 0., -2.],
            [-1.,  0.]])
    """
    for attraction in attractions:
        grouping, strength = attraction.grouping, attraction.strength
        if not (strength and grouping.views):
            continue
        filters = _banks(grouping.of(tensors), attraction.banks)
        gradients = {view.tensor: _gradient(tensors[view.tensor]) for view in grouping.views}
        target = grouping.of(gradients)
        if attraction.scale == "fixed" and (rows := _in_place(target, filters)) is not None:
            _add_rows_(rows, filters, attraction, strength)
            continue
        force = torch.zeros_like(filters)
        if attraction.scale == "fixed":
            _add_rows_(force, filters, attraction, strength)
        else:
            _add_rows_(force, filters, attraction, 1.0)
            force *= _ratio(strength * torch.linalg.vector_norm(target.matrix), force)
        _scatter_(grouping, gradients, force.flatten(0, 1))


@torch.no_grad()
def mean_cosine(groups: Groups, banks: int = 1) -> Tensor:
    """How much the filters point the same way: the mean of w_i . w_j over all pairs, a 0-d tensor.

    (||sum_i w_i||^2 - N) / (N (N - 1)), without looking at the pairs. 1 is a layer of rank 1. Filters of
    length 1e-4 or less are not counted; fewer than two leave 0. Of several banks the highest counts.

    Args:
        groups: the filters.
        banks: see :class:`Attraction`.

    Raises:
        ShapeError: the filters do not divide into the banks.

    >>> from gracile.algebra import filters
    >>> w = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    >>> mean_cosine(filters("w").of({"w": w})).round(decimals=4)
    tensor(0.3333)
    """
    if not groups.slices:
        return torch.zeros(())
    filters = _banks(groups, banks)
    _, inverse = _lengths(filters)
    count = inverse.count_nonzero((1, 2))
    together = torch.linalg.vector_norm((inverse.mT @ filters).squeeze(1), dim=-1).square()
    cosine = (together - count) / (count * (count - 1)).clamp_min(1)
    return torch.where(count > 1, cosine, 0.0).max()


def _add_rows_(target: Tensor, filters: Tensor, attraction: Attraction, strength: float) -> None:
    """target -= strength * dW; both (banks, filters, numbers of a filter).

    What f has along w_i is taken off, so only its part sum_j k_ij w_j counts (k = 1 for l2, 1 / D_ij for l1):
    -dW_i = (W_i . p_i) / ||W_i|| * W_i - ||W_i|| p_i  with  p_i = sum_j k_ij w_j.
    """
    if filters.shape[1] < 2:
        return
    if attraction.pairs == "mean":
        strength /= filters.shape[1]
    lengths, inverse = _lengths(filters)
    if attraction.kind == "l2":
        together = inverse.mT @ filters
        along = (filters @ together.mT).mul_(inverse)
        target.addcmul_(filters, along, value=strength).baddbmm_(lengths, together, alpha=-strength)
        return
    units = filters * inverse
    cosines = units @ units.mT
    pull = _inverse_distances(cosines)
    along = (cosines * pull).sum(-1)
    mixing = pull.mul_(lengths).mul_(inverse.mT)
    mixing.diagonal(dim1=-2, dim2=-1).sub_(along)
    target.baddbmm_(mixing, filters, alpha=-strength)


def _inverse_distances(cosines: Tensor) -> Tensor:
    """1 / sqrt(2 - 2 c) of all pairs; 0 for pairs too close, and of a filter with itself."""
    resolution: float = 4 * torch.finfo(cosines.dtype).eps ** 0.5
    squares = cosines.mul(-2).add_(2).clamp_min_(0)
    squares.diagonal(dim1=-2, dim2=-1).zero_()
    return torch.where(squares > max(CLOSE, resolution) ** 2, squares.rsqrt(), 0.0)


def _lengths(filters: Tensor) -> tuple[Tensor, Tensor]:
    """||W_i|| and 1 / ||W_i||, both (banks, filters, 1) and 0 for short filters."""
    lengths = torch.linalg.vector_norm(filters, dim=-1, keepdim=True)
    lengths = torch.nn.functional.hardshrink(lengths, SHORT)
    return lengths, lengths.reciprocal().masked_fill_(lengths == 0, 0.0)


def _banks(groups: Groups, banks: int) -> Tensor:
    """The filters as (banks, filters, numbers of a filter), in 32 bits at least."""
    if groups.count % banks:
        raise ShapeError(
            f"banks of '{groups.grouping.views[0].tensor}'",
            got=f"{groups.count} filters in {banks} banks",
            expected="a number of filters that the banks divide",
            hint="banks is the number of groups of a grouped convolution",
        )
    matrix = groups.matrix.to(torch.promote_types(groups.matrix.dtype, torch.float32))
    return matrix.view(banks, groups.count // banks, matrix.shape[1])


def _gradient(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    return tensor.grad


def _in_place(target: Groups, filters: Tensor) -> Tensor | None:
    """The gradient seen as (banks, filters, numbers), where that is a view that can be added to."""
    if not target.grouping.plain:
        return None
    given, rows = target.slices[0].tensor, target.matrix
    shared = rows.data_ptr() == given.data_ptr() and rows.dtype == filters.dtype
    return rows.view(filters.shape) if shared else None


def _ratio(wanted: Tensor, force: Tensor) -> Tensor:
    """What brings ``force`` to the length ``wanted``; 0 where there is no force to speak of."""
    length = torch.linalg.vector_norm(force)
    return torch.where(length >= _NO_FORCE, wanted / length.clamp_min(_NO_FORCE), 0.0)


def _scatter_(grouping: Grouping, tensors: Mapping[str, Tensor], rows: Tensor) -> None:
    """Add ``rows``, of the shape of ``groups.matrix``, to the numbers that this matrix is made of."""
    with torch.enable_grad():
        leaves = {name: torch.zeros_like(t).requires_grad_() for name, t in tensors.items()}
        value = (grouping.of(leaves).matrix * rows).sum()
        transposed = torch.autograd.grad(value, list(leaves.values()))
    for tensor, part in zip(tensors.values(), transposed, strict=True):
        tensor.add_(part)
