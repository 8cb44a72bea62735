"""Sparse programs and the dense network under every dense engine, in turns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from gracile.cost import measure
from gracile.errors import RefusedError
from gracile.runtime import SparseCPU, SparseProgram, engines

DENSE = ("torch", "torchchannelslast", "onnxruntime", "openvino")
"""The rivals; those that are not installed are left out."""


@final
@dataclass(frozen=True)
class Timed:
    """Median seconds of one call, all measured in one interleaved run.

    Attributes:
        dense: engine -> seconds of the dense network.
        refused: engine -> why it cannot run the network.
        own: kind -> seconds of the sparse program.
        programs: kind -> what was timed.
    """

    dense: Mapping[str, float]
    refused: Mapping[str, str]
    own: Mapping[str, float]
    programs: Mapping[str, SparseProgram]

    @property
    def best(self) -> str:
        """The fastest dense engine."""
        return min(self.dense, key=self.dense.__getitem__)

    def faster(self, kind: str) -> float:
        """How many times faster than the fastest dense engine."""
        return self.dense[self.best] / self.own[kind]


def timed(networks: Mapping[str, nn.Module], example: Tensor, threads: int = 1, rounds: int = 15) -> Timed:
    """Compile the sparse networks and time them beside the dense one.

    Args:
        networks: by kind, in evaluation mode; ``"dense"`` is the one that engines run, the others are sparse.
        example: the input.
        threads: for every engine.
        rounds: interleaved repetitions.

    Raises:
        UsageError: a network in training mode, or too few rounds or threads.

    >>> pair = {"dense": nn.Linear(64, 64).eval(), "single": nn.Linear(64, 64).eval()}
    >>> import torch
    >>> found = timed(pair, torch.zeros(1, 64), rounds=5)
    >>> found.best in found.dense, found.own["single"] > 0
    (True, True)
    """
    calls: dict[str, Any] = {}
    refused = {}
    for engine in engines(DENSE).present:
        try:
            calls[engine.name] = engine.prepare(networks["dense"], example, threads=threads)
        except RefusedError as error:
            refused[engine.name] = error.got
    programs = {
        kind: SparseCPU(threads=threads, against=()).compile(network, example)
        for kind, network in networks.items()
        if kind != "dense"
    }
    found = measure({**calls, **programs}, example, rounds=rounds, threads=threads)
    seconds = {name: timing.median_s for name, timing in found.items()}
    return Timed(
        {name: seconds[name] for name in calls}, refused, {kind: seconds[kind] for kind in programs}, programs
    )
