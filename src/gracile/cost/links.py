"""Links between machines, measured in seconds: latency and rate (alpha-beta), and what packing takes."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.errors import UsageError
from gracile.wire import decode_, scaler, ternarize_, words
from gracile.wire.modes import PACKING_S

_SMALL, _FIRST, _LARGEST = 8, 64 * 1024, 8 * 2**20
_NUMBERS = 2**22  # more than caches hold, as gradients are


@final
@dataclass(frozen=True)
class Link:
    """The way from any machine to any other.

    Args:
        latency_s: seconds that a message of no length takes, software included.
        bytes_per_s: in one direction, while the other is in use too.
        packing_s: seconds that a machine at its end takes to pack and unpack a number in few bits.

    Raises:
        UsageError: a time below 0, or a rate that is not positive.

    >>> Link.of(mbit=1000, ms=0.1)
    Link(latency_s=0.0001, bytes_per_s=125000000.0, packing_s=6e-10)
    """

    latency_s: float
    bytes_per_s: float
    packing_s: float = PACKING_S

    def __post_init__(self) -> None:
        times = all(0 <= seconds < math.inf for seconds in (self.latency_s, self.packing_s))
        if not (times and 0 < self.bytes_per_s < math.inf):
            raise UsageError("link", got=f"{self}", expected="times >= 0 and bytes_per_s > 0, finite")

    @classmethod
    def of(cls, mbit: float, ms: float) -> Link:
        """From the numbers on the box: megabits a second, and milliseconds one way."""
        return cls(ms / 1e3, mbit * 1e6 / 8)


def probe(group: dist.ProcessGroup | None = None, limit_s: float = 10.0) -> Link:
    """Measure the link between the ranks of a process group; every rank calls it, all get the same answer.

    All ranks send to the next and receive from the one before, as exchanges do: first messages of 8 bytes,
    whose median is the latency, then of doubling size as long as the time allows. The rate is that of what
    the largest message takes longer than the one a quarter of its size, so that neither latency nor what
    switches hold in store counts. Then all pack gradients at once, as they do when they train: ranks may
    share a processor or its memory. The slowest rank's figures are taken.

    Args:
        group: with a backend for tensors on the CPU; ``None`` is the default one.
        limit_s: about the longest that it takes, > 0. Links so slow that 448 KiB take longer, take longer.

    Raises:
        UsageError: no process group, one rank alone, or no time.
    """
    if not dist.is_initialized():
        raise UsageError("probing a link", got="no process group", expected="one", hint="start with torchrun")
    if not 0 < limit_s < math.inf:
        raise UsageError("probing a link", got=f"limit_s={limit_s}", expected="a positive number of seconds")
    if dist.get_world_size(group) < 2:
        raise UsageError("probing a link", got="1 rank", expected="2 or more")
    began = time.perf_counter()
    _around(_SMALL, group)  # opens the connections
    latency = sorted(_around(_SMALL, group) for _ in range(15))[7]
    taken: dict[int, float] = {}
    size = _FIRST
    while size <= _LARGEST and (len(taken) < 3 or _left(began, limit_s, taken[size // 2], group)):
        taken[size] = _around(size, group)
        size *= 2
    largest = max(taken)
    while _left(began, limit_s / 2, taken[largest], group):  # others disturb messages, never to their gain
        for repeated in (largest // 4, largest):
            taken[repeated] = min(taken[repeated], _around(repeated, group))
    longer = max(taken[largest] - taken[largest // 4], 1e-9)
    worst = _largest([latency, longer / (0.75 * largest), _packing(group)], group).tolist()
    return Link(worst[0], 1 / worst[1], worst[2])


def _around(size: int, group: dist.ProcessGroup | None) -> float:
    """Seconds to send ``size`` bytes to the next rank while as many come from the one before."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    outgoing, incoming = torch.zeros(size, dtype=torch.uint8), torch.empty(size, dtype=torch.uint8)
    dist.barrier(group)
    began = time.perf_counter()
    work = [  # received first: gloo announces it on the same connection, where it would wait behind the data
        dist.irecv(incoming, group=group, group_src=(rank - 1) % ranks),
        dist.isend(outgoing, group=group, group_dst=(rank + 1) % ranks),
    ]
    for each in work:
        if each is not None:
            each.wait()
    return time.perf_counter() - began


def _packing(group: dist.ProcessGroup | None) -> float:
    """Seconds for a number that is scaled, packed in 2 bits, and read again from a sum of 4."""
    x, out = torch.linspace(-1, 1, _NUMBERS), torch.zeros(_NUMBERS)
    packed, sums = (torch.zeros(words(_NUMBERS, width), dtype=torch.int32) for width in (2, 4))
    times = []
    for _ in range(5):
        dist.barrier(group)
        began = time.perf_counter()
        ternarize_(packed, x, scaler(x), Random(0))
        decode_(out, sums, width=4, offset=4, factor=1.0)
        times.append(time.perf_counter() - began)
    return sorted(times)[2] / _NUMBERS


def _left(began: float, limit_s: float, last_s: float, group: dist.ProcessGroup | None) -> bool:
    """Whether there is time for a message of twice the last one's size; the same answer on all ranks."""
    needed = _largest([time.perf_counter() - began + 2 * last_s], group)
    return float(needed[0]) < limit_s


def _largest(values: list[float], group: dist.ProcessGroup | None) -> Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return found
