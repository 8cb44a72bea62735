"""Messages between ranks, large ones to one partner at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

import torch.distributed as dist
from torch import Tensor

Expected = tuple[dist.Work | None, ...]
"""Messages that were announced: from the rank before this one, the one before that, ..."""

_AT_ONCE = 32 * 1024  # bytes; so small messages make no queue


@final
class Exchange:
    """Sends and receives in N - 1 rounds; in round i every rank sends to the i-th one after it.

    So every link carries one large message in each direction, where sending to all at once makes queues at
    the receivers overflow. What is to come should be announced (:meth:`expect`) before anything is sent: gloo
    starts a message when its receiver has told that it waits, on the connection that also carries the data.
    Told late, it waits behind a message in the other direction, and links are used one way at a time.

    Args:
        group: of processes, on gloo; all of its messages go through this object, in one order on all ranks.

    Attributes:
        bytes_sent: by this rank so far.
        seconds: spent here.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.bytes_sent, self.seconds = 0, 0.0

    def expect(self, incoming: Sequence[Tensor]) -> Expected:
        """Announce a message from every rank i, that is to fill ``incoming[i]``.

        Args:
            incoming: one for each rank, on the CPU, contiguous. Ranks know each other's sizes; those of no
                length are not sent, nor is this rank's own.
        """
        sources = ((self.rank - shift) % self.ranks for shift in range(1, self.ranks))
        return tuple(
            dist.irecv(incoming[i], group=self._group, group_src=i) if incoming[i].numel() else None
            for i in sources
        )

    def send(self, outgoing: Sequence[Tensor], expected: Expected) -> None:
        """Send ``outgoing[i]`` to every rank i, and wait for what was announced, in the same order."""
        began = time.perf_counter()
        waiting: list[dist.Work | None] = []  # for each once: a second time would be for ever
        for shift, receive in enumerate(expected, 1):
            to = (self.rank + shift) % self.ranks
            waiting.append(receive)
            if outgoing[to].numel():
                waiting.append(dist.isend(outgoing[to], group=self._group, group_dst=to))
                self.bytes_sent += outgoing[to].nbytes
            if outgoing[to].nbytes > _AT_ONCE or shift == len(expected):
                for request in waiting:
                    if request is not None:
                        request.wait()
                waiting.clear()
        self.seconds += time.perf_counter() - began

    def all_to_all(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]) -> None:
        """Send ``outgoing[i]`` to rank i and fill ``incoming[i]`` from it."""
        self.send(outgoing, self.expect(incoming))

    def all_gather(self, own: Tensor, incoming: Sequence[Tensor]) -> None:
        """Send ``own`` to every rank and fill ``incoming[i]`` from rank i."""
        self.all_to_all([own] * self.ranks, incoming)
