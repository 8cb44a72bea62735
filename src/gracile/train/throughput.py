"""How fast a run goes and what it sends, beside its losses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from math import nan
from typing import final

from gracile.errors import UsageError
from gracile.train.log import Logger
from gracile.train.terngrad_method import TernGrad

_NAMES = ("bytes_sent", "communication_s", "compression_s")


@final
class Throughput:
    """A logger that adds speed and traffic to every row of kind 'step' and hands all rows on.

    Per step since the row before: ``samples_per_s`` of all ranks together; with ``sender`` also
    ``bytes_sent`` by rank 0, and ``communication_s`` and ``compression_s``, its seconds with messages and
    with packing (not known, nan, where PyTorch's own hooks send: modes ``fp32`` and ``fp16``). The first row
    after a start or an evaluation has no row before it and gets nothing. Times differ from run to run, so
    a resumed run's file no longer equals that of an uninterrupted one.

    Args:
        logger: where the rows go.
        batch_size: samples of one step, over all ranks.
        sender: the method that averages the gradients, one of those given to ``fit``.

    Raises:
        UsageError: a batch without samples.

    >>> from gracile.train import JsonLines
    >>> rows = Throughput(JsonLines("log.jsonl"), batch_size=64, sender=TernGrad("exact"))
    """

    def __init__(self, logger: Logger, batch_size: int, sender: TernGrad | None = None) -> None:
        if batch_size < 1:
            raise UsageError("logging speed", got=f"batch_size={batch_size}", expected="1 or more samples")
        self._logger, self._batch_size, self._sender = logger, batch_size, sender
        self._before: tuple[int, float, tuple[float, ...]] | None = None

    def start(self, step: int) -> None:
        self._before = None
        self._logger.start(step)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        self._logger.write(kind, step, {**values, **self._speed(step)} if kind == "step" else values)
        if kind != "step":
            self._before = None  # an evaluation is no step

    def close(self) -> None:
        self._logger.close()

    def _speed(self, step: int) -> dict[str, float]:
        before, now = self._before, (step, time.perf_counter(), self._traffic())
        self._before = now
        if before is None or step <= before[0]:
            return {}
        steps = step - before[0]
        found = {"samples_per_s": steps * self._batch_size / max(now[1] - before[1], 1e-9)}
        parts = zip(_NAMES, now[2], before[2], strict=False)
        return found | {name: (after - earlier) / steps for name, after, earlier in parts}

    def _traffic(self) -> tuple[float, ...]:
        state = self._sender.state if self._sender else None
        if state is None:
            return ()
        if state.mode in ("fp32", "fp16"):
            return state.traffic.bytes_sent, nan, nan
        return state.traffic.bytes_sent, state.traffic.communication_s, state.traffic.compression_s
