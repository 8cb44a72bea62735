from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, Adagrad, Adam, AdamW, RMSprop

from gracile import files
from gracile.errors import FileError, UsageError
from gracile.train import (
    Checkpoints,
    JsonLines,
    Method,
    checkpoint,
    classification,
    fit,
    randomness,
    step,
)


class Interrupt(Method):
    """Pull the plug in one step."""

    def __init__(self, at: int | None) -> None:
        self.at = at

    def after_step(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


class Noise(Method):
    """Draws from every generator, and keeps a state of its own."""

    def __init__(self) -> None:
        self.seen = torch.zeros(3, dtype=torch.float64)
        self.epochs = 0

    def gradients(self, run):
        drawn = [torch.rand(()).item(), np.random.random(), random.random()]  # noqa: NPY002
        self.seen += torch.tensor(drawn, dtype=torch.float64)
        run.model[0].weight.grad.add_(self.seen[0].float(), alpha=1e-4)

    def after_epoch(self, run, metrics):
        self.epochs += 1

    def state_dict(self):
        return {"seen": self.seen.clone(), "epochs": self.epochs}

    def load_state_dict(self, state):
        self.seen, self.epochs = state["seen"], state["epochs"]


def go(model, splits, folder, at=None, every=5, **more):
    noise = Noise()
    arguments = {
        "epochs": 3,
        "batch_size": 30,
        "schedule": step((0.3, 0.8)),
        "methods": [noise, Interrupt(at)],
        "folder": Checkpoints(folder, every=every, keep=1),
        "loggers": [JsonLines(folder / "log.jsonl")],
        "log_every": 4,
        "device": "cpu",
        "progress": False,
    }
    history = fit(model, splits, classification(), **(arguments | more))
    return history, noise


OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "adam": partial(Adam, lr=1e-2, amsgrad=True),
    "adamw": partial(AdamW, lr=1e-2),
    "rmsprop": partial(RMSprop, lr=1e-3, momentum=0.5, centered=True),
    "adagrad": partial(Adagrad, lr=1e-2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumed_equals_uninterrupted(digits, mlp, same, tmp_path, name):
    """Interrupted in the first epoch, on a checkpoint, mid-epoch, at an epoch's end, in the last step."""
    whole = mlp(0.5)
    expected, noise = go(whole, digits, tmp_path / "whole", optimizer=OPTIMIZERS[name])
    for at in (2, 5, 11, 16, 35) if name == "sgd" else (16,):
        folder = tmp_path / str(at)
        with pytest.raises(KeyboardInterrupt):
            go(mlp(0.5), digits, folder, at=at, optimizer=OPTIMIZERS[name])
        torch.manual_seed(999)  # a new process does not have the old one's generators
        random.seed(999)
        again = mlp(0.5)
        history, resumed = go(again, digits, folder, optimizer=OPTIMIZERS[name])
        same(whole, again)
        assert history == expected
        assert torch.equal(resumed.seen, noise.seen)
        assert resumed.epochs == noise.epochs == 3
        assert (folder / "log.jsonl").read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


class Unplug:
    """A logger that pulls the plug when an epoch has been logged, but not saved."""

    def start(self, step):
        pass

    def write(self, kind, step, values):
        if kind == "epoch" and values["epoch"] == 2:
            raise KeyboardInterrupt

    def close(self):
        pass


@pytest.mark.parametrize("every", [0, 4, 5])  # 4 divides the 12 steps of an epoch
def test_interrupted_between_an_epoch_and_its_checkpoint(digits, mlp, same, tmp_path, every):
    whole, again = mlp(0.5), mlp(0.5)
    expected, _ = go(whole, digits, tmp_path / "whole")
    log = tmp_path / "cut" / "log.jsonl"
    with pytest.raises(KeyboardInterrupt):
        go(mlp(0.5), digits, tmp_path / "cut", every=every, loggers=[JsonLines(log), Unplug()])
    history, _ = go(again, digits, tmp_path / "cut", every=every)
    same(whole, again)
    assert history == expected
    assert log.read_text() == (tmp_path / "whole" / "log.jsonl").read_text()


def test_a_finished_run_is_not_trained_again(digits, mlp, same, tmp_path):
    a, b = mlp(), mlp()
    first, _ = go(a, digits, tmp_path)
    before = (tmp_path / "log.jsonl").read_text()
    second, _ = go(b, digits, tmp_path, at=0)  # would be interrupted if it took a step
    same(a, b)
    assert first == second
    assert (tmp_path / "log.jsonl").read_text() == before


def test_early_stop_survives_a_resume(digits, mlp, tmp_path):
    more = {"epochs": 40, "patience": 2, "optimizer": partial(SGD, lr=0.5)}
    whole, _ = go(mlp(), digits, tmp_path / "whole", **more)
    assert "no better" in whole.stopped
    with pytest.raises(KeyboardInterrupt):
        go(mlp(), digits, tmp_path / "cut", at=whole.epochs[-1].step - 3, **more)
    resumed, _ = go(mlp(), digits, tmp_path / "cut", **more)
    assert resumed == whole


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 4}, "epochs 4"),
        ({"batch_size": 20}, "batch size 20"),
        ({"seed": 1}, "seed 1"),
        ({"methods": []}, "methods"),
        ({"clip": 1.0}, "clip 1.0"),
        ({"optimizer": partial(SGD, lr=0.01)}, r"learning rates \[0.01\]"),
        ({"optimizer": partial(Adam, lr=0.05)}, "optimizer Adam"),
        ({"optimizer": partial(SGD, lr=0.05, momentum=0.5)}, "optimizer settings.*momentum"),
    ],
)
def test_other_arguments_are_refused(digits, mlp, tmp_path, change, named):
    go(mlp(), digits, tmp_path)
    with pytest.raises(UsageError, match=named):
        go(mlp(), digits, tmp_path, **change)


