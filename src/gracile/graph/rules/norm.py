"""Normalizations: weights and statistics share the fate of their channels; averages count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule


def _batch_norm(
    at: Site, outs: Sequence[Tensor], x: Tensor, vectors: Sequence[Tensor | None]
) -> tuple[Axes, ...]:
    axes = at.axes(x)
    for vector in vectors:
        if vector is not None:
            axes[1] = at.unify(axes[1], at.axes(vector)[0])
    # scratch outputs: one number per channel, or nothing
    rest = [[axes[1]] if y.shape == x.shape[1:2] else nothing(y.dim()) for y in outs[1:]]
    return axes, *rest


@rule("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm", "miopen_batch_norm",
      "_native_batch_norm_legit_functional", "batch_norm_with_update")  # fmt: skip
def batch_norm(
    at: Site, outs: Sequence[Tensor], x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Axes, ...]:
    statistics = [value for value in rest if isinstance(value, Tensor)]
    if at.argument("training"):
        for d, axis in enumerate(at.axes(x)):
            if d != 1 and axis is not None:
                at.count(x, d)
    return _batch_norm(at, outs, x, [weight, bias, *statistics])


@rule("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
def batch_norm_inference(
    at: Site, outs: Sequence[Tensor], x: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any
) -> tuple[Axes, ...]:
    return _batch_norm(at, outs, x, [weight, bias, *(value for value in rest if isinstance(value, Tensor))])


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(
    at: Site, out: Any, x: Tensor, shape: Sequence[int], weight: Tensor | None = None, *rest: Any
) -> Axes | tuple[Axes, ...]:
    axes = at.axes(x)
    start = x.dim() - len(shape)
    for vector in (weight, *rest):
        if isinstance(vector, Tensor):
            axes[start:] = [at.unify(a, b) for a, b in zip(axes[start:], at.axes(vector), strict=True)]
    for d in range(start, x.dim()):
        at.count(x, d)
    if isinstance(out, Tensor):
        return axes
    return axes, *([*axes[:start], *nothing(len(shape))] for _ in out[1:])


@rule("native_group_norm")
def group_norm(
    at: Site, outs: Sequence[Tensor], x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int,
    space: int, groups: int, eps: float,
) -> tuple[Axes, ...]:  # fmt: skip
    axes = at.axes(x)
    for vector in (weight, bias):
        if vector is not None:
            axes[1] = at.unify(axes[1], at.axes(vector)[0])
    group, inner = at.reshape([axes[1]], [c], [groups, c // groups])
    if inner is not None:
        at.count(x, 1, inner)
    for d, axis in enumerate(axes[2:], 2):
        at.count(x, d, axis)
    return axes, *([axes[0], group] if y.dim() == 2 else nothing(y.dim()) for y in outs[1:])


@rule("_weight_norm_interface")
def weight_norm(at: Site, outs: Sequence[Tensor], v: Tensor, g: Tensor, dim: int = 0) -> tuple[Axes, ...]:
    axes, scale = at.axes(v), at.axes(g)
    axes[dim] = at.unify(axes[dim], scale[dim])
    return axes, scale
