"""Links between machines, measured in seconds: latency and rate (alpha-beta)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from gracile.errors import UsageError

_SMALL, _FIRST, _LARGEST = 8, 64 * 1024, 8 * 2**20


@final
@dataclass(frozen=True)
class Link:
    """The way from any machine to any other.

    Args:
        latency_s: seconds that a message of no length takes, software included.
        bytes_per_s: in one direction, while the other is in use too.

    Raises:
        UsageError: a latency below 0, or a rate that is not positive.

    >>> Link.of(mbit=1000, ms=0.1)
    Link(latency_s=0.0001, bytes_per_s=125000000.0)
    """

    latency_s: float
    bytes_per_s: float

    def __post_init__(self) -> None:
        if not (0 <= self.latency_s < math.inf and 0 < self.bytes_per_s < math.inf):
            raise UsageError("link", got=f"{self}", expected="latency_s >= 0 and bytes_per_s > 0, finite")

    @classmethod
    def of(cls, mbit: float, ms: float) -> Link:
        """From the numbers on the box: megabits a second, and milliseconds one way."""
        return cls(ms / 1e3, mbit * 1e6 / 8)


def probe(group: dist.ProcessGroup | None = None, limit_s: float = 10.0) -> Link:
    """Measure the link between the ranks of a process group; every rank calls it, all get the same answer.

    All ranks send to the next and receive from the one before, as exchanges do: first messages of 8 bytes,
    whose median is the latency, then of doubling size as long as the time allows. The rate is that of what
    the largest message takes longer than the one a quarter of its size, so that neither latency nor what
    switches hold in store counts. The slowest rank's figures are taken.

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
    worst = _largest([latency, longer / (0.75 * largest)], group)
    return Link(float(worst[0]), 1 / float(worst[1]))


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


def _left(began: float, limit_s: float, last_s: float, group: dist.ProcessGroup | None) -> bool:
    """Whether there is time for a message of twice the last one's size; the same answer on all ranks."""
    needed = _largest([time.perf_counter() - began + 2 * last_s], group)
    return float(needed[0]) < limit_s


def _largest(values: list[float], group: dist.ProcessGroup | None) -> Tensor:
    found = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(found, dist.ReduceOp.MAX, group=group)
    return found
