"""What every width of every block costs on this machine: measured layer by layer, and multiplied out.

Each block is narrowed alone to a few widths, and every layer that its units touch is timed inside the
running network. A layer that several blocks touch (inputs and outputs of a convolution) is predicted by the
product of what each of them saves it: t = T * r_in(w_in) * r_out(w_out). Adding up the savings of blocks
instead counts those layers twice and predicts times below zero.

What a machine likes shows in the table by itself: where 40 channels take as long as 48, 40 is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from gracile.cost.layers import Run, layer_times
from gracile.graph import Graph

FULL = "full"
_MOST = 24  # widths of one block
_SLIGHT = 0.01  # of a block's largest saving: less is taken for noise


@final
@dataclass(frozen=True)
class Table:
    """Measured times.

    Args:
        layers: seconds of every layer of the full network.
        full: units of every block.
        ratios: block -> number of its units left -> layer -> its time over that in the full network.

    >>> half = {"a": 0.5, "b": 0.8}
    >>> table = Table({"a": 2.0, "b": 1.0}, {"x": 8}, {"x": {4: half, 2: half}})
    >>> table.seconds({}), table.seconds({"x": 4}), table.worthwhile("x")
    (3.0, 1.8, [4, 8])
    """

    layers: Mapping[str, float]
    full: Mapping[str, int]
    ratios: Mapping[str, Mapping[int, Mapping[str, float]]]

    def seconds(self, widths: Mapping[str, int]) -> float:
        """Predicted latency; blocks that are not named, or are as wide as they were, cost what they cost."""
        factors = dict.fromkeys(self.layers, 1.0)
        for block, width in widths.items():
            for layer, ratio in self.ratio(block, width).items():
                factors[layer] *= ratio
        return math.fsum(factors[layer] * seconds for layer, seconds in self.layers.items())

    def ratio(self, block: str, width: int) -> Mapping[str, float]:
        """By layer; nothing for the full width."""
        return {} if width == self.full[block] else self.ratios[block][width]

    def worthwhile(self, block: str) -> list[int]:
        """The measured widths, rising, of which each is faster than all larger ones; the last is the full."""
        whole = self.seconds({})
        saved = {width: whole - self.seconds({block: width}) for width in self.ratios[block]}
        slight = _SLIGHT * max(saved.values(), default=0.0)
        kept, best = [self.full[block]], 0.0
        for width in sorted(saved, reverse=True):
            if saved[width] > best + slight:
                kept.append(width)
                best = saved[width]
        return kept[::-1]


def tabulate(
    graph: Graph,
    network: nn.Module,
    narrow: Callable[[int, int], nn.Module | None],
    run: Run,
    widths: Mapping[int, Sequence[int]],
    names: Mapping[int, str],
    *,
    threads: int = 1,
    limit_s: float = 60.0,
    rounds: int = 5,
    advance: Callable[[int, int], None] = lambda done, total: None,
) -> Table:
    """Measure the table, in about ``limit_s`` seconds: fewer widths of each block where time is short.

    Args:
        graph: of ``network``.
        network: in eval mode.
        narrow: (block, units left) -> the network with that block narrowed alone, or None if it cannot be.
        run: calls a network on the example.
        widths: for every block how many units may stay, rising, the last being all of them.
        names: of the blocks, for the table.
        threads: that torch may use.
        limit_s: about how long it may take; three widths of each block are measured in any case.
        rounds: samples of each width.
        advance: called with the number of blocks done and of all.
    """
    started = time.perf_counter()
    layers = layer_times({FULL: network}, run, rounds=2 * rounds, threads=threads)[FULL]
    runs = 2 * rounds + 1
    touched = touched_layers(graph)
    ratios: dict[str, dict[int, dict[str, float]]] = {}
    for number, (block, allowed) in enumerate(widths.items()):
        advance(number, len(widths))
        spent = time.perf_counter() - started
        share = (limit_s - spent) / (len(widths) - number)  # of the time that is left
        samples = rounds if share > 0 else max(rounds // 2, 1)  # late, as on a busy machine
        points = min(max(int(share / (spent / runs) / (rounds + 1)), 3), _MOST)
        span = min(len(s.indices) for s in graph.units[graph.blocks[block].units[0]].slices)
        networks: dict[int | str, nn.Module] = {
            w: n for w in grid(allowed, span, points) if (n := narrow(block, w)) is not None
        }
        try:
            times = layer_times({FULL: network, **networks}, run, rounds=samples, threads=threads)
        except Exception:  # the model's own code does not take the width: removal will say so
            continue
        runs += len(times) * (samples + 1)
        whole = times.pop(FULL)
        ratios[names[block]] = {
            width: {
                layer: found[layer] / whole[layer]
                for layer in touched[block]
                if whole.get(layer) and layer in found
            }
            for width, found in times.items()
        }
    advance(len(widths), len(widths))
    return Table(layers, {names[b]: w[-1] for b, w in widths.items() if names[b] in ratios}, ratios)


def grid(allowed: Sequence[int], span: int, points: int) -> list[int]:
    """Some of the allowed widths, the full one left out: mostly multiples of 8, 16, ..., some beside them.

    >>> grid(range(7, 65), 1, 6)
    [7, 16, 26, 32, 45, 48]
    """
    inner = list(allowed[:-1])
    if len(inner) <= points:
        return inner
    step = 8
    while allowed[-1] * span / step - 1 > 2 * points / 3:
        step *= 2
    likely = {inner[0], *(w for w in inner if w * span % step == 0)}
    spare = points - len(likely)
    beside = inner[:: math.ceil(len(inner) / (spare + 1))][1:] if spare > 0 else []
    return sorted({*likely, *beside})


def touched_layers(graph: Graph) -> list[set[str]]:
    """For every block the modules whose operators handle its units."""
    found: list[set[str]] = [set() for _ in graph.blocks]
    of = np.array([0] * len(graph.units))
    for block in graph.blocks:
        of[list(block.units)] = block.id
    known: dict[int, tuple[object, list[int]]] = {}  # holds the axis, so that its id stays its own
    for step in graph.steps:
        for operand in (*step.inputs, *step.outputs):
            for axis in operand.labels:
                if axis is None:
                    continue
                if id(axis) not in known:
                    owners = graph.owners(axis)
                    mine = [] if owners is None else np.unique(of[owners[owners >= 0]]).tolist()
                    known[id(axis)] = (axis, mine)
                for block in known[id(axis)][1]:
                    found[block].add(step.module)
    return found
