"""Messages between ranks, large ones to one partner at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import final

import torch.distributed as dist
from torch import Tensor

_AT_ONCE = 32 * 1024  # bytes; so small messages make no queue
_TAGS = 1 << 16  # more than are ever on their way


@final
@dataclass(frozen=True)
class Expected:
    """Memory for a message from every rank, and which of them were announced, by the round they come in.

    The tag tells them from messages that were announced before and have not all come.
    """

    incoming: Sequence[Tensor]
    tag: int
    announced: dict[int, dist.Work | None]


@final
class Exchange:
    """Sends and receives in N - 1 rounds; in round i every rank sends to the i-th one after it.

    So every link carries one large message in each direction, where sending to all at once makes queues at
    the receivers overflow. gloo starts a message when its receiver has told that it waits for it. So a rank
    tells one sender at a time: who is ahead waits, instead of sending to a receiver that is still busy. And
    it tells before it sends anything: on the connection that also carries the data, a word said late waits
    behind a message in the other direction, and links are used one way at a time.

    Args:
        group: of processes, on gloo; all of its messages go through this object, in one order on all ranks.

    Attributes:
        bytes_sent: by this rank so far.
        seconds: spent in waiting for messages to come and go.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        self.bytes_sent, self.seconds = 0, 0.0
        self._tags = cycle(range(_TAGS))

    def expect(self, incoming: Sequence[Tensor]) -> Expected:
        """Announce a message from every rank i, that is to fill ``incoming[i]``, up to the first large one.

        Args:
            incoming: one for each rank, on the CPU, contiguous. Ranks know each other's sizes; those of no
                length are not sent, nor is this rank's own.
        """
        expected = Expected(incoming, next(self._tags), {})
        for shift in range(1, self.ranks):
            self._announce(expected, shift)
            if incoming[self._source(shift)].nbytes > _AT_ONCE:
                break
        return expected

    def send(
        self,
        outgoing: Sequence[Tensor],
        expected: Expected,
        write: Callable[[int], None] = lambda rank: None,
        read: Callable[[int], None] = lambda rank: None,
    ) -> None:
        """Send ``outgoing[i]`` to every rank i, and receive what is expected.

        Args:
            outgoing: one for each rank; its own is not sent.
            expected: what :meth:`expect` returned.
            write: called with i before ``outgoing[i]`` is sent, while the message before it is on its way.
            read: called with i when the message of rank i has come, while the next is on its way.
        """
        sends: list[dist.Work | None] = []
        coming: dict[int, dist.Work | None] = {}
        for shift in range(1, self.ranks):
            to, source = (self.rank + shift) % self.ranks, self._source(shift)
            write(to)
            came: list[int] = []
            if max((outgoing[to].nbytes, *(expected.incoming[i].nbytes for i in coming))) > _AT_ONCE:
                came = list(coming)
                self._wait(coming.values())
                coming.clear()
            self._announce(expected, shift)
            if came:
                self._wait(sends)
                sends.clear()
            coming[source] = expected.announced[shift]
            if outgoing[to].numel():
                sends.append(dist.isend(outgoing[to], group=self._group, group_dst=to, tag=expected.tag))
                self.bytes_sent += outgoing[to].nbytes
            for i in came:
                read(i)
        self._wait([*coming.values(), *sends])
        for i in coming:
            read(i)

    def all_to_all(self, outgoing: Sequence[Tensor], incoming: Sequence[Tensor]) -> None:
        """Send ``outgoing[i]`` to rank i and fill ``incoming[i]`` from it."""
        self.send(outgoing, self.expect(incoming))

    def all_gather(self, own: Tensor, incoming: Sequence[Tensor]) -> None:
        """Send ``own`` to every rank and fill ``incoming[i]`` from rank i."""
        self.all_to_all([own] * self.ranks, incoming)

    def _source(self, shift: int) -> int:
        return (self.rank - shift) % self.ranks

    def _announce(self, expected: Expected, shift: int) -> None:
        """Tell the sender of a round that its message is waited for; once."""
        source = self._source(shift)
        if shift not in expected.announced:
            memory = expected.incoming[source]
            expected.announced[shift] = (
                dist.irecv(memory, group=self._group, group_src=source, tag=expected.tag)
                if memory.numel()
                else None
            )

    def _wait(self, requests: Iterable[dist.Work | None]) -> None:
        """For each once: a second time would be for ever."""
        began = time.perf_counter()
        for request in requests:
            if request is not None:
                request.wait()
        self.seconds += time.perf_counter() - began
