"""Narrow a network until it is as fast as asked, measured on this machine; or say at once that it cannot be.

Three steps. *Scout*: the narrowest network that the limits allow is made, proven and timed; if that is too
slow, nothing else is begun. *Table*: every block's widths are timed inside the network. *Search*: the table
says in which order widths are given up; real networks along that way are timed against the dense one until
the asked latency is bracketed, and the one that is removed and proven is measured again.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn

from gracile.cost import Table, Timing, tabulate
from gracile.errors import GracileError, RefusedError
from gracile.graph import Block, Graph
from gracile.pipeline.search import find
from gracile.pipeline.site import SLACK, Clock, Site, require_one, sentence
from gracile.pipeline.trade import Stop, descend, losses
from gracile.reduce import Importance, Limits, Reduction, apply_, magnitude, make_attention_explicit_, remove
from gracile.reduce.copies import duplicate
from gracile.reduce.select import scores

_MISSES = 4  # how often a result that misses is corrected


@final
@dataclass(frozen=True)
class Fitted:
    """A network that was fitted to a latency.

    Args:
        reduction: the smaller network and the evidence.
        asked: latency over that of the dense network.
        dense, reduced: timed in turns, after everything else.
        clock: that they were timed by: ``"wall"``, or ``"processor"`` where the machine was too busy with
            other programs for the wall clock to tell anything (only on one thread of a CPU).
        lowest: what the narrowest network that the limits allow would have had, over the dense one.
        widths: block -> units that were there and that are left.
    """

    reduction: Reduction
    asked: float
    dense: Timing
    reduced: Timing
    clock: Clock
    lowest: float
    widths: Mapping[str, tuple[int, int]]

    @property
    def ratio(self) -> float:
        """Latency of the reduced network over that of the dense one, as measured."""
        return 1 / self.reduced.speedup

    def __str__(self) -> str:
        return sentence(self.asked, self.dense, self.reduced, self.clock)


@final
@dataclass(frozen=True)
class Scouted:
    """What is known before the search: that the latency can be reached, and what the widths cost.

    It depends on shapes, not on weights: a network may be scouted before it is trained and fitted afterwards.
    """

    share: float
    lowest: float
    table: Table
    threads: int


def to_latency(
    model: nn.Module,
    *inputs: Any,
    latency_s: float | None = None,
    share: float | None = None,
    importance: Importance = magnitude,
    limits: Limits | None = None,
    threads: int = 1,
    limit_s: float = 60.0,
    dense: nn.Module | None = None,
    announce: Callable[[str], None] = lambda what: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **named: Any,
) -> Fitted:
    """The most important part of ``model`` that runs in the asked time on this machine; nothing is trained.

    Args:
        model: any network whose forward is Python; it is left untouched.
        inputs: an example to call it with, which sets the batch size; ``named`` likewise.
        latency_s: asked seconds for one pass, or
        share: asked latency over that of the dense network; one of the two.
        importance: (graph, model) -> one number for every unit.
        limits: protected layers, least widths, rounding.
        threads: that torch may use.
        limit_s: about how long the table of widths may take.
        dense: the network that ``share`` refers to; ``model`` by default.
        announce: called with one sentence before each step.
        progress: called with blocks timed and their number.

    Raises:
        RefusedError: even the narrowest network allowed is too slow (the message names its latency), or
            nothing can be removed, or measurements contradict each other again and again.
        UsageError: arguments that make no sense.

    >>> net = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    >>> fitted = to_latency(net, torch.randn(32, 256), share=0.6, limit_s=0.5)
    >>> fitted.ratio < 0.7, fitted.reduction.verdict.kind
    (True, 'exact')
    """
    site = Site.of(model, inputs, named, dense, threads)
    scouted = scout(
        model, *inputs, latency_s=latency_s, share=share, limits=limits, threads=threads, limit_s=limit_s,
        dense=dense, announce=announce, progress=progress, **named,
    )  # fmt: skip
    return _fit(model, site, scouted, importance, limits or Limits(), announce)


def scout(
    model: nn.Module,
    *inputs: Any,
    latency_s: float | None = None,
    share: float | None = None,
    limits: Limits | None = None,
    threads: int = 1,
    limit_s: float = 60.0,
    dense: nn.Module | None = None,
    announce: Callable[[str], None] = lambda what: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    **named: Any,
) -> Scouted:
    """The first half of :func:`to_latency`: refuse what cannot be reached, and time the widths.

    Raises:
        RefusedError, UsageError: as :func:`to_latency`.
    """
    require_one(latency_s, share)
    site = Site.of(model, inputs, named, dense, threads)
    limits = limits or Limits()
    announce("Timing the dense network and the narrowest one allowed")
    narrowest = remove(
        model, *inputs, units=partial(_keep, widths={}, limits=limits, score=magnitude), **named
    )
    whole, small, _ = site.timed(narrowest.model, rounds=15)
    lowest = 1 / small.speedup
    asked = share if share is not None else (latency_s or 0) / whole.median_s
    if lowest > asked * (1 + SLACK):
        base = whole.median_s * 1e3
        raise RefusedError(
            "fitting to a latency",
            got=f"{asked * base:.3g} ms, {asked:.1%} of the dense network's {base:.3g} ms",
            expected=f"{lowest * base:.3g} ms ({lowest:.1%}) or more: the narrowest network takes that",
            hint="protect fewer layers, lower limits.least, or ask for another batch size or more threads",
        )
    graph, work = narrowest.graph, duplicate(model).eval()
    make_attention_explicit_(work)
    announce(f"Timing the widths of {len(graph.blocks)} blocks, {threads} thread{'s' * (threads > 1)}")
    table = tabulate(
        graph,
        work,
        lambda block, width: _sliced(work, graph, graph.blocks[block].units[width:]),
        site.run,
        {b.id: w for b, w in zip(graph.blocks, limits.widths(graph, work), strict=True) if len(w) > 1},
        {b.id: key(graph, b) for b in graph.blocks},
        threads=threads,
        limit_s=limit_s,
        advance=progress,
    )
    return Scouted(asked, lowest, table, threads)


def fit_to(
    model: nn.Module,
    *inputs: Any,
    scouted: Scouted,
    importance: Importance = magnitude,
    limits: Limits | None = None,
    dense: nn.Module | None = None,
    announce: Callable[[str], None] = lambda what: None,
    **named: Any,
) -> Fitted:
    """The second half of :func:`to_latency`, for a network that was scouted, with other weights now.

    Raises:
        RefusedError, UsageError: as :func:`to_latency`.
    """
    site = Site.of(model, inputs, named, dense, scouted.threads)
    return _fit(model, site, scouted, importance, limits or Limits(), announce)


def _fit(
    model: nn.Module,
    site: Site,
    scouted: Scouted,
    importance: Importance,
    limits: Limits,
    announce: Callable[[str], None],
) -> Fitted:
    """Search, remove, measure, and correct the aim by what was measured."""
    announce("Searching widths")
    graph, work = site.watched(model)
    score = scores(graph, work, importance)
    aim, best, table = scouted.share, None, scouted.table
    for _ in range(_MISSES):
        loss = {
            name: losses(score[list(block.units)], [*table.ratios[name], table.full[name]])
            for block in graph.blocks
            if (name := key(graph, block)) in table.full and table.full[name] == len(block.units)
        }
        way = descend(table, loss)
        stop = find(way, aim, lambda stop: site.ratio(_candidate(work, graph, stop, score)))
        choice = partial(_keep, widths=stop.widths, limits=limits, score=importance)
        reduction = remove(model, *site.inputs, units=choice, **site.named)
        timed = site.timed(reduction.model, rounds=30)
        fitted = Fitted(reduction, scouted.share, *timed, scouted.lowest, _left(graph, reduction))
        if best is None or _miss(fitted) < _miss(best):
            best = fitted
        if 0.93 <= fitted.ratio / scouted.share <= 1 + SLACK:
            return fitted
        aim *= scouted.share / fitted.ratio
        announce(f"Measured {fitted.ratio:.1%} of the dense latency instead of {scouted.share:.1%}: again")
        whole = {name for name, (before, after) in fitted.widths.items() if before == after}
        fixed = {name for name in whole if stop.widths.get(name, 0) < table.full.get(name, 0)}
        kept = {name: r for name, r in table.ratios.items() if name not in fixed}
        table = replace(table, ratios=kept, full={name: table.full[name] for name in kept})
    if best is None or best.ratio > 1.1 * scouted.share:
        reached = "nothing" if best is None else f"{best.ratio:.1%}"
        raise RefusedError(
            "fitting to a latency",
            got=f"{reached} of the dense latency after {_MISSES} corrections",
            expected=f"{scouted.share:.1%}",
            hint="what was refused on the way stays; else measure when the machine is calm",
        )
    return best


def _miss(fitted: Fitted) -> float:
    """How far off; too slow is worse."""
    off = fitted.ratio / fitted.asked - 1
    return off * 2 if off > 0 else -off


def key(graph: Graph, block: Block) -> str:
    """A name for a block that does not change when other blocks are pinned: its first slice."""
    first = graph.units[block.units[0]].slices[0]
    return f"{first.tensor}[{', '.join([':'] * first.dim + [str(first.indices[0])])}]"


def _keep(
    graph: Graph, model: nn.Module, widths: Mapping[str, int], limits: Limits, score: Importance
) -> list[int]:
    """All but the most important units of every block; without widths, of as few as the limits allow."""
    order = scores(graph, model, score)
    chosen = []
    for block, allowed in zip(graph.blocks, limits.widths(graph, model), strict=True):
        units = torch.tensor(block.units)
        left = widths.get(key(graph, block), len(units)) if widths else allowed[0]
        chosen += units[order[units].argsort(stable=True)[: max(len(units) - left, 0)]].tolist()
    return chosen


def _candidate(work: nn.Module, graph: Graph, stop: Stop, score: Tensor) -> nn.Module:
    """A network with these widths; not proven, only to be timed."""
    chosen: list[int] = []
    for block in graph.blocks:
        left = stop.widths.get(key(graph, block), len(block.units))
        units = torch.tensor(block.units)
        chosen += units[score[units].argsort(stable=True)[: len(units) - left]].tolist()
    found = _sliced(work, graph, chosen)
    if found is None:
        raise RefusedError(
            "fitting to a latency", got="widths that the network's own code does not take", expected="others"
        )
    return found


def _sliced(work: nn.Module, graph: Graph, units: Any) -> nn.Module | None:
    """A copy without these units that shares what is not cut; None if the network cannot lose them."""
    going, _ = graph.balanced(units)
    if not going:
        return None
    try:
        cut = graph.cut(going)
    except GracileError:
        return None
    tensors = {**dict(work.named_parameters()), **dict(work.named_buffers())}
    cut_ones = {id(tensors[name]) for name in cut.tensors}
    shared = {id(t): t for t in (*work.parameters(), *work.buffers()) if id(t) not in cut_ones}
    for module in work.modules():  # what autograd made cannot be copied and is computed again
        shared.update(
            (id(v), v.detach()) for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf
        )
    small = copy.deepcopy(work, shared)
    apply_(small, cut)
    return small


def _left(graph: Graph, reduction: Reduction) -> dict[str, tuple[int, int]]:
    """Units of every block before and after, by what the cut keeps of the block's first dimension."""
    found = {}
    for block in graph.blocks:
        gone = 0
        for unit in block.units:
            piece = graph.units[unit].slices[0]
            kept = reduction.cut.kept(piece.tensor, piece.dim)
            gone += kept is not None and piece.indices[0] not in kept
        found[key(graph, block)] = (len(block.units), len(block.units) - gone)
    return found
