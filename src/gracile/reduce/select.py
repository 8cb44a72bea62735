"""Which units to remove: those that are dead, or the smallest share of every block."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph import Graph
from gracile.reduce.importance import Importance, effective, magnitude


def dead(graph: Graph, model: nn.Module, threshold: float = 0.0) -> list[int]:
    """Units that no longer carry a signal: nothing produces them, or nobody listens.

    A unit is dead if all slices that make it (role ``"out"``, of parameters with two or more dimensions) or
    all slices that use it (role ``"in"``) have no entry above ``threshold`` in magnitude. Biases do not keep
    a unit alive: what is left of it is a constant. An entry that is not a number does. Weights under a mask
    of :mod:`torch.nn.utils.prune` count as what they are multiplied to. Of a block that is dead altogether
    the first unit is left out, since a layer cannot do without any.

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> _ = model[0].weight.data[1].zero_()
    >>> dead(watch(model, torch.zeros(1, 4)), model)
    [1]
    """
    gone = silent(graph, model, threshold)
    for block in graph.blocks:
        if gone[list(block.units)].all():
            gone[block.units[0]] = False
    return gone.nonzero().flatten().tolist()


def silent(graph: Graph, model: nn.Module, threshold: float = 0.0) -> Tensor:
    """Which units are dead in the sense of :func:`dead`, all of a block included; truth values (units,)."""
    if not threshold >= 0:
        raise UsageError("choosing dead units", got=f"threshold {threshold}", expected="a number >= 0")
    parameters = effective(model)
    roles = {(s.tensor, s.dim): s.role for block in graph.blocks for s in graph.units[block.units[0]].slices}
    count = len(graph.units)
    seen = {role: torch.zeros(count, dtype=torch.bool) for role in ("out", "in")}
    alive = {role: torch.zeros(count, dtype=torch.bool) for role in ("out", "in")}
    for view in graph.grouping().views:
        parameter = parameters[view.tensor]
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
    return (seen["out"] & ~alive["out"]) | (seen["in"] & ~alive["in"])


def smallest(
    graph: Graph, model: nn.Module, fraction: float, importance: Importance = magnitude
) -> list[int]:
    """The same share of every block: its least important units, block by block, the least important first.

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
    score = scores(graph, model, importance)
    chosen: list[int] = []
    for block in graph.blocks:
        units = torch.tensor(block.units)
        count = min(math.floor(fraction * len(units) + 1e-9), len(units) - 1)
        chosen += units[score[units].argsort(stable=True)[:count]].tolist()
    return chosen


def scores(graph: Graph, model: nn.Module, importance: Importance) -> Tensor:
    """One number for every unit, on the CPU; raises UsageError for any other shape."""
    score = importance(graph, model)
    if score.shape != (len(graph.units),):
        raise UsageError(
            "ranking units",
            got=f"importance of shape {tuple(score.shape)}",
            expected=f"({len(graph.units)},): one number for every unit",
        )
    return score.detach().cpu().double()


def random_units(graph: Graph, model: nn.Module, fraction: float, seed: int = 0) -> list[int]:
    """As :func:`smallest`, but at random: for comparison, and for testing what can be removed at all."""
    generator = torch.Generator().manual_seed(seed)
    return smallest(graph, model, fraction, lambda g, _: torch.rand(len(g.units), generator=generator))
