"""What every way of averaging gradients would take on a link, before any machine is rented.

The model is the usual one, latency and rate (alpha-beta). With N ranks, one on each machine::

    communication = exchanges * rounds * latency + bytes sent / rate + time to pack
    step          = compute + max(0, communication - overlap * compute)

:mod:`gracile.wire` says how many rounds and bytes each mode takes. Senders that meet at a switch, lost
packets and machines that wait for the slowest are not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from gracile.cost.links import Link
from gracile.errors import UsageError
from gracile.wire.modes import PACKING_S, WORTH, Mode, bytes_sent, rounds, seconds

FORMULA = """communication = exchanges x rounds x latency + bytes / rate + packing
step = compute + max(0, communication - overlap x compute)"""

_POWERSGD_S = 8e-9  # a number, at rank 1, on a core where ours take PACKING_S; elsewhere by as much more

Way = Literal[Mode, "powersgd"]
"""A mode of :mod:`gracile.wire`, or PyTorch's PowerSGD hook."""

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel exchanges at once, by default."""


@final
@dataclass(frozen=True)
class Forecast:
    """One way of averaging on so many ranks, as the model has it.

    Args:
        ranks: machines.
        way: of averaging.
        bytes_sent: by every rank in one step.
        communication_s: seconds of one step's exchange, packing included.
        step_s: seconds of one step.
        speedup: throughput of all ranks over that of one alone.
    """

    ranks: int
    way: Way
    bytes_sent: float
    communication_s: float
    step_s: float
    speedup: float


def forecast(
    shapes: Iterable[Sequence[int]],
    compute_s: float,
    link: Link,
    *,
    ranks: Iterable[int] = (2, 4, 8, 16, 32, 64, 128, 256, 512),
    ways: Iterable[Way] = ("fp32", "fp16", "powersgd", "gather", "exact", "four-bit", "ternary", "base3"),
    overlap: float = 0.5,
    power_rank: int = 1,
) -> tuple[Forecast, ...]:
    """What a step takes, for every number of ranks and every way of averaging.

    Args:
        shapes: of all gradients.
        compute_s: seconds of one step on one machine, without communication, > 0.
        link: between any two.
        ranks: numbers of machines; 1 sends nothing.
        ways: of averaging. PowerSGD is counted as two ring all-reduces of its factors, and 8 ns to make them
            for a number and read them again. Measured in one bucket (PyTorch's hook does not run on gloo with
            more), its steps took from 37 % less to 81 % more than that; other ways are told better.
        overlap: share of the computation behind which communication hides, 0 to 1: less than the backward
            pass, which is two thirds.
        power_rank: rank of PowerSGD's factors, 1 or more.

    Raises:
        UsageError: a number out of range, or an unknown way.

    Source: C4 (TernGrad), section 6 (scalability by a performance model); the model is another.

    >>> slow = Link.of(mbit=100, ms=0.1)
    >>> fp32, exact = forecast([(5000, 5000)], 0.2, slow, ranks=[4], ways=["fp32", "exact"])
    >>> round(fp32.step_s / exact.step_s, 1)
    9.7
    """
    sizes, counts, ways = [tuple(shape) for shape in shapes], tuple(ranks), tuple(ways)
    known = (*get_args(Mode), "powersgd")
    fine = bool(sizes) and all(side > 0 for size in sizes for side in size)
    _require("shapes", fine, sizes[:8], "of gradients with numbers in them")
    _require("compute_s", 0 < compute_s < math.inf, compute_s, "a positive number of seconds")
    _require("overlap", 0 <= overlap <= 1, overlap, "0 to 1")
    _require("power_rank", power_rank >= 1, power_rank, "1 or more")
    _require("ranks", all(count >= 1 for count in counts), counts, "1 or more machines")
    _require("ways", all(way in known for way in ways), ways, f"some of {', '.join(known)}")
    found = []
    for count in counts:
        for way in ways:
            sent, spent = _exchange(way, sizes, count, link, power_rank)
            step = compute_s + max(0.0, spent - overlap * compute_s)
            found.append(Forecast(count, way, sent, spent, step, count * compute_s / step))
    return tuple(found)


def advise(forecasts: Iterable[Forecast]) -> dict[int, Way]:
    """For each number of ranks the fastest way; fp32 stays unless another is 1.2 times as fast.

    >>> fast, slow = Link.of(mbit=100_000, ms=0.01), Link.of(mbit=100, ms=0.1)
    >>> for link in (fast, slow):
    ...     print(advise(forecast([(5000, 5000)], 0.2, link, ranks=[4], ways=["fp32", "exact"])))
    {4: 'fp32'}
    {4: 'exact'}
    """
    best: dict[int, Forecast] = {}
    plain: dict[int, float] = {}
    for each in forecasts:
        if each.way == "fp32":
            plain[each.ranks] = each.step_s
        if each.ranks not in best or each.step_s < best[each.ranks].step_s:
            best[each.ranks] = each
    return {
        count: "fp32" if plain.get(count, math.inf) < WORTH * each.step_s else each.way
        for count, each in best.items()
    }


def _exchange(
    way: Way, shapes: Sequence[tuple[int, ...]], ranks: int, link: Link, power_rank: int
) -> tuple[float, float]:
    """Bytes that each rank sends, and seconds."""
    numbers = sum(math.prod(shape) for shape in shapes)
    buckets = max(1, math.ceil(4 * numbers / BUCKET))
    if ranks == 1:
        return 0.0, 0.0
    if way != "powersgd":
        return bytes_sent(way, numbers, ranks), seconds(way, numbers, ranks, link, buckets)
    sent = bytes_sent("fp32", sum(_factors(shape, power_rank) for shape in shapes), ranks)
    packing = numbers * _POWERSGD_S * link.packing_s / PACKING_S
    wire = 2 * buckets * rounds("fp32", ranks) * link.latency_s + sent / link.bytes_per_s
    return sent, wire + packing


def _factors(shape: tuple[int, ...], rank: int) -> int:
    """Numbers of a gradient's two factors; all of its own where those would not be less than half as many."""
    rows, all_of_it = shape[0] if shape else 1, math.prod(shape)
    columns = all_of_it // rows
    factors = min(rank, rows, columns) * (rows + columns)
    return factors if 2 * factors < all_of_it else all_of_it


def _require(name: str, fine: bool, got: object, expected: str) -> None:
    if not fine:
        raise UsageError("forecast of a step", got=f"{name}={got!r}", expected=expected)
