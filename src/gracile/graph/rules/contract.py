"""Matrix products: contracted and batch dimensions meet, outer ones pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, rule


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
