"""Fused attention: batch and heads meet, the value width passes, sequences are pinned."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, nothing, rule, tensors_of


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
    "_scaled_dot_product_attention_math_for_mps", "scaled_dot_product_attention",
)  # fmt: skip
def attention(
    at: Site, out: Any, q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any
) -> tuple[Axes, ...]:
    queries, keys, values = at.axes(q), at.axes(k), at.axes(v)
    at.pin(queries[-2], keys[-2], values[-2])
    if at.argument("scale") is None:  # 1 / sqrt(width): the width is counted
        at.pin(queries[-1], keys[-1])
    at.unify(queries[-1], keys[-1])
    lead: Axes = []
    for d in range(q.dim() - 2):
        shared = at.unify(keys[d], values[d])
        if q.shape[d] != k.shape[d]:  # grouped queries: (key head, repeat)
            n, m = q.shape[d], k.shape[d]
            head, repeat = at.reshape([queries[d]], [n], [m, n // m])
            shared = at.unify(head, shared)
            at.pin(repeat)
            shared = queries[d]
        else:
            shared = at.unify(queries[d], shared)
        lead.append(shared)
    for mask in tensors_of((*rest, *named.values())):
        carried = at.axes(mask)
        for back in range(3, mask.dim() + 1):
            d = q.dim() - back
            if d >= 0 and mask.shape[-back] == q.shape[d]:
                lead[d] = at.unify(lead[d], carried[-back])
        at.pin(*carried[-2:])
    result = [*lead, None, values[-1]]
    outs = (out,) if isinstance(out, Tensor) else tuple(out)
    aux = [
        [*lead, *nothing(y.dim() - len(lead))] if y.shape[: len(lead)] == q.shape[:-2] else nothing(y.dim())
        for y in outs[1:]
        if isinstance(y, Tensor)
    ]
    return result, *aux
