"""Links and forecasts: against formulas written out, and between two ranks on this machine."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gracile.cost import Link, advise, forecast, probe
from gracile.errors import UsageError

MODES = ("fp32", "fp16", "gather", "exact", "four-bit", "ternary", "base3")

SHAPES = [(64, 3, 3, 3), (64,), (2000, 576), (2000,), (10, 2000), (10,)]
NUMBERS = sum(math.prod(shape) for shape in SHAPES)

PROBE = """
import json, sys
import torch.distributed as dist
from gracile.cost import probe
dist.init_process_group("gloo")
link = probe(limit_s=1.0)
print(json.dumps([link.latency_s, link.bytes_per_s, link.packing_s]), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def bytes_by_hand(way: str, ranks: int) -> float:
    """What crosses the wire, counted message by message for one rank."""
    part = NUMBERS / ranks
    there_and_back = {
        "fp32": (32, 32),
        "fp16": (16, 16),
        "exact": (2, math.ceil(math.log2(2 * ranks + 1))),
        "four-bit": (2, 4),
        "ternary": (2, 2),
        "base3": (1.6, 1.6),
    }
    if way == "gather":
        return sum(NUMBERS * 2 / 8 for _ in range(ranks - 1))
    return sum(part * bits / 8 for bits in there_and_back[way] for _ in range(ranks - 1))


@pytest.mark.parametrize(("way", "ranks"), list(product(MODES, (2, 4, 16, 100))))
def test_bytes_are_those_of_the_messages(way, ranks):
    (found,) = forecast(SHAPES, 0.1, Link.of(100, 0.1), ranks=[ranks], ways=[way])
    assert found.bytes_sent == pytest.approx(bytes_by_hand(way, ranks))


@given(mbit=st.floats(1, 1e5), ms=st.floats(0, 50), compute=st.floats(1e-3, 10), overlap=st.floats(0, 1))
def test_a_step_is_computing_and_what_does_not_hide_behind_it(mbit, ms, compute, overlap):
    link = Link.of(mbit, ms)
    (found,) = forecast(SHAPES, compute, link, ranks=[4], ways=["fp32"], overlap=overlap)
    wire = 6 * link.latency_s + found.bytes_sent / link.bytes_per_s  # one bucket: 2 (N - 1) messages
    assert found.communication_s == pytest.approx(wire)
    assert found.step_s == pytest.approx(compute + max(0.0, wire - overlap * compute))
    assert found.speedup == pytest.approx(4 * compute / found.step_s)


def test_one_rank_sends_nothing_and_more_buckets_mean_more_latency():
    link = Link(0.01, 1e12)
    (alone,) = forecast(SHAPES, 0.1, link, ranks=[1], ways=["exact"])
    assert (alone.bytes_sent, alone.communication_s, alone.step_s, alone.speedup) == (0.0, 0.0, 0.1, 1.0)
    few, many = (forecast([(n,)], 0.1, link, ranks=[2], ways=["fp32"])[0] for n in (1000, 25 * 2**20))
    assert many.communication_s == pytest.approx(4 * few.communication_s, rel=0.01)  # 100 MiB: 4 buckets


def test_powersgd_sends_factors_where_they_are_less_than_half():
    (found,) = forecast(SHAPES, 0.1, Link.of(100, 0.1), ranks=[2], ways=["powersgd"], power_rank=1)
    factors = (64 + 27) + 64 + (2000 + 576) + 2000 + (10 + 2000) + 10
    assert found.bytes_sent == pytest.approx(4 * factors)
    (whole,) = forecast([(4, 4)], 0.1, Link.of(100, 0.1), ranks=[2], ways=["powersgd"], power_rank=1)
    assert whole.bytes_sent == pytest.approx(4 * 16)  # (4 + 4) * 2 is no less than 16


def test_advice_is_the_fastest_and_fp32_unless_it_pays():
    slow, fast = Link.of(100, 0.1), Link.of(400_000, 0.001)
    shapes = [(5000, 5000)]
    for link in (slow, fast):
        found = forecast(shapes, 0.2, link, ranks=[2, 4])
        for ranks, way in advise(found).items():
            steps = {each.way: each.step_s for each in found if each.ranks == ranks}
            least = min(steps.values())
            assert steps[way] == least if steps["fp32"] >= 1.2 * least else way == "fp32"
    assert set(advise(forecast(shapes, 0.2, fast, ranks=[2, 4])).values()) == {"fp32"}
    assert "fp32" not in advise(forecast(shapes, 0.2, slow, ranks=[2, 4])).values()


@pytest.mark.parametrize(
    "bad",
    [
        {"shapes": []},
        {"shapes": [(0, 3)]},
        {"compute_s": 0.0},
        {"compute_s": math.nan},
        {"ranks": [0]},
        {"ways": ["two-bit"]},
        {"overlap": 1.5},
        {"power_rank": 0},
    ],
)
def test_numbers_out_of_range_are_refused(bad):
    arguments = {"shapes": SHAPES, "compute_s": 0.1, "link": Link.of(100, 0.1), **bad}
    with pytest.raises(UsageError, match=next(iter(bad))):
        forecast(**arguments)


@pytest.mark.parametrize(
    "numbers", [(-1.0, 1.0), (0.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (0.0, 1.0, math.nan)]
)
def test_links_that_cannot_be_are_refused(numbers):
    with pytest.raises(UsageError, match="latency_s"):
        Link(*numbers)


def test_a_probe_needs_ranks():
    with pytest.raises(UsageError, match="no process group"):
        probe()


def test_ranks_find_the_same_link():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE], env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    first, second = (json.loads(rank.communicate(timeout=60)[0]) for rank in ranks)
    assert first == second
    assert 0 < first[0] < 1
    assert first[1] > 1e6
    assert 1e-11 < first[2] < 1e-5  # from a wide machine's to the twin's on a busy one
