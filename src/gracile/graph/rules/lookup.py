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


@rule("index")
def index(at: Site, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> Axes:
    axes = at.axes(x)
    given = [d for d, i in enumerate(indices) if i is not None]
    masks = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
    for i in indices:
        at.pin(*at.axes(i))
    if masks or not given:
        at.pin(*axes)
        return nothing(out.dim())
    at.pin(*(axes[d] for d in given))
    inserted: Axes = nothing(out.dim() - x.dim() + len(given))
    together = given == list(range(given[0], given[-1] + 1))
    place = given[0] if together else 0
    rest = [a for d, a in enumerate(axes) if d not in given]
    return [*rest[:place], *inserted, *rest[place:]]


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


@rule("index_add", "index_copy", "index_fill")
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
    axes = at.axes(x)
    given = [d for d, i in enumerate(indices) if i is not None]
    if any(i is not None and (i.dtype in (torch.bool, torch.uint8) or i.dim() > 1) for i in indices) or not (
        given and given == list(range(len(given)))
    ):
        at.pin(*axes, *at.axes(values))
        return axes
    at.pin(*(axes[d] for d in given), *(a for i in indices for a in at.axes(i)))
    written = at.axes(values)
    for back in range(1, x.dim() - len(given) + 1):
        if back <= values.dim() and values.shape[-back] == x.shape[-back]:
            axes[-back] = at.unify(axes[-back], written[-back])
            written[-back] = None
    at.pin(*written)
    return axes
