from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gracile import files
from gracile.train import Checkpoints, checkpoint, ranks

SCRIPT = Path(__file__).with_name("ranks_run.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The results of one torchrun with two gloo ranks on this machine."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "0"]
    subprocess.run(
        [*torchrun, "--master-addr", "127.0.0.1", "--master-port", str(port), str(SCRIPT), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=True,
        capture_output=True,
    )
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("ranks_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(folder, name, rank=0):
    weights = files.read_tensors(folder / f"{name}-{rank}.safetensors")
    return weights, json.loads((folder / f"{name}-{rank}.json").read_text())


def identical(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.numpy().tobytes() == b[name].numpy().tobytes(), name


@pytest.mark.parametrize("name", ["plain", "ghost", "whole", "resumed"])
def test_ranks_end_identical(folder, name):
    (a, first), (b, second) = results(folder, name, 0), results(folder, name, 1)
    identical(a, b)
    assert first == second


@pytest.mark.parametrize(("name", "ghost_batch"), [("plain", None), ("ghost", 5)])
def test_two_ranks_equal_one_with_the_same_total_batch(folder, script, name, ghost_batch):
    weights, (rows, test) = results(folder, name)
    model = script.network()
    history = script.train(model, ghost_batch=ghost_batch)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    alone = [(e.train_loss, e.validation.loss, e.validation.score) for e in history.epochs]
    for row, expected in zip(rows, alone, strict=True):
        assert row == pytest.approx(expected, rel=1e-4)
    assert test == pytest.approx({"loss": history.test.loss, "score": history.test.score}, rel=1e-4)


def test_gradients_are_exchanged_once_a_step_however_many_parts_it_has(folder):
    assert [json.loads((folder / f"exchanges-{rank}.json").read_text()) for rank in range(2)] == [1, 1]


def test_only_rank_0_writes(folder):
    assert (folder / "log-0.jsonl").exists()
    assert not (folder / "log-1.jsonl").exists()


def test_resumed_equals_uninterrupted_on_every_rank(folder):
    """With dropout: each rank has a generator of its own, and gets it back."""
    for rank in range(2):
        (a, first), (b, second) = results(folder, "whole", rank), results(folder, "resumed", rank)
        identical(a, b)
        assert first == second


def test_nan_on_one_rank_stops_both_at_the_same_step(folder):
    errors = [json.loads((folder / f"error-{rank}.json").read_text()) for rank in range(2)]
    assert errors[0] == errors[1]
    assert "not finite at step 8 (epoch 2)" in errors[0]


def test_bytes_of_different_lengths_are_gathered(folder):
    for rank in range(2):
        assert json.loads((folder / f"gathered-{rank}.json").read_text()) == ["rank 0", "rank 1rank 1"]


def test_another_number_of_ranks_goes_on_with_the_same_batches(folder, script):
    """What two ranks began and one ends, in the middle of an epoch, is what two would have ended."""
    saved = checkpoint.load(folder / "halves")
    assert (saved["standing"]["identity"]["ranks"], saved["standing"]["step"]) == (2, 4)
    weights, (rows, _) = results(folder, "plain")
    model = script.network()
    history = script.train(model, script.Act(), folder=Checkpoints(folder / "halves", every=4))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    for row, epoch in zip(rows, history.epochs, strict=True):
        assert row == pytest.approx(
            (epoch.train_loss, epoch.validation.loss, epoch.validation.score), rel=1e-4
        )


def test_another_number_of_ranks_draws_numbers_of_its_own(folder, script):
    model = script.network(0.5, True)
    script.train(model, script.Act(), folder=Checkpoints(folder / "checkpoints", every=4))
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_one_process_needs_no_group():
    assert ranks.join(torch.device("cpu")) == (0, 1)
    values = torch.tensor([1.0, 2.0])
    assert ranks.add_(values, 1) is values
    assert ranks.least_(values, 1) is values
    ranks.leave()
