"""C16: zeros and few bits together, with the bytes that finding the zeros costs.

From one trained network: *bits* alone; *single weights* pruned, then bits; *units* removed, then bits. The
share of units is a setting; the share of single weights is chosen so that about as many weights are left, so
that the two kinds of zeros are compared at equal weights.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial

import torch

from gracile.cost import traffic
from gracile.papers.registry import Result, Scale
from gracile.pipeline import Bits, Elements, Passage, Plan, Stage, State, Units, compose
from gracile.train import classification, cosine, fit
from gracile.zoo import build, load

LOST = 1.0  # points of accuracy that zeros and bits together may cost
SMALLER = 10.0  # times fewer bytes than the dense network in 32 bits


@dataclass(frozen=True)
class _Setting:
    """Data, epochs of the dense network, share of units, epochs of the stages, bits, learning rate."""

    data: str
    dense: int
    gone: float
    learn: int
    tune: int
    bits: int
    batch_size: int
    rate: float


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting("digits", dense=30, gone=0.5, learn=20, tune=15, bits=6, batch_size=32, rate=0.05),
    "cpu": _Setting("fashion-mnist", dense=4, gone=0.5, learn=4, tune=3, bits=6, batch_size=64, rate=0.02),
}


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracy, bytes stored and moved, and the share of them that are indices."""
    setting = _SETTINGS[scale]
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    dense = build("lenet", splits)
    plan = Plan(dense=0, batch_size=setting.batch_size, rate=setting.rate)
    fit(
        dense,
        splits,
        classification(),
        epochs=setting.dense,
        batch_size=setting.batch_size,
        optimizer=partial(torch.optim.SGD, lr=setting.rate, momentum=0.9),
        schedule=cosine(),
        select="last",
        seed=seed,
    )

    def through(*stages: Stage) -> tuple[State, Passage]:
        return compose(copy.deepcopy(dense), splits, classification(), stages, plan, seed=seed)

    bits = Bits(setting.bits)
    units = through(Units(setting.gone, setting.learn, setting.tune), bits)
    share = round(1 - units[1].legs[-1].parameters / units[1].legs[0].parameters, 2)
    single = through(Elements(share, setting.learn, setting.tune), bits)
    alone = through(bits)
    example = splits.train[0][0].unsqueeze(0)
    results = [
        Result("dense", "test accuracy, dense", 100 * alone[1].legs[0].test, "%"),
        Result("share", "weights gone in both", 100 * share, "%"),
    ]
    for name, (state, passage) in {"bits": alone, "single weights": single, "units": units}.items():
        rows = traffic(state.model, example, bits=state.bits)
        indices = sum(row.indices for row in rows) / sum(row.weights + row.indices for row in rows)
        results += _of(name, passage, indices, setting.bits)
    ratio = single[1].legs[-1].stored / units[1].legs[-1].stored
    return [
        *results,
        Result(
            "stored apart",
            "bytes stored with single weights pruned over those with units removed",
            ratio,
            "x",
            claim="indices",
            holds=ratio > 1,
        ),
    ]


def _of(name: str, passage: Passage, indices: float, bits: int) -> list[Result]:
    lost = 100 * (passage.legs[0].test - passage.legs[-1].test)
    stored = passage.times_fewer("stored")
    both = name != "bits"
    return [
        Result(
            f"{name}: lost",
            f"accuracy lost, {name}, {bits} bits",
            lost,
            "points",
            claim="together" if both else None,
            holds=lost <= LOST if both else None,
        ),
        Result(
            f"{name}: stored",
            f"bytes stored, dense over {name}, {bits} bits",
            stored,
            "x",
            claim="together" if both else None,
            holds=stored >= SMALLER if both else None,
        ),
        Result(
            f"{name}: moved",
            f"bytes moved in one pass, dense over {name}, {bits} bits",
            passage.times_fewer("moved"),
            "x",
        ),
        Result(f"{name}: indices", f"share of the stored bytes that are indices, {name}", 100 * indices, "%"),
    ]
