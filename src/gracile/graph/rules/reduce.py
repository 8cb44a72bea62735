"""Reductions: a dimension that is summed up, averaged or searched is counted and leaves."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, rule


def _dims(at: Site, x: Tensor) -> list[int]:
    dim = at.argument("dim")
    if dim is None or (isinstance(dim, (list, tuple)) and len(dim) == 0):
        return list(range(x.dim()))
    return [d % max(x.dim(), 1) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]


def _reduced(at: Site, out: Any, x: Tensor, dims: list[int]) -> Axes | tuple[Axes, ...]:
    axes = at.axes(x)
    first = out if isinstance(out, Tensor) else out[0]
    kept = first.dim() == x.dim()
    result = [None if d in dims else a for d, a in enumerate(axes) if kept or d not in dims]
    return result if isinstance(out, Tensor) else tuple(list(result) for _ in out)


@rule(
    "mean", "sum", "nansum", "amax", "amin", "prod", "var", "std", "var_mean", "std_mean", "logsumexp",
    "norm", "linalg_vector_norm", "all", "any", "max", "min", "aminmax", "median", "count_nonzero",
)  # fmt: skip
def reduction(at: Site, out: Any, x: Tensor, *others: Any, **_: Any) -> Axes | tuple[Axes, ...]:
    if others and isinstance(others[0], Tensor):  # max(x, y) is element-wise
        return at.broadcast(out.shape, x, others[0])
    dims = _dims(at, x) if x.dim() else []
    for d in dims:
        at.count(x, d)
    return _reduced(at, out, x, dims)


@rule("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax")
def softmax(at: Site, out: Tensor, x: Tensor, dim: int, *_: Any, **__: Any) -> Axes:
    at.count(x, dim)
    return at.axes(x)


@rule("argmax", "argmin", "mode", "kthvalue")
def by_position(at: Site, out: Any, x: Tensor, *_: Any, **__: Any) -> Axes | tuple[Axes, ...]:
    dims = _dims(at, x)
    axes = at.axes(x)
    at.pin(*(axes[d] for d in dims))
    return _reduced(at, out, x, dims)


@rule(
    "cumsum",
    "cumprod",
    "cummax",
    "cummin",
    "logcumsumexp",
    "topk",
    "sort",
    "argsort",
    "roll",
    "renorm",
    "_fft_r2c",
    "_fft_c2r",
    "_fft_c2c",
)
def by_order(at: Site, out: Any, x: Tensor, *_: Any, **__: Any) -> Axes | tuple[Axes, ...]:
    """The order of the indices matters: the dimension is pinned, the others pass."""
    dim = at.argument("dims") if at.argument("dim") is None else at.argument("dim")
    dim = -1 if dim is None else dim
    dims = [d % max(x.dim(), 1) for d in (dim if isinstance(dim, (list, tuple)) else [dim])]
    axes = at.axes(x)
    if not dims:  # rolled as if flat
        dims = list(range(x.dim()))
    at.pin(*(axes[d] for d in dims if d < len(axes)))
    result = [None if d in dims else a for d, a in enumerate(axes)]
    return result if isinstance(out, Tensor) else tuple(list(result) for _ in out)


@rule("tril", "triu")
def triangle(at: Site, out: Tensor, x: Tensor, diagonal: int = 0) -> Axes:
    axes = at.axes(x)
    at.pin(*axes[-2:])
    return [*axes[:-2], None, None]
