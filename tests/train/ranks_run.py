"""What test_ranks.py starts with torchrun: train on this rank in several ways, write down what came out."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.utils.data import TensorDataset

from gracile.algebra import Lasso, Term, filters
from gracile.errors import GracileError
from gracile.files import write_json, write_tensors
from gracile.train import (
    Checkpoints,
    JsonLines,
    Method,
    Run,
    Splits,
    Structure,
    classification,
    fit,
    ranks,
)
from gracile.train.step import Step

RANK = int(os.environ.get("RANK", "0"))


def data(samples: int = 203) -> Splits:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 12, generator=generator)
    y = (x @ torch.randn(12, 4, generator=generator)).argmax(1)
    # 131, 41 and 31 samples: nothing divides by two
    return Splits(*(TensorDataset(x[i], y[i]) for i in torch.arange(samples).split([131, 41, 31])))


def network(dropout: float = 0.0, norm: bool = False) -> nn.Module:
    torch.manual_seed(5 + RANK)  # ranks start apart: rank 0's weights count
    middle = nn.BatchNorm1d(16) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(12, 16), middle, nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))


class Act(Method):
    """Interrupt the run, or break one rank's weights."""

    def __init__(self, interrupt: int = -1, poison: int = -1) -> None:
        self.interrupt, self.poison = interrupt, poison

    def before_forward(self, run):
        if run.step == self.poison and run.rank == 1:
            with torch.no_grad():
                run.model[0].weight[0, 0] = float("nan")

    def mask(self, run):
        if run.step == self.interrupt:
            raise KeyboardInterrupt


def train(model, *methods, **more):
    return fit(
        model,
        data(),
        classification(),
        epochs=3,
        batch_size=20,
        methods=[Structure([Term(filters("0.weight"), Lasso(), 1e-2)]), *methods],
        clip=1.0,
        device="cpu",
        progress=False,
        log_every=3,
        **more,
    )


def exchanges() -> int:
    """How often the ranks exchange gradients in one step of five parts."""
    buckets = []

    def count(group, bucket):
        buckets.append(bucket.index())
        return default_hooks.allreduce_hook(group, bucket)

    model = network()
    wrapped = ranks.wrap(model, torch.device("cpu"), 2)
    wrapped.register_comm_hook(None, count)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1, rank=RANK, ranks=2)
    Step(run, wrapped, classification(), ghost_batch=2)(*data().train[:10])
    return len(buckets)


def main(folder: Path) -> None:
    def keep(name, model, history):
        write_tensors(folder / f"{name}-{RANK}.safetensors", model.state_dict())
        rows = [(e.train_loss, e.validation.loss, e.validation.score) for e in history.epochs]
        write_json(folder / f"{name}-{RANK}.json", [rows, history.test])

    model = network()
    keep("plain", model, train(model, loggers=[JsonLines(folder / f"log-{RANK}.jsonl")]))

    model = network()
    keep("ghost", model, train(model, ghost_batch=5))
    write_json(folder / f"exchanges-{RANK}.json", exchanges())

    model = network(dropout=0.5, norm=True)
    keep("whole", model, train(model, Act()))
    saving = Checkpoints(folder / "checkpoints", every=4)
    with contextlib.suppress(KeyboardInterrupt):
        train(network(dropout=0.5, norm=True), Act(interrupt=11), folder=saving)
    model = network(dropout=0.5, norm=True)
    keep("resumed", model, train(model, Act(), folder=saving))

    with contextlib.suppress(KeyboardInterrupt):
        train(network(), Act(interrupt=5), folder=Checkpoints(folder / "halves", every=4))

    try:
        train(network(), Act(poison=7))
    except GracileError as error:
        write_json(folder / f"error-{RANK}.json", str(error))
    gathered = ranks.gather(f"rank {RANK}".encode() * (RANK + 1), torch.device("cpu"), 2)
    write_json(folder / f"gathered-{RANK}.json", [part.decode() for part in gathered])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
