"""Networks under engines, measured in turns: what a claim of speed has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

from torch import nn

from gracile.cost import Timing, against, measure
from gracile.errors import RefusedError
from gracile.runtime.engines import Call, Engine
from gracile.runtime.onnx_engines import OnnxEngine, current, once
from gracile.runtime.roster import OTHERS, Roster, select
from gracile.runtime.sparse_engine import SparseKernels

ENGINES: tuple[Engine, ...] = (*OTHERS, SparseKernels())
"""All that are known, installed or not."""


@final
@dataclass(frozen=True)
class Measured:
    """One network under one engine."""

    network: str
    engine: str
    timing: Timing


@final
@dataclass(frozen=True)
class Comparison:
    """Networks and engines that took turns.

    Attributes:
        rows: the ratios in them (``speedup``) are to ``baseline``.
        baseline: network and engine: of the first network's dense engines the one with the least median.
        refused: (network, engine, why it could not run).
    """

    rows: tuple[Measured, ...]
    baseline: tuple[str, str]
    refused: tuple[tuple[str, str, str], ...]

    def fastest(self, network: str) -> Measured | None:
        """The row of ``network`` with the least median; None if no engine could run it."""
        own = [row for row in self.rows if row.network == network]
        return min(own, key=lambda row: row.timing.median_s, default=None)


def engines(names: Iterable[str] | None = None, known: Iterable[Engine] = ENGINES) -> Roster:
    """Which engines can be used here; see :func:`gracile.runtime.roster.select`.

    >>> [engine.name for engine in engines(["torch"]).present]
    ['torch']
    """
    return select(names, known)


def compare(
    networks: Mapping[str, nn.Module],
    *example: Any,
    engines: Sequence[Engine],
    rounds: int = 30,
    threads: int = 1,
) -> Comparison:
    """Time every network under every engine, in turns; see :func:`gracile.cost.measure`.

    Args:
        networks: name -> network in evaluation mode; the first is the one that others are measured by.
        example: tensors on the CPU, or tuples of them.
        engines: that are installed.
        rounds: samples of each.
        threads: that each may use.

    Raises:
        UsageError: a network is in training mode, or too few rounds or threads.
        RefusedError: no dense engine can run the first network.

    >>> import torch
    >>> sizes = {"wide": nn.Linear(512, 512).eval(), "narrow": nn.Linear(512, 8).eval()}
    >>> found = compare(sizes, torch.zeros(2, 512), engines=engines(["torch"]).present, rounds=5)
    >>> found.baseline, found.fastest("narrow").timing.speedup > 1
    (('wide', 'torch'), True)
    """
    calls: dict[str, Call] = {}
    pairs: dict[str, tuple[str, Engine]] = {}
    refused = []
    shared = once(current)
    for network, model in networks.items():
        for engine in engines:
            used = engine
            if isinstance(engine, OnnxEngine) and engine.export is current:
                used = replace(engine, export=shared)
            name = f"{network}, {engine.name}"
            try:
                calls[name] = used.prepare(model, *example, threads=threads)
            except RefusedError as error:
                refused.append((network, engine.name, error.got))
            else:
                pairs[name] = network, engine
    first = next(iter(networks), "")
    dense = [name for name, (network, engine) in pairs.items() if network == first and engine.dense]
    if not dense:
        raise RefusedError(
            "comparing engines",
            got="; ".join(f"{engine}: {why}" for network, engine, why in refused if network == first)
            or "no engine",
            expected=f"a dense engine that runs '{first}'",
        )
    timings = measure(calls, *example, rounds=rounds, threads=threads)
    best = min(dense, key=lambda name: timings[name].median_s)
    return Comparison(
        tuple(
            Measured(pairs[name][0], pairs[name][1].name, timing)
            for name, timing in against(timings, best).items()
        ),
        (first, pairs[best][1].name),
        tuple(refused),
    )
