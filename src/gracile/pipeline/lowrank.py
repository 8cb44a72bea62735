"""Ranks for a whole network: to a share of its parameters or multiply-accumulates, or to a measured latency.

All layers compete by one rule. What a layer loses with rank K is its lost energy over its kept energy,
sum_{k>K} s_k² / sum_{k<=K} s_k², which adds up over layers and empties none. Ranks are given up one step
after another, each time the one that loses least for each part of the cost that it saves; a layer starts out
whole, and its first step goes at once to a rank with which two layers are cheaper than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import nn

from gracile.algebra import Factoring, spectrum
from gracile.cost import Table, Timing, count, layer_times
from gracile.errors import RefusedError, UsageError
from gracile.pipeline.search import find
from gracile.pipeline.site import SLACK, Clock, Site, require_one, sentence
from gracile.pipeline.trade import Stop, descend, losses
from gracile.reduce import factorize, left_alone, pairs, paying
from gracile.reduce.copies import duplicate
from gracile.reduce.factorize import matrix_of, numbers_of, split_

_MOST = 24  # ranks of one layer that are tried
_TIMED = (0.0, 0.15, 0.4, 1.0)  # of the largest rank that pays
_MISSES = 4  # how often a result that misses is corrected


@final
@dataclass(frozen=True)
class LowRankFit:
    """A network that was factorized to fit a latency.

    Args:
        model: the factorized network, in evaluation mode.
        ranks: what :func:`gracile.reduce.factorize` was given, as :func:`gracile.reduce.save` wants it.
        left_alone: why the other layers were not factorized.
        asked: latency over that of the dense network.
        dense, reduced: timed in turns, after everything else.
        clock: that they were timed by, see :class:`gracile.pipeline.Fitted`.
        lowest: what the lowest ranks would have had, over the dense network.
    """

    model: nn.Module
    ranks: Mapping[str, int]
    left_alone: Mapping[str, str]
    asked: float
    dense: Timing
    reduced: Timing
    clock: Clock
    lowest: float

    @property
    def ratio(self) -> float:
        """Latency of the factorized network over that of the dense one, as measured."""
        return 1 / self.reduced.speedup

    def __str__(self) -> str:
        return sentence(self.asked, self.dense, self.reduced, self.clock)


def ranks_within(
    model: nn.Module,
    *inputs: Any,
    left: float,
    of: Literal["macs", "parameters"] = "macs",
    layers: Iterable[str] | None = None,
    **named: Any,
) -> dict[str, int]:
    """Ranks that leave a share of the network's parameters or multiply-accumulates, by the module's rule.

    The share is never exceeded, and is met within 3 % where ranks are fine enough for that.

    Args:
        model: any network whose forward is Python; it is left untouched.
        inputs: an example to call it with; ``named`` likewise.
        left: share of the whole network's cost that may be left, 0 < left <= 1.
        of: which cost.
        layers: that may be factorized; by default every one that can be and for which a rank pays.

    Raises:
        RefusedError: not even rank 1 everywhere leaves so little; the message names the lowest share.
        UsageError: arguments that make no sense.

    >>> net, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)), torch.randn(1, 64)
    >>> small = factorize(net, ranks_within(net, x, left=0.5))
    >>> 0.4 < count(small, x).macs / count(net, x).macs <= 0.5
    True
    """
    if not 0 < left <= 1 or of not in ("macs", "parameters"):
        raise UsageError(
            "choosing ranks",
            got=f"left={left} of {of!r}",
            expected="0 < left <= 1, of 'macs' or 'parameters'",
        )
    rows = {row.layer: float(getattr(row, of)) for row in count(model, *inputs, **named).rows}
    total = sum(rows.values())
    if not total > 0:  # also where it is not a number
        raise UsageError(
            "choosing ranks",
            got=f"{total:.3g} {of}",
            expected="a cost that is known for all operators",
            hint="gracile.cost.count(model, example).unmodeled names them",
        )
    most = _candidates(model, layers)
    sizes = {name: matrix_of(model.get_submodule(name)).shape[1:] for name in most}
    # What does not shrink with the rank: the bias.
    fixed = {
        name: rows.get(name, 0.0) - model.get_submodule(name).get_parameter("weight").numel()
        if of == "parameters"
        else 0.0
        for name in most
    }

    def share(layer: str, rank: int) -> float:
        whole, (outputs, inputs) = rows.get(layer, 0.0), sizes[layer]
        factor = rank * (outputs + inputs) / (outputs * inputs)
        return (fixed[layer] + factor * (whole - fixed[layer])) / whole if whole else 1.0

    def ratio(stop: Stop) -> float:
        factors = {name: share(name, rank) for name, rank in _lowered(stop, full).items()}
        return sum(factors.get(name, 1.0) * cost for name, cost in rows.items()) / total

    table, full = _table(rows, most, share)
    way = _way(model, table)
    stop = way[0] if ratio(way[0]) <= left else find(way, left, ratio)
    if ratio(stop) > left:
        raise RefusedError(
            "choosing ranks",
            got=f"{left:.3g} of the {of}",
            expected=f"at least {ratio(stop):.3g}, the least that can be reached",
            hint="remove units as well",
        )
    return _lowered(stop, full)


def low_rank_to_latency(
    model: nn.Module,
    *inputs: Any,
    latency_s: float | None = None,
    share: float | None = None,
    layers: Iterable[str] | None = None,
    method: Factoring = "pca",
    threads: int = 1,
    announce: Callable[[str], None] = lambda what: None,
    **named: Any,
) -> LowRankFit:
    """Factorize until the network runs in the asked time on this machine; nothing is trained.

    Every layer is timed inside the running network, whole and with a few ranks; layers that are no faster as
    two stay one. Networks along the way down are timed against the dense one until the asked latency is
    bracketed, and the one that is factorized is measured again.

    Args:
        model: any network whose forward is Python; it is left untouched.
        inputs: an example to call it with, which sets the batch size; ``named`` likewise.
        latency_s: asked seconds for one pass, or
        share: asked latency over that of the dense network; one of the two.
        layers: that may be factorized; by default every one that can be and for which a rank pays.
        method: see :func:`gracile.reduce.factorize`.
        threads: that torch may use.
        announce: called with one sentence before each step.

    Raises:
        RefusedError: even the lowest ranks are too slow (the message names their latency), or measurements
            contradict each other again and again.
        UsageError: arguments that make no sense.

    >>> net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    >>> fitted = low_rank_to_latency(net, torch.randn(64, 256), share=0.6)
    >>> fitted.ratio < 0.7, len(fitted.ranks) > 0
    (True, True)
    """
    require_one(latency_s, share)
    site = Site.of(model, inputs, named, None, threads)
    most = _candidates(model, layers)
    announce("Timing the dense network and the lowest ranks")
    whole, small, _ = site.timed(_blank(model, dict.fromkeys(most, 1)), rounds=15)
    lowest = 1 / small.speedup
    asked = share if share is not None else (latency_s or 0) / whole.median_s
    if lowest > asked * (1 + SLACK):
        base = whole.median_s * 1e3
        raise RefusedError(
            "fitting to a latency",
            got=f"{asked * base:.3g} ms, {asked:.1%} of the dense network's {base:.3g} ms",
            expected=f"{lowest * base:.3g} ms ({lowest:.1%}) or more: rank 1 everywhere takes that",
            hint="remove units as well, or ask for another batch size or more threads",
        )
    announce(f"Timing ranks of {len(most)} layers")
    table, full = _timed(model, site, most)
    way = _way(model, table)
    announce("Searching ranks")
    aim, best = asked, None
    for _ in range(_MISSES):
        stop = find(way, aim, lambda stop: site.ratio(_blank(model, _lowered(stop, full))))
        ranks = _lowered(stop, full)
        network = factorize(model, ranks, method).eval()
        fitted = LowRankFit(
            network, ranks, left_alone(model, ranks), asked, *site.timed(network, rounds=30), lowest
        )
        if best is None or abs(fitted.ratio - asked) < abs(best.ratio - asked):
            best = fitted
        if 0.93 <= fitted.ratio / asked <= 1 + SLACK:
            return fitted
        aim *= asked / fitted.ratio
        announce(f"Measured {fitted.ratio:.1%} of the dense latency instead of {asked:.1%}: again")
    if best is None or best.ratio > 1.1 * asked:
        raise RefusedError(
            "fitting to a latency",
            got=f"{best.ratio:.1%} of the dense latency after {_MISSES} corrections" if best else "nothing",
            expected=f"{asked:.1%}",
            hint="measure when the machine is calm",
        )
    return best


def _candidates(model: nn.Module, layers: Iterable[str] | None) -> dict[str, int]:
    """Layers and the largest ranks that pay."""
    most = paying(model)
    chosen = [name for name, rank in most.items() if rank] if layers is None else list(layers)
    unknown = [name for name in chosen if not most.get(name)]
    if unknown or not chosen:
        raise UsageError(
            "choosing ranks",
            got=f"{unknown[0]!r}" if unknown else "no layer for which a rank pays",
            expected=f"some of {', '.join(name for name, rank in most.items() if rank) or 'none'}"[:400],
            hint="gracile.reduce.left_alone(model, {}) tells why",
        )
    return {name: most[name] for name in chosen}


def _table(
    costs: Mapping[str, float], most: Mapping[str, int], share: Callable[[str, int], float]
) -> tuple[Table, dict[str, int]]:
    """What ranks cost; that a layer is whole is written as a rank that it cannot have."""
    full = {name: rank + 1 for name, rank in most.items()}
    ratios = {
        name: {int(k): {name: share(name, int(k))} for k in np.unique(np.geomspace(1, rank, _MOST).round())}
        for name, rank in most.items()
    }
    return Table(costs, full, ratios), full


def _way(model: nn.Module, table: Table) -> list[Stop]:
    loss = {
        name: {table.full[name]: 0.0, **losses(spectrum(numbers_of(model, name)), list(ratios))}
        for name, ratios in table.ratios.items()
    }
    return descend(table, loss)


def _lowered(stop: Stop, full: Mapping[str, int]) -> dict[str, int]:
    return {name: rank for name, rank in stop.widths.items() if rank < full[name]}


def _timed(model: nn.Module, site: Site, most: Mapping[str, int]) -> tuple[Table, dict[str, int]]:
    """The table with measured times; between measured ranks it is interpolated."""
    ranks = [{name: max(1, round(part * rank)) for name, rank in most.items()} for part in _TIMED]
    networks = {"whole": site.dense, **{n: _blank(model, r) for n, r in enumerate(ranks)}}
    times = layer_times(networks, site.run, threads=site.threads)
    whole = times.pop("whole")

    def share(layer: str, rank: int) -> float:
        seconds = [
            sum(own for name, own in found.items() if name == layer or name.startswith(f"{layer}."))
            for found in times.values()
        ]
        return float(np.interp(rank, [r[layer] for r in ranks], seconds)) / whole[layer]

    return _table(whole, {name: rank for name, rank in most.items() if whole.get(name)}, share)


def _blank(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A network of these ranks that is only to be timed: its factors hold some small number."""
    network = duplicate(model).eval()
    split_(network, ranks)
    chosen = pairs(network)
    with torch.no_grad():
        for name in ranks:
            for layer in chosen[name]:
                layer.weight.fill_(1e-2)
    return network
