"""What every Method promises; a new one adds a row to ROWS.

Run as a program, ``test_methods.py FOLDER`` trains every row on this rank and writes the weights.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from gracile import files
from gracile.algebra import (
    L1,
    Attraction,
    GradientThreshold,
    HoyerSquare,
    Hysteresis,
    Lasso,
    Term,
    Threshold,
    channels,
    elements,
    filters,
    layer,
)
from gracile.cost import Machine, Roof
from gracile.reduce import factorize
from gracile.train import (
    MMD,
    Activations,
    Adapt,
    Adversarial,
    Alignment,
    Checkpoints,
    ClipRank,
    Coral,
    Entropy,
    Floor,
    Force,
    Freeze,
    Guided,
    Method,
    Prune,
    Reach,
    Run,
    SmoothOut,
    Splits,
    Structure,
    Surgery,
    Workers,
    classification,
    fit,
    tanh_ramp,
    warmup,
)


@dataclass(frozen=True)
class Row:
    """One method: at strength 0 (or its equal), and at work; and what it needs the network to be."""

    name: str
    neutral: Callable[[], Method]
    active: Callable[[], Method]
    ready: Callable[[nn.Module], nn.Module] = lambda model: model

    def network(self, zeros: bool = False) -> nn.Module:
        return self.ready(network(zeros))


def structure(mode: str, strength: float) -> Callable[[], Method]:
    penalty = HoyerSquare() if mode == "loss" else Lasso()
    terms = [
        Term(filters("0.weight"), Lasso(), strength),
        Term(layer("3.weight") if mode == "loss" else channels("3.weight"), penalty, strength),
    ]
    return lambda: Structure(terms, mode, schedule=warmup(0.2))


def force(strength: float, **more: str) -> Callable[[], Method]:
    attractions = [Attraction(filters(name), strength, **more) for name in ("0.weight", "3.weight")]
    return lambda: Force(attractions, schedule=warmup(0.2))


def activations(strength: float) -> Callable[[], Method]:
    terms = [Term(elements("1"), L1(), strength), Term(filters("0"), HoyerSquare(), strength)]
    return lambda: Activations(terms, schedule=warmup(0.2))


def guided(prune: Callable[[str], Sequence[Method]], every: int) -> Callable[[], Method]:
    """One layer that is done at density 0.7, one that is given up, one that never pays."""
    rows = [
        Roof("0", "0.weight", 1e9, 0.7e9, 16, Machine("kind", 1e9, 1e9, alpha=1.0)),
        Roof("3", "3.weight", 1e9, 1e6, 16, Machine("unkind", 1e9, 1e9, alpha=10.0)),
        Roof("0", "0.bias", 1e9, 2e9, 16, Machine("slow", 1e9, 1e9, alpha=10.0)),
    ]
    return lambda: Guided(rows, prune, every=every, settled=1.0, patience=1)


def l1(strength: float) -> Callable[[str], Sequence[Method]]:
    return lambda name: [Structure([Term(elements(name), Lasso(), strength)], threshold=5e-3)]


def surgery(threshold: float) -> Callable[[str], Sequence[Method]]:
    return lambda name: [Surgery([name], Threshold(threshold))]


def adapt(*alignments: Alignment) -> Callable[[], Method]:
    images = torch.tensor(load_digits().images[400:560], dtype=torch.float32).flatten(1)
    return lambda: Adapt(1 - images / 16, at="1", alignments=alignments, seed=2)


FLOOR = Floor(0.2, classification())

ROWS = [
    *(Row(f"structure-{m}", structure(m, 0.0), structure(m, 3e-3)) for m in ("gradient", "proximal", "loss")),
    # A network without zeros has nothing to freeze; the active rows start with some.
    Row("freeze-elements", Freeze, Freeze),
    Row("reach", lambda: Reach([filters("0.weight")], 0.0), lambda: Reach([filters("0.weight")], 0.6)),
    Row(
        "reach-floor",
        lambda: Reach([filters("0.weight")], 0.0, floor=FLOOR),
        lambda: Reach([filters("0.weight")], 0.9, floor=FLOOR),
    ),
    Row("freeze-groups", lambda: Freeze([filters("0.weight")]), lambda: Freeze([filters("0.weight")])),
    Row("force-l2", force(0.0), force(0.05)),
    Row("force-l1", force(0.0, kind="l1"), force(0.05, kind="l1")),
    Row("force-adaptive", force(0.0, scale="adaptive"), force(0.3, scale="adaptive")),
    Row("smoothout-uniform", lambda: SmoothOut(0.0), lambda: SmoothOut(0.02, schedule=tanh_ramp())),
    Row(
        "clip-rank",
        lambda: ClipRank(0.0, every=5),
        lambda: ClipRank(0.1, every=5),
        ready=lambda model: factorize(model, {"0": 24}),
    ),
    Row("smoothout-filter", lambda: SmoothOut(0.0, "filter"), lambda: SmoothOut(0.1, "filter", seed=3)),
    Row("activations", activations(0.0), activations(0.03)),
    Row(
        "prune",
        lambda: Prune(["0.weight"], Threshold(0.0)),
        lambda: Prune(["0.weight", "3.weight"], GradientThreshold(2e-2, 2.0)),
    ),
    Row(
        "surgery",
        lambda: Surgery(["0.weight"], Threshold(0.0)),
        lambda: Surgery(["0.weight", "3.weight"], Hysteresis(0.05, 0.055)),
    ),
    Row("adapt-mmd", adapt(MMD(0.0)), adapt(MMD(1.0, schedule=warmup(0.2)))),
    Row("adapt-coral", adapt(Coral(0.0)), adapt(Coral(3.0))),
    Row("adapt-entropy", adapt(Entropy(0.0), MMD(0.0)), adapt(Entropy(0.2), MMD(0.5))),
    Row("adapt-adversarial", adapt(Adversarial(0.0)), adapt(Adversarial(0.5, hidden=8, rate=3e-3))),
    Row("guided-l1", guided(l1(0.0), 1), guided(l1(5e-2), 1)),
    Row("guided-surgery", guided(surgery(0.0), 2), guided(surgery(0.06), 2)),
    Row("workers", lambda: Workers(1, "fp32"), lambda: Workers(1, "exact", seed=3)),
]


def network(zeros: bool = False) -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))
    if zeros:
        with torch.no_grad():
            model[0].weight[::3] = 0
            model[3].weight[:, ::5] = 0
    return model


def splits() -> Splits:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    parts = torch.arange(400).split([240, 80, 80])
    return Splits(*(TensorDataset(x[i], y[i]) for i in parts))


def train(model: nn.Module, *methods: Method, folder: Path | None = None) -> None:
    fit(
        model,
        splits(),
        classification(),
        epochs=3,
        batch_size=24,
        methods=methods,
        clip=1.0,
        select="last",
        folder=Checkpoints(folder, every=4) if folder else None,
        device="cpu",
        progress=False,
    )


def without_dropout(model: nn.Module) -> nn.Module:
    model[2].p = 0.0  # every rank draws its own
    return model


def bits(model: nn.Module) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


rows = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


@rows
def test_strength_zero_is_bit_identical_to_plain_training(row):
    plain, with_method = row.network(), row.network()
    train(plain)
    train(with_method, row.neutral())
    assert bits(plain) == bits(with_method)


@rows
def test_at_work_it_makes_a_difference(row):
    plain, with_method = row.network(zeros=True), row.network(zeros=True)
    train(plain)
    train(with_method, row.active())
    assert bits(plain) != bits(with_method)


class Interrupt(Method):
    def __init__(self, at: int) -> None:
        self.at = at

    def mask(self, run: Run) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt


@rows
def test_resumed_equals_uninterrupted(row, tmp_path):
    whole = row.network(zeros=True)
    train(whole, row.active(), Interrupt(-1))
    with pytest.raises(KeyboardInterrupt):
        train(row.network(zeros=True), row.active(), Interrupt(17), folder=tmp_path)
    resumed = row.network()  # other weights: all that matters is in the checkpoint
    train(resumed, row.active(), Interrupt(-1), folder=tmp_path)
    assert bits(whole) == bits(resumed)


@rows
def test_state_survives_a_round_trip(row):
    model = row.network(zeros=True)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=3)
    first, second = row.active(), row.active()
    first.start(run)
    second.start(run)
    second.load_state_dict(first.state_dict())
    assert str(first.state_dict()) == str(second.state_dict())


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory) -> Callable[[str, int], dict[str, Tensor]]:
    """The weights of every row after training on two ranks, by name and rank."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return lambda name, rank: files.read_tensors(folder / f"{name}-{rank}.safetensors")


@rows
def test_two_ranks_are_identical_and_equal_one(row, on_two_ranks):
    first, second = on_two_ranks(row.name, 0), on_two_ranks(row.name, 1)
    alone = without_dropout(row.network(zeros=True))
    train(alone, row.active())
    for name, value in alone.state_dict().items():
        assert first[name].numpy().tobytes() == second[name].numpy().tobytes()
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-5)


def main(folder: Path) -> None:
    for row in ROWS:
        model = without_dropout(row.network(zeros=True))
        train(model, row.active())
        files.write_tensors(folder / f"{row.name}-{os.environ['RANK']}.safetensors", model.state_dict())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
