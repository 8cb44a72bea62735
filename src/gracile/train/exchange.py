"""Messages between ranks, to one partner at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import final

import torch.distributed as dist
from torch import Tensor


@final
class Exchange:
    """Sends and receives in N - 1 rounds; in round i every rank sends to the i-th one after it.

    So every link carries one message in each direction, where sending to all at once makes queues at the
    receivers overflow.

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

    def all_to_all(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]) -> None:
        """Send ``outgoing[i]`` to rank i and fill ``incoming[i]`` from it; what is for this rank stays.

        Args:
            outgoing: one for each rank, on the CPU, contiguous. Ranks know each other's sizes.
            incoming: likewise; those of no length are not sent.
        """
        began = time.perf_counter()
        for shift in range(1, self.ranks):
            to, source = (self.rank + shift) % self.ranks, (self.rank - shift) % self.ranks
            requests = []
            if outgoing[to].numel():
                requests.append(dist.isend(outgoing[to], group=self._group, group_dst=to))
                self.bytes_sent += outgoing[to].nbytes
            if incoming[source].numel():
                requests.append(dist.irecv(incoming[source], group=self._group, group_src=source))
            for request in requests:
                if request is not None:
                    request.wait()
        self.seconds += time.perf_counter() - began

    def all_gather(self, own: Tensor, incoming: Sequence[Tensor]) -> None:
        """Send ``own`` to every rank and fill ``incoming[i]`` from rank i."""
        self.all_to_all([own] * self.ranks, incoming)
