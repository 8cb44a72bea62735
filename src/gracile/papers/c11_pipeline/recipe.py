"""C11: low rank, fewer units and few bits after each other, in both orders that are legal.

One dense network goes through *low rank, units, bits* and through *units, low rank, bits*. After every stage
the score, the parameters, the bytes stored and the bytes that one pass moves are counted; the last network is
timed beside the dense one. Energy, share and bits are the same for every seed; test data only report.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from torch import nn

from gracile.cost import measure
from gracile.errors import RefusedError
from gracile.papers.registry import Result, Scale
from gracile.pipeline import Bits, Elements, LowRank, Passage, Plan, Stage, Units, check, compose
from gracile.train import Splits, classification
from gracile.zoo import build, load

LOST = 1.0  # points of accuracy that all stages together may cost
SMALLER = 10.0  # times fewer bytes to store than the dense network in 32 bits


@dataclass(frozen=True)
class _Setting:
    """Data, the dense training, and the stages."""

    data: str
    plan: Plan
    rank: LowRank
    units: Units
    bits: Bits


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        "digits",
        Plan(dense=30, batch_size=32, rate=0.05),
        LowRank(0.9, tune=15),
        Units(0.4, learn=20, tune=15),
        Bits(8),
    ),
    "cpu": _Setting(
        "fashion-mnist",
        Plan(dense=4, rate=0.02),
        LowRank(0.9, tune=2),
        Units(0.4, learn=3, tune=2),
        Bits(8),
    ),
}


def run(scale: Scale, seed: int) -> list[Result]:
    """Scores, sizes and traffic of both orders; which orders are legal; measured latency."""
    setting = _SETTINGS[scale]
    splits = load(setting.data, seed=seed)
    torch.manual_seed(seed)
    dense = build("lenet", splits)
    orders: dict[str, list[Stage]] = {
        "rank, units, bits": [setting.rank, setting.units, setting.bits],
        "units, rank, bits": [setting.units, setting.rank, setting.bits],
    }
    passages, small = {}, {}
    plan = setting.plan
    for order, stages in orders.items():
        state, passages[order] = compose(dense, splits, classification(), stages, plan, seed=seed)
        small[order] = state.model
        plan = replace(plan, dense=0)  # the second starts from the same trained network
    results = [Result("dense", "test accuracy, dense", 100 * _first(passages).legs[0].test, "%")]
    for order, passage in passages.items():
        results += _gained(order, passage) + _timed(order, dense, small[order], splits)
    return results + _orders()


def _first(passages: dict[str, Passage]) -> Passage:
    return next(iter(passages.values()))


def _gained(order: str, passage: Passage) -> list[Result]:
    lost = 100 * (passage.legs[0].test - passage.legs[-1].test)
    stored = passage.times_fewer("stored")
    legs = [
        Result(f"{order}: {number}", f"test accuracy after stage {number}, {order}", 100 * leg.test, "%")
        for number, leg in enumerate(passage.legs[1:], start=1)
    ]
    return [
        *legs,
        Result(f"{order}: lost", f"accuracy lost, {order}", lost, "points", holds=lost <= LOST),
        Result(f"{order}: macs", f"dense MACs over reduced, {order}", passage.times_fewer("macs"), "x"),
        Result(
            f"{order}: stored",
            f"bytes stored, dense over reduced, {order}",
            stored,
            "x",
            holds=stored >= SMALLER,
        ),
        Result(
            f"{order}: moved",
            f"bytes moved in one pass, dense over reduced, {order}",
            passage.times_fewer("moved"),
            "x",
            claim="mismatch",
        ),
    ]


def _timed(order: str, dense: nn.Module, small: nn.Module, splits: Splits) -> list[Result]:
    image = splits.train[0][0].unsqueeze(0)
    results = []
    for batch in (1, 64):
        inputs = image.expand(batch, *image.shape[1:]).contiguous()
        timing = measure({"dense": copy.deepcopy(dense).eval(), "small": small.eval()}, inputs)["small"]
        what = f"measured speed-up, {order}, batch {batch}, {timing.threads} thread, weights in 32 bits"
        results.append(Result(f"{order}: latency {batch}", what, timing.speedup, "x"))
    return results


def _orders() -> list[Result]:
    """How many of the 64 orders of one to four different stages are legal."""
    stages = (LowRank(), Units(), Elements(), Bits())
    orders = [order for count in range(1, 5) for order in permutations(stages, count)]
    refused = 0
    for order in orders:
        try:
            check(order)
        except RefusedError:
            refused += 1
    return [
        Result("legal", f"legal orders of {len(orders)}", len(orders) - refused),
        Result("refused", "orders refused with a reason", refused),
    ]
