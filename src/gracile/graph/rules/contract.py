"""Matrix products: contracted and batch dimensions meet, outer ones pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule


@rule("mm", "bmm", "mv", "dot", "vdot")
def product(at: Site, out: Tensor, x: Tensor, y: Tensor, *_: Any, **__: Any) -> Axes:
    left, right = at.axes(x), at.axes(y)
    at.unify(at.contract(x, -1), at.contract(y, -2 if y.dim() > 1 else -1))
    rows = left[-2:-1] if x.dim() > 1 else []
    columns = right[-1:] if y.dim() > 1 else []
    batch = [at.unify(a, b) for a, b in zip(left[:-2], right[:-2], strict=True)]
    return [*batch, *rows, *columns]


@rule("addmm", "baddbmm", "addmv")
def add_product(at: Site, out: Tensor, bias: Tensor, x: Tensor, y: Tensor, **_: Any) -> Axes:
    axes = product(at, out, x, y)
    assert isinstance(axes, list)
    return at.unify_broadcast(axes, out.shape, bias)


@rule("linear")
def linear(at: Site, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Axes:
    at.unify(at.contract(x, -1), at.contract(weight, -1))
    axes = at.axes(x)[:-1] + at.axes(weight)[:-1]
    return axes if bias is None else at.unify_broadcast(axes, out.shape, bias)


@rule("outer", "ger")
def outer(at: Site, out: Tensor, x: Tensor, y: Tensor) -> Axes:
    return at.axes(x) + at.axes(y)


@rule("_trilinear")
def trilinear(
    at: Site,
    out: Tensor,
    x: Tensor,
    y: Tensor,
    z: Tensor,
    expand_x: Sequence[int],
    expand_y: Sequence[int],
    expand_z: Sequence[int],
    summed: Sequence[int],
    *_: Any,
) -> Axes:
    """Three tensors, each with dimensions of size 1 put in, multiplied and summed up over some."""
    n = x.dim() + len(expand_x)
    met: Axes = [None] * n
    seen = [False] * n
    for tensor, added in ((x, expand_x), (y, expand_y), (z, expand_z)):
        places = [d for d in range(n) if d not in added]
        for own, d in enumerate(places):
            axis = at.contract(tensor, own) if d in summed else at.axes(tensor)[own]
            if tensor.shape[own] > 1:
                met[d] = at.unify(met[d], axis) if seen[d] else axis
                seen[d] = True
    return [axis for d, axis in enumerate(met) if d not in summed]


@rule("_cdist_forward")
def distances(at: Site, out: Tensor, x: Tensor, y: Tensor, *_: Any) -> Axes:
    at.unify(at.contract(x, -1), at.contract(y, -1))
    batch: Axes = []
    for back in range(out.dim(), 2, -1):
        pair = [at.axes(t)[-back] for t in (x, y) if t.dim() >= back and t.shape[-back] > 1]
        batch.append(at.unify(*pair) if pair else None)
    return [*batch, at.axes(x)[-2], at.axes(y)[-2]]


@rule("_grouped_mm", "grouped_mm", "grouped_mm_fallback")
def grouped(
    at: Site, out: Tensor, x: Tensor, y: Tensor, offs: Tensor | None = None, *_: Any, **__: Any
) -> Axes:
    """One product for each group: of rows of x, of columns of y, or of stretches of what is contracted."""
    left, right = at.axes(x), at.axes(y)
    at.unify(at.contract(x, -1), at.contract(y, -2))
    if offs is None:
        return [at.unify(left[0], right[0]), left[1], right[2]]
    at.pin(*left[:-2], *right[:-2])
    if x.dim() == y.dim() == 2:
        at.pin(left[1])
        return [None, left[0], right[1]]
    at.pin(left[-2] if x.dim() == 2 else right[-1])
    return [None, right[-1]] if x.dim() == 2 else [left[-2], None]


@rule("linalg_solve_triangular")
def solve_triangular(
    at: Site,
    out: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
) -> Axes:
    """The equations of one matrix hold together; right-hand sides pass."""
    matrix, sides = at.axes(a), at.axes(b)
    passes = -1 if left else -2
    at.pin(*matrix[-2:], sides[-2 if left else -1])
    if a.shape[:-2] != b.shape[:-2]:
        at.pin(*matrix, *sides)
        return nothing(out.dim())
    result = [*(at.unify(x, y) for x, y in zip(matrix[:-2], sides[:-2], strict=True)), None, None]
    result[passes] = sides[passes]
    return result
