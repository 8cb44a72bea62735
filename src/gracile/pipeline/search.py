"""Find the first point on the way down that is fast enough, by timing as few networks as possible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from gracile.pipeline.trade import Stop

CLOSE = 0.97  # of what is asked: good enough, since measurements differ by as much
_LOOKS = 10
_REFINEMENTS = 4


def find(way: Sequence[Stop], aim: float, ratio: Callable[[Stop], float]) -> Stop:
    """The widest stop that is as fast as ``aim``; the last of the way if none is.

    Between two measured stops the next is the one where the table, scaled to agree with the last
    measurement, crosses the aim; where that leaves the bracket, its middle. A gap between two neighbors is
    closed by widths between theirs.

    Args:
        way: from the full network to the narrowest one, see :func:`gracile.pipeline.trade.descend`.
        aim: latency over that of the dense network.
        ratio: times a network with these widths against the dense one.

    >>> way = [Stop({"x": w}, w / 100) for w in (100, 90, 60, 20)]
    >>> find(way, 0.5, lambda stop: stop.widths["x"] / 100).widths
    {'x': 48}
    """
    low, high, scale, found = 0, len(way) - 1, 1 / way[0].predicted_s, 0.0
    for _ in range(_LOOKS):
        if high - low <= 1:
            break
        wanted = next((n for n, stop in enumerate(way) if stop.predicted_s * scale <= aim), high)
        number = wanted if low < wanted < high else (low + high) // 2
        latest = ratio(way[number])
        scale = latest / way[number].predicted_s
        if latest > aim:
            low = number
            continue
        high, found = number, latest
        if found >= CLOSE * aim:
            return way[high]
    return _between(way[low], way[high], aim, ratio) if high - low == 1 else way[high]


def _between(slow: Stop, fast: Stop, aim: float, ratio: Callable[[Stop], float]) -> Stop:
    """Widths between those of two neighbors, which differ in one block, by bisection."""
    block = next((name for name, width in fast.widths.items() if slow.widths[name] != width), None)
    if block is None:
        return fast
    wide, best = slow.widths[block], fast
    for _ in range(_REFINEMENTS):
        middle = (wide + best.widths[block]) // 2
        if wide - best.widths[block] > 16:
            middle -= middle % 8  # most machines take as long for a few more
        if middle == best.widths[block]:
            break
        stop = replace(best, widths={**best.widths, block: middle})
        found = ratio(stop)
        if found > aim:
            wide = middle
            continue
        best = stop
        if found >= CLOSE * aim:
            break
    return best
