"""Convolutions: input channels are contracted, output channels pass, kernels and space are pinned."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule


@rule("convolution", "_convolution", "convolution_overrideable")
def convolution(
    at: Site,
    out: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Axes:
    batch, channels, *space = at.axes(x)
    first, second, *kernel = at.axes(weight)
    at.pin(*space, *kernel)
    if groups == 1:
        at.unify(channels, at.contract(weight, 0 if transposed else 1))
        produced = second if transposed else first
    else:
        n, m = x.shape[1], weight.shape[0]
        group, inner = at.reshape([channels], [n], [groups, n // groups])
        weight_group, weight_inner = at.reshape([first], [m], [groups, m // groups])
        group = at.unify(weight_group, group)
        at.contract(weight, 0 if transposed else 1)
        at.unify(inner, weight_inner if transposed else second)
        produced = first
        if transposed:
            (produced,) = at.reshape([group, second], [groups, weight.shape[1]], [out.shape[1]])
    if bias is not None:
        produced = at.unify(produced, at.axes(bias)[0])
    return [batch, produced, *nothing(len(space))]
