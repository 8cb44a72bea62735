"""Around recurrent networks, whose own kernels decompose: packed sequences of different lengths."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

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


def tie(at: Site, cell: nn.RNNBase | nn.RNNCellBase) -> None:
    """The state goes back in and every gate meets it, which a sequence of one step would not show."""
    for name, weight in cell._parameters.items():
        if weight is None or not name.startswith("weight_hh"):
            continue
        projection = cell._parameters.get(name.replace("_hh", "_hr"))
        size = weight.shape[1] if projection is None else projection.shape[1]
        rows, state = at.axes(weight)
        if rows is None or size == 1:
            continue
        hidden = at.unify(*(rows[start : start + size] for start in range(0, len(rows), size)))
        if projection is None:
            at.unify(hidden, state)
        else:
            at.unify(hidden, at.axes(projection)[1])
            at.unify(state, at.axes(projection)[0])
