"""Speed and traffic beside a run's losses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from torch import nn

from gracile.errors import UsageError
from gracile.train import TernGrad, TernGradState, Throughput, Traffic, throughput


class Rows:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, step):
        self.calls.append(("start", step))

    def write(self, kind, step, values):
        self.calls.append((kind, step, dict(values)))

    def close(self):
        self.calls.append("close")


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now.seconds)
    return now


def test_speed_and_traffic_are_those_since_the_row_before(clock):
    rows, sender = Rows(), TernGrad("exact")
    sender.state = TernGradState(nn.Linear(4, 4), "exact")
    log = Throughput(rows, batch_size=32, sender=sender)
    log.start(3)
    log.write("step", 4, {"loss": 1.0})
    clock.seconds += 2.0
    sender.state.traffic = Traffic(5, 4000.0, 1.0, 0.5)
    log.write("step", 9, {"loss": 0.5})
    log.write("epoch", 9, {"loss": 0.6})
    clock.seconds += 50.0  # an evaluation
    log.write("step", 10, {"loss": 0.4})
    log.close()
    speed = {"samples_per_s": 80.0, "bytes_sent": 800.0, "communication_s": 0.2, "compression_s": 0.1}
    assert rows.calls == [
        ("start", 3),
        ("step", 4, {"loss": 1.0}),
        ("step", 9, {"loss": 0.5, **speed}),
        ("epoch", 9, {"loss": 0.6}),
        ("step", 10, {"loss": 0.4}),
        "close",
    ]


def test_what_pytorch_sends_takes_seconds_that_are_not_known(clock):
    rows, sender = Rows(), TernGrad("fp32")
    sender.state = TernGradState(nn.Linear(4, 4), "fp32")
    log = Throughput(rows, batch_size=32, sender=sender)
    log.write("step", 1, {})
    clock.seconds += 1.0
    sender.state.traffic = Traffic(1, 100.0)
    log.write("step", 2, {})
    found = rows.calls[1][2]
    assert (found["samples_per_s"], found["bytes_sent"]) == (32.0, 100.0)
    assert math.isnan(found["communication_s"])
    assert math.isnan(found["compression_s"])


def test_one_process_has_a_speed_and_sends_nothing(clock):
    rows = Rows()
    log = Throughput(rows, batch_size=10)
    log.write("step", 1, {})
    clock.seconds += 0.5
    log.write("step", 3, {})
    assert rows.calls[1] == ("step", 3, {"samples_per_s": 40.0})


def test_a_batch_without_samples_is_refused():
    with pytest.raises(UsageError, match="batch_size=0"):
        Throughput(Rows(), batch_size=0)
