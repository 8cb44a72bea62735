"""Which numbers share one fate.

A :class:`View` cuts one tensor into slices along named axes; a :class:`Grouping` unites slice i of
all its views into group i; :class:`Groups` is a grouping applied to actual tensors. Filters,
channels, crossbar tiles and the coupled slices that one forward pass reveals are all this object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from itertools import combinations
from typing import final

import torch
from torch import Tensor

from gracile.algebra.patterns import Layout, flattened, layout
from gracile.errors import PatternError, ShapeError

_SIZE = re.compile(r":\d+")
_ELLIPSIS = re.compile(r"\.\.\.(?!\()")  # not '...(', which makes one dimension with names


@final
@dataclass(frozen=True)
class View:
    """The slices of one tensor.

    Args:
        tensor: name of the tensor.
        pattern: its axes by name (see :mod:`gracile.algebra.patterns`).
        by: the axes that tell slices apart; every combination of their indices is a slice, counted
            in the order of the pattern. ``()`` makes the whole tensor one slice.
        index: group number of each slice, for what no pattern can say; -1 leaves a slice out.
            ``None`` means slice i is in group i.
        narrow: the part of the tensor that is looked at, as (dimension, start, length) like those of
            :func:`torch.narrow`, counted after ``...(`` is flattened and before anything is split. Two views
            make tiles of a dimension that is no multiple of them: all whole ones, and the rest.

    >>> View("conv.weight", "out in kh kw", ("in", "kh", "kw")).tensor
    'conv.weight'
    """

    tensor: str
    pattern: str
    by: tuple[str, ...]
    index: tuple[int, ...] | range | None = None
    narrow: tuple[int, int, int] | None = None

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """The pattern applied to ``shape``; raises PatternError where the two do not fit."""
        found = layout(self.pattern, shape if self.narrow is None else self._narrowed(shape))
        known = {*found.names, *(["..."] if _ELLIPSIS.search(self.pattern) else [])}
        if not known.issuperset(self.by):
            raise PatternError(
                f"view of '{self.tensor}'",
                got=f"by={self.by} with pattern '{self.pattern}'",
                expected=f"names out of {sorted(known)}",
                hint="'by' lists axes of the pattern",
            )
        return found

    def seen(self, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor itself, or a view of the looked-at part of it, in the ``shape`` of the layout.

        Raises:
            ShapeError: it does not lie in memory in the order of the pattern.
        """
        if tensor.shape == shape and self.narrow is None:
            return tensor
        try:
            if self.narrow is None:
                return tensor.view(shape)
            flat = tensor.view(flattened(self.pattern, tuple(tensor.shape)))
            return flat.narrow(*self.narrow).view(shape)
        except RuntimeError as error:
            raise ShapeError(
                f"view of '{self.tensor}' as '{self.pattern}'",
                got=f"shape {tuple(tensor.shape)} with strides {tensor.stride()}",
                expected="dimensions that lie together in memory where the pattern flattens them",
                hint="use model.to(memory_format=torch.contiguous_format)",
            ) from error

    def apart(self, other: View) -> bool:
        """Whether no number of a tensor can be in both views: they look at different parts of it."""
        if self.tensor != other.tensor:
            return True
        if self.narrow is None or other.narrow is None:
            return False
        (dim, start, length), (other_dim, other_start, other_length) = self.narrow, other.narrow
        alike = dim == other_dim and _SIZE.sub("", self.pattern) == _SIZE.sub("", other.pattern)
        return alike and (start + length <= other_start or other_start + other_length <= start)

    def _narrowed(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        dim, start, length = self.narrow or (0, 0, 0)
        flat = flattened(self.pattern, shape)
        if not (0 <= dim < len(flat) and start >= 0 and 1 <= length <= flat[dim] - start):
            raise ShapeError(
                f"view of '{self.tensor}' as '{self.pattern}'",
                got=f"narrow={self.narrow} for shape {flat}",
                expected="a part of one of its dimensions",
            )
        return (*flat[:dim], length, *flat[dim + 1 :])


@final
@dataclass(frozen=True)
class Grouping:
    """Group i is the union of slice i of all views.

    Args:
        views: slices of one or more tensors.
        count: number of groups; needed only when the views' indices do not name the last group.

    >>> both = Grouping((View("a", "out in", ("out",)), View("b", "out", ("out",))))
    >>> groups = both.of({"a": torch.ones(2, 3), "b": torch.ones(2)})
    >>> groups.norms, groups.sizes
    (tensor([2., 2.]), tensor([4, 4]))
    """

    views: tuple[View, ...]
    count: int | None = None

    @property
    def disjoint(self) -> bool:
        """Whether no number can be in two groups: no part of a tensor is viewed twice."""
        of: dict[str, list[View]] = {}
        for view in self.views:
            of.setdefault(view.tensor, []).append(view)
        return all(a.apart(b) for views in of.values() for a, b in combinations(views, 2))

    @property
    def plain(self) -> bool:
        """Whether it is one view whose slice i is group i."""
        return len(self.views) == 1 and self.views[0].index is None

    def of(self, tensors: Mapping[str, Tensor]) -> Groups:
        """The groups of actual tensors.

        Args:
            tensors: tensors by name, e.g. ``dict(model.named_parameters())``.

        Raises:
            ShapeError: a tensor is missing, or views disagree about the number of groups.
            PatternError: a pattern does not fit its tensor.
        """
        for view in self.views:
            if view.tensor not in tensors:
                raise ShapeError(
                    f"grouping of '{view.tensor}'",
                    got=f"tensors named {_some(tensors)}",
                    expected=f"one named '{view.tensor}'",
                    hint="names are those of model.named_parameters()",
                )
        slices = tuple(Slices.of(view, tensors[view.tensor]) for view in self.views)
        return Groups(self, slices)


@final
@dataclass(frozen=True)
class Slices:
    """A view applied to its tensor."""

    view: View
    tensor: Tensor  # the parameter itself, or a view of it with all axes apart
    by: tuple[int, ...]
    rest: tuple[int, ...]

    @staticmethod
    def of(view: View, tensor: Tensor) -> Slices:
        found, by, rest = _axes(view, tuple(tensor.shape))
        return Slices(view, view.seen(tensor, found.shape), by, rest)

    @property
    def count(self) -> int:
        return math.prod(self.tensor.shape[axis] for axis in self.by)

    @property
    def index(self) -> Tensor:
        return _index(self.view.index or (), self.tensor.device)

    def reduce(self, order: float) -> Tensor:
        """The norm of every slice, in a shape that broadcasts against the tensor."""
        if not self.tensor.is_floating_point():
            raise ShapeError(
                f"norms of '{self.view.tensor}'",
                got=f"{self.tensor.dtype}",
                expected="floating-point numbers",
            )
        if not self.rest:
            return self.tensor.abs()
        # The last axes first: they lie together in memory, and what is left to reduce is small.
        last = [axis for axis in self.rest if all(a in self.rest for a in range(axis, self.tensor.dim()))]
        first = [axis for axis in self.rest if axis not in last]
        norms: Tensor = self.tensor
        for axes in filter(None, (last, first)):
            norms = torch.linalg.vector_norm(norms, order, axes, keepdim=True)
        return norms

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """One value of each group, in a shape that broadcasts against the tensor."""
        if self.view.index is not None:
            values = torch.cat([values, values.new_full((1,), fill)])[self.index]
        shape = [size if axis in self.by else 1 for axis, size in enumerate(self.tensor.shape)]
        return values.reshape(shape)

    def matrix(self) -> Tensor:
        return self.tensor.permute(*self.by, *self.rest).reshape(self.count, -1)


@lru_cache(maxsize=4096)
def _axes(view: View, shape: tuple[int, ...]) -> tuple[Layout, tuple[int, ...], tuple[int, ...]]:
    found = view.layout(shape)
    by = found.positions(view.by)
    count = math.prod(found.shape[axis] for axis in by)
    if view.index is not None and len(view.index) != count:
        raise ShapeError(
            f"view of '{view.tensor}'",
            got=f"an index of {len(view.index)} group numbers for shape {shape}",
            expected=f"{count}, one for each slice by {view.by}",
        )
    if view.index and min(view.index) < -1:
        raise ShapeError(
            f"view of '{view.tensor}'",
            got=f"group number {min(view.index)}",
            expected="-1 (no group) or more",
        )
    return found, by, tuple(axis for axis in range(len(found.shape)) if axis not in by)


def _last(index: tuple[int, ...] | range) -> int:
    ends = index if isinstance(index, tuple) or not index else (index[0], index[-1])
    return max(ends, default=-1)


@lru_cache(maxsize=256)
def _index(index: tuple[int, ...] | range, device: torch.device) -> Tensor:
    return torch.tensor(index, dtype=torch.long, device=device)


@final
class Groups:
    """A grouping applied to tensors; everything is computed when asked for.

    ``norms``, ``absolute`` and ``sizes`` have one entry for each group. All are differentiable with
    a finite gradient everywhere: at a group of zeros it is zero, the smallest subgradient.
    """

    def __init__(self, grouping: Grouping, slices: tuple[Slices, ...]) -> None:
        self.grouping = grouping
        self.slices = slices
        counts = {s.count for s in slices if s.view.index is None}
        highest = max((_last(s.view.index) for s in slices if s.view.index is not None), default=-1)
        self.count = grouping.count if grouping.count is not None else max(counts | {highest + 1}, default=0)
        if counts - {self.count} or highest >= self.count:
            found = ", ".join(f"'{s.view.tensor}' {s.count}" for s in slices)
            raise ShapeError(
                "grouping",
                got=f"views with different numbers of slices: {found}",
                expected=f"{self.count} in every view",
                hint="give an index to the views whose slices are numbered otherwise",
            )

    @cached_property
    def broadcastable(self) -> Tensor:
        """The norms, for :meth:`spread`: in the shape that needs no further step where there is one."""
        return self.slices[0].reduce(2) if self.grouping.plain else self.norms

    @cached_property
    def norms(self) -> Tensor:
        """Euclidean norm of every group, shape (groups,)."""
        if self.grouping.plain:
            return self.broadcastable.flatten()
        # In double precision, so that squaring neither overflows nor underflows.
        squares = self._gather([s.reduce(2).flatten().double().square() for s in self.slices])
        alive = squares != 0  # also where it is not a number, which is to be seen
        roots = torch.where(alive, squares, 1.0).sqrt() * alive
        return roots.to(self.slices[0].tensor.dtype) if self.slices else roots

    @cached_property
    def absolute(self) -> Tensor:
        """Sum of absolute values of every group, shape (groups,)."""
        if self.grouping.plain:
            return self.slices[0].reduce(1).flatten()
        return self._gather([s.reduce(1).flatten() for s in self.slices])

    @cached_property
    def sizes(self) -> Tensor:
        """How many numbers every group has, shape (groups,)."""
        return self._gather(
            [
                torch.full((s.count,), s.tensor.numel() // max(s.count, 1), device=s.tensor.device)
                for s in self.slices
            ]
        )

    @property
    def matrix(self) -> Tensor:
        """One row for each group, shape (groups, largest size); shorter groups end in zeros."""
        if self.grouping.plain:
            return self.slices[0].matrix()
        if not self.slices:
            return torch.zeros(self.count, 0)
        nothing = self.slices[0].tensor.new_zeros(0)
        parts = [[nothing] for _ in range(self.count)]
        for s in self.slices:
            numbers = range(s.count) if s.view.index is None else s.view.index
            for group, row in zip(numbers, s.matrix(), strict=True):
                if group >= 0:
                    parts[group].append(row)
        return torch.nn.utils.rnn.pad_sequence([torch.cat(part) for part in parts], batch_first=True)

    def spread(self, values: Tensor, fill: float) -> list[tuple[Slices, Tensor]]:
        """One value of each group beside every tensor, in a shape that broadcasts against it.

        Args:
            values: shape (groups,) or that of :attr:`broadcastable`.
            fill: the value of slices that are in no group.
        """
        if self.grouping.plain and values.dim() == self.slices[0].tensor.dim():
            return [(self.slices[0], values)]
        return [(s, s.spread(values, fill)) for s in self.slices]

    @torch.no_grad()
    def scale_(self, factor: Tensor) -> None:
        """Multiply every member of group i by ``factor[i]``, in place.

        Args:
            factor: shape (groups,). Where groups overlap, a number is multiplied by each factor.
        """
        self._require_one_each(factor, "factors")
        for s in self.slices:
            s.tensor.mul_(s.spread(factor, fill=1.0))

    def take(self, keep: Tensor) -> dict[str, Tensor]:
        """The tensors with only the slices of the groups ``keep``, in the order of the tensor.

        Args:
            keep: group numbers, or a mask of shape (groups,).

        Raises:
            ShapeError: a view is not by one whole dimension, so that nothing can be taken out.
        """
        mask = keep
        if keep.dtype == torch.bool:
            self._require_one_each(keep, "a mask")
        else:
            mask = torch.zeros(self.count, dtype=torch.bool, device=keep.device)
            mask[keep] = True
        taken: dict[str, Tensor] = {}
        for s in self.slices:
            if len(s.by) != 1 or s.view.narrow is not None:
                raise ShapeError(
                    f"taking groups of '{s.view.tensor}'",
                    got=f"slices by {s.view.by}" + (" of a part" if s.view.narrow else ""),
                    expected="slices by one dimension",
                    hint="slices by several axes can be zeroed but not taken out",
                )
            lives = mask if s.view.index is None else torch.cat([mask, mask.new_ones(1)])[s.index]
            tensor = taken.get(s.view.tensor, s.tensor)
            taken[s.view.tensor] = tensor.index_select(s.by[0], lives.nonzero().flatten())
        return taken

    def _gather(self, parts: list[Tensor]) -> Tensor:
        """Add the slices' values up by group."""
        if not parts:
            return torch.zeros(self.count)
        total = parts[0].new_zeros(self.count, dtype=reduce(torch.promote_types, [p.dtype for p in parts]))
        for s, part in zip(self.slices, parts, strict=True):
            if s.view.index is None:
                total = total + part
            else:
                listed = s.index >= 0
                total = total.index_add(0, s.index[listed], part[listed].to(total.dtype))
        return total

    def _require_one_each(self, values: Tensor, what: str) -> None:
        if values.shape != (self.count,):
            raise ShapeError(
                "grouping", got=f"{what} of shape {tuple(values.shape)}", expected=f"({self.count},)"
            )


def _some(tensors: Mapping[str, Tensor]) -> str:
    names = list(tensors)
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "no name"