def test_another_model_is_refused_and_left_as_it_was(digits, mlp, same, tmp_path):
    go(mlp(), digits, tmp_path)

    def wider():
        torch.manual_seed(0)
        return nn.Sequential(*[*mlp()][:4], nn.Linear(32, 11))

    model, fresh = wider(), wider()
    with pytest.raises(UsageError, match=r"4.bias"):
        go(model, digits, tmp_path)
    same(model, fresh)


def broken(state: dict, how: str) -> dict:
    match how:
        case "methods":
            state["methods"][0] = {"seen": 3}
        case "optimizer state":
            state["optimizer"]["param_groups"] = []
        case "optimizer type":
            state["optimizer"] = "SGD"
        case "learning rate":
            state["optimizer"]["param_groups"][0]["lr"] = "0.1"
        case "best":
            state["best"] = {"0.weight": torch.zeros(2)}
        case "random":
            state["ranks"] = ["{}"]
        case "generator":
            state["ranks"] = [state["ranks"][0].replace('"torch":"', '"torch":"zz')]
        case "standing":
            state["standing"]["step"] = "7"
        case "epochs":
            state["standing"]["epochs"] = [{"number": 1}]
        case "missing":
            del state["model"]
        case "sums":
            state["ranks"] = [re.sub(r'"sums":.*', '"sums":[1,2,3]}', state["ranks"][0])]
    return state


@pytest.mark.parametrize(
    "how",
    [
        "methods",
        "optimizer state",
        "best",
        "optimizer type",
        "learning rate",
        "random",
        "generator",
        "standing",
        "epochs",
        "missing",
        "sums",
    ],
)
def test_a_checkpoint_of_wrong_types_is_refused_whole(digits, mlp, same, tmp_path, how):
    """Nothing is half-loaded: model, method and generators stay what they were."""
    go(mlp(), digits, tmp_path)
    checkpoint.save(tmp_path, broken(checkpoint.load(tmp_path), how), step=99)
    model = mlp()
    noise = Noise()
    with pytest.raises(UsageError if how == "best" else FileError):
        go(model, digits, tmp_path, methods=[noise, Interrupt(0)])
    same(model, mlp())
    assert torch.equal(noise.seen, torch.zeros(3, dtype=torch.float64))


def test_generators_are_restored():
    randomness.seed(5)
    torch.randn(3), np.random.standard_normal(), random.gauss(0, 1)  # noqa: NPY002
    snapshot = randomness.capture()
    first = torch.randn(3), np.random.standard_normal(), random.gauss(0, 1)  # noqa: NPY002
    randomness.restore(snapshot)
    second = torch.randn(3), np.random.standard_normal(), random.gauss(0, 1)  # noqa: NPY002
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]


SCRIPT = Path(__file__).with_name("killed_run.py")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def launch(folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_killed_at_random_moments_equals_uninterrupted(tmp_path):
    """SIGKILL, three times, at random: between steps, in them, and while a checkpoint is written."""
    (tmp_path / "whole").mkdir()
    whole = launch(tmp_path / "whole")
    generator = random.Random(os.getpid())
    folder = tmp_path / "killed"
    progress = []
    for _ in range(3):
        with launch(folder) as run:
            assert run.stdout.readline() == "training\n"
            time.sleep(generator.uniform(0.05, 0.6))
            run.send_signal(signal.SIGKILL)
            run.wait(timeout=60)
        if checkpoint.exists(folder / "checkpoints"):
            progress.append(checkpoint.load(folder / "checkpoints")["standing"]["step"])
    assert progress, "no run lived long enough to save"
    assert progress == sorted(progress)
    with launch(folder) as last:
        assert last.wait(timeout=120) == 0
    with whole:
        assert whole.wait(timeout=120) == 0
    expected, found = (
        files.read_tensors(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert value.numpy().tobytes() == found[name].numpy().tobytes(), name
    for name in ("history.json", "log.jsonl"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    steps = [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
