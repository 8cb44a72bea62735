"""Look-ups by index: the searched dimension is pinned, the others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule


@rule("embedding")
def embedding(at: Site, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> Axes:
    rows, columns = at.axes(weight)
    at.pin(rows)
    return [*at.axes(indices), columns]


@rule("index_select")
def index_select(at: Site, out: Tensor, x: Tensor, dim: int, index: Tensor) -> Axes:
    axes = at.axes(x)
    if axes:
        at.pin(axes[dim])
        axes[dim] = None
    return axes


@rule("_embedding_bag", "_embedding_bag_forward_only")
def embedding_bag(
    at: Site, outs: Sequence[Tensor], weight: Tensor, indices: Tensor, *rest: Any, **_: Any
) -> tuple[Axes, ...]:
    rows, columns = at.axes(weight)
    at.pin(rows)
    largest = at.argument("mode") == 2  # the positions of the maxima, by column
    return [None, columns], *(
        [None, columns] if largest and y.dim() == 2 else nothing(y.dim()) for y in outs[1:]
    )


def _is_mask(index: Tensor) -> bool:
    return index.dtype in (torch.bool, torch.uint8)


def _searched(indices: Sequence[Tensor | None]) -> list[int]:
    """The dimensions that are indexed; a mask stands for as many as it has."""
    dims: list[int] = []
    d = 0
    for index in indices:
        covered = index.dim() if index is not None and _is_mask(index) else 1
        dims += range(d, d + covered) if index is not None else ()
        d += covered
    return dims


def _picked(at: Site, x: Tensor, indices: Sequence[Tensor | None], inserted: int) -> Axes:
    """The axes of ``x[indices]``: what is searched is pinned, the rest passes."""
    axes, dims = at.axes(x), _searched(indices)
    at.pin(*(axes[d] for d in dims), *(a for i in indices for a in at.axes(i)))
    together = dims == list(range(dims[0], dims[-1] + 1)) if dims else False
    place = dims[0] if together else 0
    rest = [a for d, a in enumerate(axes) if d not in dims]
    return [*rest[:place], *nothing(inserted), *rest[place:]]


@rule("index")
def index(at: Site, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Axes:
    return _picked(at, x, indices, out.dim() - x.dim() + len(_searched(indices)))


@rule("gather")
def gather(at: Site, out: Tensor, x: Tensor, dim: int, index: Tensor, **_: Any) -> Axes:
    axes, chosen = at.axes(x), at.axes(index)
    for d in range(x.dim()):
        if d == dim % x.dim():
            at.pin(axes[d])
        elif x.shape[d] == index.shape[d]:
            chosen[d] = at.unify(axes[d], chosen[d])
        else:
            at.pin(axes[d], chosen[d])
    return chosen


@rule("index_add", "index_copy", "index_fill", "index_reduce")
def index_write(at: Site, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Any, **_: Any) -> Axes:
    axes = at.axes(x)
    if not axes:
        return axes
    if isinstance(source, Tensor) and source.dim() == x.dim():
        written = at.axes(source)
        at.pin(written[dim])
        axes = [a if d == dim % x.dim() else at.unify(a, written[d]) for d, a in enumerate(axes)]
    at.pin(axes[dim])
    axes[dim] = None
    return axes


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(at: Site, out: Tensor, x: Tensor, dim: int, index: Tensor, *rest: Any, **_: Any) -> Axes:
    axes = at.axes(x)
    for other in [index, *(value for value in rest if isinstance(value, Tensor))]:
        for d, axis in enumerate(at.axes(other)):
            if d != dim % x.dim() and other.shape[d] == x.shape[d]:
                axes[d] = at.unify(axes[d], axis)
            else:
                at.pin(axes[d], axis)
    if axes:
        at.pin(axes[dim])
    return axes


@rule("index_put", "_index_put_impl")
def index_put(
    at: Site, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *_: Any
) -> Axes:
    axes, given = at.axes(x), [i for i in indices if i is not None]
    if len(given) == 1 and _is_mask(given[0]) and values.numel() == 1:  # one number where the mask holds
        for d, axis in zip(_searched(indices), at.axes(given[0]), strict=True):
            axes[d] = at.unify(axes[d], axis)
        return axes
    inserted = 1 if any(map(_is_mask, given)) else max(i.dim() for i in given)
    target, written = _picked(at, x, indices, inserted), at.axes(values)
    for back in range(1, values.dim() + 1):
        if values.shape[-back] > 1:
            at.unify(target[-back], written[-back])
    return axes
