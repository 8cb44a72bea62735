"""The communication hook where others own the loop: Lightning and Accelerate, on two ranks."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("terngrad_frameworks_run.py")
pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("lightning", "accelerate")),
    reason="needs the extras 'lightning' and 'hf'",
)


@pytest.fixture(scope="module")
def facts(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("frameworks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--max-restarts", "0"]
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            *address,
            str(SCRIPT),
            folder,
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2] / "benchmarks")},
        timeout=120,
        check=True,
        capture_output=True,
    )
    return [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(2)]


def test_lightning_trains_and_resumes(facts):
    # 160 samples in batches of 16 on 2 ranks are 5 steps an epoch; the second run took the second epoch's.
    expected = {"alike": True, "steps": 5, "step": 10, "resumed": True}
    assert [found["lightning"] for found in facts] == [expected, expected]


def test_accelerate_trains(facts):
    assert all(found["accelerate"] == {"alike": True, "steps": 15, "learns": True} for found in facts)
