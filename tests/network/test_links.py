"""The probe, on links whose rate and latency are known."""

from __future__ import annotations

import json
import sys

import pytest
from network.bed import Bed, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "runs")

PROBE = """
import json
import torch.distributed as dist
from gracile.cost import probe
dist.init_process_group("gloo")
link = probe(limit_s=5.0)
print(json.dumps([link.latency_s, link.bytes_per_s]), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("rate", "delay_ms"), [(100, 0.0), (50, 5.0)])
def test_rate_and_latency_are_found(rate, delay_ms):
    with Bed(2, f"{rate}mbit", delay_ms) as bed:
        said = bed.ranks([sys.executable, "-c", PROBE], limit_s=90)[0]
    latency, bytes_per_s = json.loads(next(line for line in said.splitlines() if line.startswith("[0.")))
    assert 0.8 < bytes_per_s / (rate * 1e6 / 8) < 1.02  # TCP's headers, and whatever else the machine does
    assert latency > 2 * delay_ms / 1000  # to the switch and on
