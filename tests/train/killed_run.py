"""A training run for test_resume.py to kill; it prints a line when training starts and when it is done."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from gracile.algebra import Lasso, Term, shapes
from gracile.files import write_json, write_tensors
from gracile.train import (
    Checkpoints,
    Freeze,
    JsonLines,
    Method,
    Splits,
    Structure,
    classification,
    cosine,
    fit,
)


class Slow(Method):
    """Takes its time, so that a kill comes at a random point of a run."""

    def start(self, run):
        print("training", flush=True)

    def after_step(self, run):
        time.sleep(0.01)


def main(folder: Path) -> None:
    torch.manual_seed(1)
    x = torch.randn(400, 16)
    y = (x @ torch.randn(16, 4)).argmax(1)
    parts = [TensorDataset(x[i], y[i]) for i in torch.arange(400).split([300, 50, 50])]
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 4))
    with torch.no_grad():
        model[4].weight[:, ::3] = 0
    history = fit(
        model,
        Splits(*parts),
        classification(),
        epochs=4,
        batch_size=12,
        schedule=cosine(warmup=0.1),
        methods=[Structure([Term(shapes("0.weight"), Lasso(), 2e-3)]), Freeze(), Slow()],
        clip=1.0,
        folder=Checkpoints(folder / "checkpoints", every=3),
        loggers=[JsonLines(folder / "log.jsonl")],
        log_every=5,
        device="cpu",
    )
    rows = [(e.number, e.step, e.train_loss, e.validation.loss, e.learning_rate) for e in history.epochs]
    write_json(folder / "history.json", [rows, history.selected, history.test, history.stopped])
    write_tensors(folder / "model.safetensors", model.state_dict())
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
