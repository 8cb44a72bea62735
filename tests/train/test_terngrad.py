"""The communication hook on 2 and 4 ranks, against the same average in one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gracile.errors import UsageError
from gracile.train import TernGrad, TernGradState, Traffic

SCRIPT = Path(__file__).with_name("terngrad_run.py")
MODES = ("gather", "exact", "four-bit", "ternary", "base3")


def torchrun(ranks: int, script: Path, *arguments: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    address = ["--master-addr", "127.0.0.1", "--master-port", str(port), "--max-restarts", "0"]
    subprocess.run(
        [*command, *address, str(script), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module", params=[2, 4])
def facts(request, tmp_path_factory) -> list[dict]:
    """What every rank found."""
    folder = tmp_path_factory.mktemp("terngrad")
    torchrun(request.param, SCRIPT, str(folder))
    return [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(request.param)]


@pytest.mark.parametrize("mode", MODES)
def test_the_hook_has_the_bits_of_one_process(facts, mode):
    assert all(found[mode]["same"] for found in facts)


@pytest.mark.parametrize("mode", MODES)
def test_bytes_are_those_of_the_messages(facts, mode):
    for found in facts:
        assert found[mode]["sent"] == found[mode]["expected"] > 0


def test_messages_of_all_sizes_arrive(facts):
    assert all(found["messages"] == [True] * 5 for found in facts)


def test_replicas_stay_identical(facts):
    for found in facts:
        for mode in ("exact", "ternary"):
            assert found[f"200 steps, {mode}"] == {"alike": True, "steps": 200, "step": 200}
        assert found["alike"] == dict.fromkeys(MODES, True)


def test_buckets_do_not_matter_and_the_seed_does(facts):
    for found in facts:
        assert found["any bucket"] == dict.fromkeys(MODES, True)
        assert found["seed"] == [True, False]


def test_accumulated_gradients_are_exchanged_once(facts):
    assert all(found["accumulated"] == {"same": True, "steps": 1} for found in facts)


def test_resumed_equals_uninterrupted(facts):
    assert all(found["resumed"] == {"same": True, "step": 8} for found in facts)


def test_what_is_not_finite_on_one_rank_is_seen_on_all(facts):
    assert all(found["broken"] == {"nan": True, "rest": True, "counted": 1} for found in facts)


def test_feedback_loses_nothing(facts):
    assert all(found["fed back"] < 1e-5 for found in facts)


def test_unused_parameters_static_graphs_half_precision(facts):
    assert all(found["unused"] and found["half"] for found in facts)


def test_modes_that_do_not_pack(facts):
    numbers, ranks = 20 * 90 + 90 + 90 * 70 + 70 + 700 + 10, len(facts)
    for found in facts:
        assert found["plain"]["fp32"] == pytest.approx(8 * numbers * (ranks - 1) / ranks)
        assert found["plain"]["fp16"] == pytest.approx(4 * numbers * (ranks - 1) / ranks)
        assert found["auto"] == ("gather" if ranks == 2 else "exact")


def test_sites_average_among_themselves_first(facts):
    assert len(facts) != 4 or all(found["sites"] == [True, True] for found in facts)


def test_sharded_gradients(facts):
    ranks = len(facts)
    for found in facts:
        # 200 steps of numbers with a standard deviation of at most s / 2 each
        assert found["sharded"]["error"] < 0.5 * 0.5 / (200 * ranks) ** 0.5
        assert found["sharded"]["bytes"] == (ranks - 1) * (4 + 3 * 128)
        assert found["sharded"]["levels"] == 2 * ranks + 1
        assert found["fsdp"]["last"] < 0.8 * found["fsdp"]["first"]


def test_the_method_in_a_run_that_is_resumed(facts):
    assert all(
        found["fit"] == {"steps": 12, "alike": True, "resumed": True, "differs": True} for found in facts
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("ranks", [2, 3])
def test_gradients_on_a_gpu(ranks, tmp_path):
    torchrun(ranks, SCRIPT.with_name("terngrad_gpu_run.py"), str(tmp_path))
    expected = {**dict.fromkeys(MODES, True), "alike": dict.fromkeys(MODES, True), "half": True}
    for rank in range(ranks):
        facts = json.loads((tmp_path / f"facts-{rank}.json").read_text())
        assert facts == expected | {"resumed": True}


@pytest.mark.parametrize(
    "bad",
    [
        {"mode": "sixteen"},
        {"clip": 0.0},
        {"smallest": -1},
        {"site": 0},
        {"seed": -1},
        {"exempt": ["fc"]},
    ],
)
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(UsageError):
        TernGradState(nn.Linear(3, 3), **bad)


def test_state_without_ranks():
    state = TernGradState(nn.Linear(40, 40), feedback=True)
    state.load_state_dict({"step": 3, "seed": 9, "residuals": {"0": torch.ones(1600)}})
    found = state.state_dict()
    assert (found["step"], found["seed"], float(found["residuals"]["0"].sum())) == (3, 9, 1600.0)
    assert state.traffic + Traffic(1, 2.0, 3.0, 4.0, 5) == Traffic(1, 2.0, 3.0, 4.0, 5)


def test_the_method_does_nothing_alone(digits, mlp, same):
    from gracile.train import classification, fit

    plain, other = mlp(), mlp()
    for model, methods in ((plain, []), (other, [TernGrad("exact")])):
        fit(model, digits, classification(), epochs=1, methods=methods, device="cpu", progress=False)
    same(plain, other)
