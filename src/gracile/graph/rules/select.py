"""Parts of tensors, and tensors put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gracile.graph.labels import Axis
from gracile.graph.rules.registry import Axes, Site, joined, rule


def _parts(at: Site, outs: Sequence[Tensor], x: Tensor, dim: int) -> tuple[Axes, ...]:
    axes = at.axes(x)
    axis, start, result = axes[dim], 0, []
    for out in outs:
        n = out.shape[dim]
        part: Axis = None if axis is None or n == 1 else axis[start : start + n]
        if axis is not None and n == 1:
            at.pin(axis[start : start + n])
        result.append([part if d == dim % x.dim() else a for d, a in enumerate(axes)])
        start += n
    return tuple(result)


@rule("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "unsafe_chunk",
      "split_copy", "split_with_sizes_copy", "tensor_split")  # fmt: skip
def split(at: Site, outs: Sequence[Tensor], x: Tensor, sizes: Any, dim: int = 0) -> tuple[Axes, ...]:
    return _parts(at, outs, x, dim)


@rule("slice", "slice_copy")
def slice_(
    at: Site,
    out: Tensor,
    x: Tensor,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Axes:
    axes, n = at.axes(x), x.shape[dim]
    first = start or 0
    first = min(max(first + n if first < 0 else first, 0), n)
    axis, size = axes[dim], out.shape[dim]
    if axis is None or size == n:
        return axes
    if step != 1 and first < step and size * step == n:  # every index comes with the ones between
        axes[dim], between = at.reshape([axis], [n], [size, step])
        at.pin(between)
    elif step != 1 or size <= 1:
        at.pin(axis)
        axes[dim] = None
    else:
        axes[dim] = axis[first : first + size]
    return axes


@rule("narrow")
def narrow(at: Site, out: Tensor, x: Tensor, dim: int, start: int, length: int) -> Axes:
    return slice_(at, out, x, dim, start, start + length)  # type: ignore[return-value]


@rule("select", "select_copy")
def select(at: Site, out: Tensor, x: Tensor, dim: int, index: int) -> Axes:
    axes = at.axes(x)
    axis = axes.pop(dim)
    if axis is not None:  # what is in front of the index, or behind one from the end, gives it its number
        at.pin(axis[: index + 1] if index >= 0 else axis[index:])
    return axes


@rule("unbind", "unbind_copy")
def unbind(at: Site, outs: Sequence[Tensor], x: Tensor, dim: int = 0) -> tuple[Axes, ...]:
    axes = at.axes(x)
    at.pin(axes.pop(dim))
    return tuple(list(axes) for _ in outs)


@rule("cat", "concat", "concatenate")
def cat(at: Site, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    tensors = [x for x in tensors if x.dim() == out.dim()]  # an old habit: empty vectors are skipped
    dim %= out.dim()
    carried = [at.axes(x) for x in tensors]
    return [
        joined([(axes[d], x.shape[d]) for axes, x in zip(carried, tensors, strict=True)])
        if d == dim
        else at.unify(*(axes[d] for axes in carried))
        for d in range(out.dim())
    ]


@rule("stack")
def stack(at: Site, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> Axes:
    axes = [at.unify(*parts) for parts in zip(*(at.axes(x) for x in tensors), strict=True)]
    axes.insert(dim % out.dim(), None)
    return axes


@rule("flip")
def flip(at: Site, out: Tensor, x: Tensor, dims: Sequence[int]) -> Axes:
    turned = {d % x.dim() for d in dims}
    return [a[::-1] if d in turned and a is not None else a for d, a in enumerate(at.axes(x))]


@rule("constant_pad_nd")
def constant_pad(at: Site, out: Tensor, x: Tensor, pad: Sequence[int], value: float = 0) -> Axes:
    """What is added is the same for every index, so it may go; what is taken away just goes."""
    axes = at.axes(x)
    for back in range(1, len(pad) // 2 + 1):
        before, after = pad[2 * back - 2], pad[2 * back - 1]
        axis, n = axes[-back], x.shape[-back]
        if axis is None or (before == 0 and after == 0):
            continue
        kept = axis[max(0, -before) : n - max(0, -after)]
        added = [(at.labels.fresh(m), m) for m in (max(0, before), max(0, after))]
        axes[-back] = joined([added[0], (kept, len(kept)), added[1]])
    return axes
