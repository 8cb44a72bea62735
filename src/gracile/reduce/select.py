"""Which units to remove: those that are dead, or the smallest share of every block."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gracile.algebra import View
from gracile.errors import UsageError
from gracile.graph import Graph

Importance = Callable[[Graph, nn.Module], Tensor]


def dead(graph: Graph, model: nn.Module, threshold: float = 0.0) -> list[int]:
    """Units that no longer carry a signal: nothing produces them, or nobody listens.

    A unit is dead if all slices that make it (role ``"out"``, of parameters with two or more dimensions) or
    all slices that use it (role ``"in"``) have no entry above ``threshold`` in magnitude. Biases do not keep
    a unit alive: what is left of it is a constant. An entry that is not a number does.

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = model[0].weight.data[1].zero_()
    >>> dead(watch(model, torch.zeros(1, 4)), model)
    [1]
    """
    if not threshold >= 0:
        raise UsageError("choosing dead units", got=f"threshold {threshold}", expected="a number >= 0")
    parameters = dict(model.named_parameters())
    roles = {(s.tensor, s.dim): s.role for block in graph.blocks for s in graph.units[block.units[0]].slices}
    count = len(graph.units)
    seen = {role: torch.zeros(count, dtype=torch.bool) for role in ("out", "in")}
    alive = {role: torch.zeros(count, dtype=torch.bool) for role in ("out", "in")}
    for view in graph.grouping().views:
        parameter = parameters[view.tensor].detach()
        dim = view.pattern.split().index(view.by[0])
        role = roles.get((view.tensor, dim))
        if role is None or (role == "out" and parameter.dim() < 2):
            continue
        rest = [d for d in range(parameter.dim()) if d != dim]
        largest = torch.maximum(parameter.amax(rest), -parameter.amin(rest)) if rest else parameter.abs()
        owner = torch.tensor(view.index)
        owned = owner >= 0
        speaks = ~(largest.cpu() <= threshold)
        seen[role][owner[owned]] = True
        alive[role][owner[owned & speaks]] = True
    gone = (seen["out"] & ~alive["out"]) | (seen["in"] & ~alive["in"])
    return gone.nonzero().flatten().tolist()


def magnitude(graph: Graph, model: nn.Module) -> Tensor:
    """Euclidean norm of every unit over all its slices, shape (units,).

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> magnitude(watch(model, torch.zeros(1, 4)), model).shape
    torch.Size([3])
    """
    grouping = graph.grouping()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    views: dict[str, list[View]] = {}
    for view in grouping.views:
        views.setdefault(view.tensor, []).append(view)
    scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    squares = torch.zeros(len(graph.units), dtype=torch.float64)
    for name, seen in views.items():
        parameter = parameters[name]
        square = _square(parameter, scratch)
        for view in seen:
            dim = view.pattern.split().index(view.by[0])
            owner = torch.tensor(view.index)
            # What comes before is summed up first: that runs through memory in order.
            summed = square.reshape(math.prod(parameter.shape[:dim]), -1).sum(0) if dim else square
            total = summed.reshape(parameter.shape[dim], -1).sum(1)
            squares.index_add_(0, owner[owner >= 0], total.cpu().double()[owner >= 0])
    return squares.sqrt()


def _square(x: Tensor, scratch: dict[tuple[torch.device, torch.dtype], Tensor]) -> Tensor:
    """x², in memory that is used again: on large layers fresh pages cost more than the arithmetic."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    room = scratch.get((x.device, dtype))
    if room is None or room.numel() < x.numel():
        room = scratch[x.device, dtype] = torch.empty(x.numel(), dtype=dtype, device=x.device)
    return torch.mul(x, x, out=room[: x.numel()].view(x.shape))


def smallest(
    graph: Graph, model: nn.Module, fraction: float, importance: Importance = magnitude
) -> list[int]:
    """The same share of every block: its least important units.

    Equal shares keep equal what a network needs equal (the parts of a ``chunk``, both sides of a sum). A
    block never loses all of its units; a block of one stays.

    Args:
        graph: what was watched.
        model: the watched model.
        fraction: share of each block to remove, 0 <= fraction < 1, rounded down to whole units.
        importance: (graph, model) -> one number for every unit.

    >>> from functools import partial
    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> len(smallest(watch(model, torch.zeros(1, 4)), model, 0.5))
    4
    """
    if not 0 <= fraction < 1:
        raise UsageError(
            "choosing the smallest units", got=f"fraction {fraction}", expected="0 <= fraction < 1"
        )
    score = importance(graph, model)
    if score.shape != (len(graph.units),):
        raise UsageError(
            "choosing the smallest units",
            got=f"importance of shape {tuple(score.shape)}",
            expected=f"({len(graph.units)},): one number for every unit",
        )
    chosen: list[int] = []
    for block in graph.blocks:
        units = torch.tensor(block.units)
        count = min(math.floor(fraction * len(units) + 1e-9), len(units) - 1)
        chosen += units[score.cpu()[units].argsort(stable=True)[:count]].tolist()
    return sorted(chosen)


def random_units(graph: Graph, model: nn.Module, fraction: float, seed: int = 0) -> list[int]:
    """As :func:`smallest`, but at random: for comparison, and for testing what can be removed at all."""
    generator = torch.Generator().manual_seed(seed)
    return smallest(graph, model, fraction, lambda g, _: torch.rand(len(g.units), generator=generator))
