"""The same numbers in another order or shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule


@rule(
    "view", "_unsafe_view", "_reshape_alias", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze",
    "view_copy", "squeeze_copy", "unsqueeze_copy",
)  # fmt: skip
def view(at: Site, out: Tensor, x: Tensor, *_: Any) -> Axes:
    if any(not isinstance(item, (int, list, tuple)) for item in _):  # view(dtype) reads the bytes anew
        at.pin(*at.axes(x))
        return nothing(out.dim())
    return at.reshape(at.axes(x), at.shape(x), out.shape)


@rule("permute", "permute_copy")
def permute(at: Site, out: Tensor, x: Tensor, dims: Sequence[int]) -> Axes:
    axes = at.axes(x)
    return [axes[d] for d in dims]


@rule("transpose", "swapaxes", "swapdims", "transpose_copy")
def transpose(at: Site, out: Tensor, x: Tensor, first: int, second: int) -> Axes:
    axes = at.axes(x)
    if axes:
        axes[first], axes[second] = axes[second], axes[first]
    return axes


@rule("t", "numpy_T", "mT", "t_copy")
def t(at: Site, out: Tensor, x: Tensor) -> Axes:
    return at.axes(x)[::-1] if x.dim() <= 2 else at.axes(x)[:-2] + at.axes(x)[:-3:-1]


@rule("expand", "expand_copy")
def expand(at: Site, out: Tensor, x: Tensor, size: Sequence[int], *, implicit: bool = False) -> Axes:
    axes: Axes = nothing(out.dim() - x.dim()) + at.axes(x)
    shape = [1] * (out.dim() - x.dim()) + list(x.shape)
    return [axis if n == m else at.fresh(m) for axis, n, m in zip(axes, shape, out.shape, strict=True)]


@rule("repeat")
def repeat(at: Site, out: Tensor, x: Tensor, repeats: Sequence[int]) -> Axes:
    axes: Axes = nothing(out.dim() - x.dim()) + at.axes(x)
    shape = [1] * (out.dim() - x.dim()) + list(x.shape)
    result: Axes = []
    for axis, n, times in zip(axes, shape, repeats, strict=True):
        # an index lives if its copy and its number do; that of a copy tells nothing, as in a broadcast
        result += at.reshape([at.fresh(times), axis], [times, n], [times * n]) if times else [None]
    return result


@rule("as_strided")
def as_strided(at: Site, out: Tensor, x: Tensor, size: Sequence[int], *_: Any) -> Axes:
    """Dimensions that are walked through as before pass; those seen through windows are pinned."""
    axes, result = at.axes(x), nothing(out.dim())
    if out is x:  # pooling restrides its result
        if at.shape(x) == tuple(size):
            return axes
        at.pin(*axes)
        return result
    for d, axis in enumerate(axes):
        if axis is None:
            continue
        walks = _walks(out, x, d)
        if walks is None:
            at.pin(axis)
        else:
            result[walks] = axis
    return result


def _walks(out: Tensor, x: Tensor, dim: int) -> int | None:
    """The dimension of a strided view whose index is this dimension's of x everywhere, if there is one."""
    n, stride = x.shape[dim], x.stride(dim)
    size = 1
    for step, m in sorted((x.stride(d), m) for d, m in enumerate(x.shape) if m > 1):
        if step != size:  # gaps, or elements that are met twice
            return None
        size *= m
    low = (out.storage_offset() - x.storage_offset()) % (n * stride)
    found = None
    for d, (step, m) in enumerate(zip(out.stride(), out.shape, strict=True)):
        if step < stride:
            low += step * (m - 1)
        elif step == stride and m == n and found is None:
            found = d
        elif m > 1 and step % (n * stride):
            return None
    return found if low < stride else None


@rule("pixel_shuffle")
def pixel_shuffle(at: Site, out: Tensor, x: Tensor, factor: int) -> Axes:
    *lead, channels, high, wide = at.axes(x)
    n = x.shape[-3]
    if channels is None:
        return [*lead, None, None, None]
    new, row, column = at.reshape([channels], [n], [n // factor**2, factor, factor])
    at.pin(row, column, high, wide)
    return [*lead, new, None, None]


@rule("pixel_unshuffle")
def pixel_unshuffle(at: Site, out: Tensor, x: Tensor, factor: int) -> Axes:
    *lead, channels, high, wide = at.axes(x)
    at.pin(high, wide)
    n = x.shape[-3]
    (new,) = at.reshape([channels, None, None], [n, factor, factor], [n * factor**2])
    return [*lead, new, None, None]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(at: Site, out: Tensor, x: Tensor, groups: int) -> Axes:
    lead, channels, *rest = at.axes(x)
    n = x.shape[1]
    group, inner = at.reshape([channels], [n], [groups, n // groups])
    (new,) = at.reshape([inner, group], [n // groups, groups], [n])
    return [lead, new, *rest]


@rule("unfold", "unfold_copy")
def unfold(at: Site, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> Axes:
    """Windows of a dimension; where they do not overlap it is only parted."""
    axes, n = at.axes(x), x.shape[dim]
    if size == step and n % size == 0:
        axes[dim], within = at.reshape([axes[dim]], [n], [n // size, size])
        return [*axes, within]
    at.pin(axes[dim])
    axes[dim] = None
    return [*axes, None]


@rule("diagonal", "diagonal_copy")
def diagonal(at: Site, out: Tensor, x: Tensor, offset: int = 0, first: int = 0, second: int = 1) -> Axes:
    axes = at.axes(x)
    both = axes[first], axes[second]
    rest = [a for d, a in enumerate(axes) if d not in (first % x.dim(), second % x.dim())]
    if offset == 0 and x.shape[first] == x.shape[second]:
        return [*rest, at.unify(*both)]
    at.pin(*both)
    return [*rest, None]


@rule("diag_embed")
def diag_embed(at: Site, out: Tensor, x: Tensor, offset: int = 0, first: int = -2, second: int = -1) -> Axes:
    *rest, axis = at.axes(x)
    if offset:
        at.pin(axis)
        axis = None
    low, high = sorted((first % out.dim(), second % out.dim()))
    rest.insert(low, axis)
    rest.insert(high, axis)
    return rest


@rule("view_as_real", "view_as_real_copy")
def view_as_real(at: Site, out: Tensor, x: Tensor) -> Axes:
    return [*at.axes(x), None]


@rule("view_as_complex", "view_as_complex_copy")
def view_as_complex(at: Site, out: Tensor, x: Tensor) -> Axes:
    *axes, pair = at.axes(x)
    at.pin(pair)
    return axes
