"""Pooling, resizing and padding in space: leading dimensions pass, space is pinned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Rule, Site, nothing, rule


def _alone(at: Site, k: int) -> list[bool]:
    """In which dimensions of space a pooling looks at one index at a time."""
    steps = [at.argument(name) for name in ("kernel_size", "stride", "padding")]
    if not all(isinstance(step, (int, list, tuple)) for step in steps):
        return [False] * k
    kernel, stride, padding = (
        [s] * k if isinstance(s, int) else list(s) * (k // max(len(s), 1)) for s in steps
    )
    return [m == (1, 1, 0) for m in zip(kernel, stride or kernel, padding, strict=True)]


def _spatial(k: int) -> Rule:
    def spatial(at: Site, out: Any, x: Tensor, *_: Any, **__: Any) -> Axes | tuple[Axes, ...]:
        axes = at.axes(x)
        if isinstance(out, Tensor):  # where there are several, one holds positions in all of space
            together = [d for d, alone in zip(range(-k, 0), _alone(at, k), strict=True) if not alone]
            at.pin(*(axes[d] for d in together))
            return [None if d - len(axes) in together else a for d, a in enumerate(axes)]
        at.pin(*axes[-k:])
        return tuple([*axes[:-k], *nothing(k)] for _ in out)

    return spatial


def _register(k: int, *names: str) -> Callable[..., Any]:
    return rule(*(name.format(k=k) for name in names))(_spatial(k))


for _k in (1, 2, 3):
    _register(
        _k, "max_pool{k}d_with_indices", "max_pool{k}d", "avg_pool{k}d", "_adaptive_avg_pool{k}d",
        "adaptive_avg_pool{k}d", "adaptive_max_pool{k}d", "fractional_max_pool{k}d", "reflection_pad{k}d",
        "replication_pad{k}d", "upsample_nearest{k}d", "_upsample_nearest_exact{k}d",
    )  # fmt: skip
_register(1, "upsample_linear1d")
_register(2, "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
_register(3, "upsample_trilinear3d")


@rule("im2col")
def im2col(at: Site, out: Tensor, x: Tensor, kernel: Sequence[int], *_: Any) -> Axes:
    *batch, channels, high, wide = at.axes(x)
    at.pin(high, wide)
    n, (h, w) = x.shape[-3], kernel
    return [*batch, *at.reshape([channels, None, None], [n, h, w], [n * h * w]), None]


@rule("col2im")
def col2im(at: Site, out: Tensor, x: Tensor, size: Any, kernel: Sequence[int], *_: Any) -> Axes:
    *batch, channels, places = at.axes(x)
    n, (h, w) = x.shape[-2], kernel
    new, row, column = at.reshape([channels], [n], [n // (h * w), h, w])
    at.pin(places, row, column)
    return [*batch, new, None, None]


@rule("max_unpool2d", "max_unpool3d")
def max_unpool(at: Site, out: Tensor, x: Tensor, indices: Tensor, size: Sequence[int], *_: Any) -> Axes:
    k = len(size)
    at.pin(*at.axes(x)[-k:], *at.axes(indices)[-k:])
    lead = [at.unify(a, b) for a, b in zip(at.axes(x)[:-k], at.axes(indices)[:-k], strict=True)]
    return [*lead, *nothing(k)]


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(at: Site, out: Tensor, x: Tensor, grid: Tensor, *_: Any) -> Axes:
    batch, channels, *space = at.axes(x)
    first, *rest = at.axes(grid)
    at.pin(*space, *rest)
    return [at.unify(batch, first), channels, *nothing(len(space))]


@rule("affine_grid_generator")
def affine_grid(at: Site, out: Tensor, theta: Tensor, size: Sequence[int], *_: Any) -> Axes:
    batch, *rest = at.axes(theta)
    at.pin(*rest)
    return [batch, *nothing(out.dim() - 1)]
