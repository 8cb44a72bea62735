"""Pooling, resizing and padding in space: leading dimensions pass, space is pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Rule, Site, nothing, rule


def _spatial(k: int) -> Rule:
    def spatial(at: Site, out: Any, x: Tensor, *_: Any, **__: Any) -> Axes | tuple[Axes, ...]:
        axes = at.axes(x)
        at.pin(*axes[-k:])
        result = [*axes[:-k], *nothing(k)]
        return result if isinstance(out, Tensor) else tuple(list(result) for _ in out)

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
