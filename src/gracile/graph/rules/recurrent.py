"""Around recurrent networks, whose own kernels decompose: packed sequences of different lengths."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gracile.graph.rules.registry import Axes, Site, rule


@rule("_pack_padded_sequence")
def pack(at: Site, outs: Any, x: Tensor, lengths: Tensor, batch_first: bool) -> tuple[Axes, ...]:
    first, second, *rest = at.axes(x)
    at.pin(first, second)
    return [None, *rest], [None]


@rule("_pad_packed_sequence")
def unpack(at: Site, outs: Any, x: Tensor, *_: Any) -> tuple[Axes, ...]:
    first, *rest = at.axes(x)
    at.pin(first)
    return [None, None, *rest], [None]
