"""Ways to average gradients over ranks: what they send, what they cost, which one suits a link.

With n numbers, N ranks and w = ceil(log2(2 N + 1)), every rank sends, beside the scales::

    fp32, fp16   2 (N - 1) / N * n * 4 or 2 bytes       ring all-reduce
    gather       (N - 1) n / 4                          everybody sends 2 bits to everybody
    exact        (N - 1) / N * n (2 + w) / 8            2 bits to the owner of a part, exact sums back
    four-bit     (N - 1) / N * n (2 + 4) / 8            the mean rounded at random to 15 levels
    ternary      (N - 1) / N * n (2 + 2) / 8            the mean made ternary again, with a scale of its own
    base3        (N - 1) / N * n (1.6 + 1.6) / 8        the same, five digits a byte
"""

from __future__ import annotations

from typing import Literal, Protocol, get_args

from gracile.errors import UsageError
from gracile.wire.blocks import sum_bits

Mode = Literal["gather", "exact", "four-bit", "ternary", "base3", "fp16", "fp32"]
"""The average of ternary gradients, exact or rounded once more; or none of that."""

WORTH = 1.2
"""How much faster than fp32 a mode must be expected to be."""
EXACT_UP_TO = 16
"""Ranks; beyond, sums take so many bits that the mean is rounded."""

PACKING_S = 0.6e-9
"""Seconds to pack and unpack a number in few bits: compiled, on a core of its own."""

_SECONDS = {"fp32": 0.0, "fp16": 2.0e-9}  # on such a core; elsewhere by as much more or less


class Wire(Protocol):
    """A link between machines."""

    @property
    def latency_s(self) -> float:
        """Seconds that a message of no length takes."""

    @property
    def bytes_per_s(self) -> float:
        """Bytes a second in one direction."""

    @property
    def packing_s(self) -> float:
        """Seconds that a machine takes to pack and unpack a number in few bits."""


def bytes_sent(mode: Mode, numbers: int, ranks: int) -> float:
    """Bytes that every rank sends for the gradients of one step, without scales and padding.

    Args:
        mode: way of averaging.
        numbers: of the gradients.
        ranks: that train together.

    Raises:
        UsageError: an unknown mode, or no rank.

    >>> round(bytes_sent("fp32", 1024, 4) / bytes_sent("exact", 1024, 4), 2)
    10.67
    """
    if mode not in get_args(Mode):
        raise UsageError("bytes on the wire", got=f"mode={mode!r}", expected=f"one of {get_args(Mode)}")
    if ranks < 1:
        raise UsageError("bytes on the wire", got=f"{ranks} ranks", expected="1 or more")
    bits = {
        "fp32": 64.0,
        "fp16": 32.0,
        "gather": 2.0 * ranks,
        "exact": 2.0 + sum_bits(ranks),
        "four-bit": 6.0,
        "ternary": 4.0,
        "base3": 3.2,
    }
    return (ranks - 1) / ranks * numbers * bits[mode] / 8


def rounds(mode: Mode, ranks: int) -> int:
    """Messages that follow each other in one exchange; the scales are one more for each other rank.

    >>> rounds("fp32", 4), rounds("exact", 4), rounds("gather", 2)
    (6, 9, 2)
    """
    return (ranks - 1) * {"fp32": 2, "fp16": 2, "gather": 2}.get(mode, 3)


def seconds(mode: Mode, numbers: int, ranks: int, link: Wire, exchanges: int = 1) -> float:
    """Time of one step's exchange: rounds * latency + bytes / rate + time to pack.

    Args:
        mode: way of averaging.
        numbers: of the gradients.
        ranks: that train together, one on each machine.
        link: between any two of them.
        exchanges: into how many buckets the gradients are divided.
    """
    packing = numbers * _SECONDS.get(mode, PACKING_S) * link.packing_s / PACKING_S
    wire = bytes_sent(mode, numbers, ranks) / link.bytes_per_s
    return exchanges * rounds(mode, ranks) * link.latency_s + wire + packing


def choose(numbers: int, ranks: int, link: Wire | None = None, exchanges: int = 1) -> Mode:
    """The mode for so many ranks, the fastest on a link that is known.

    Unknown links are taken to be slow: ``gather`` for 2 ranks, ``exact`` for up to 16, ``four-bit`` beyond.
    On a known one fp32 stays unless another mode is expected to be at least 1.2 times as fast.

    >>> choose(25_000_000, 2), choose(25_000_000, 4), choose(25_000_000, 64)
    ('gather', 'exact', 'four-bit')
    """
    if ranks == 1:
        return "fp32"
    best: Mode = "gather" if ranks == 2 else "exact" if ranks <= EXACT_UP_TO else "four-bit"
    if link is None:
        return best
    candidates: tuple[Mode, ...] = (best, "fp16")
    times = {mode: seconds(mode, numbers, ranks, link, exchanges) for mode in candidates}
    fastest = min(candidates, key=times.__getitem__)
    plain = seconds("fp32", numbers, ranks, link, exchanges)
    return fastest if times[fastest] * WORTH <= plain else "fp32"
