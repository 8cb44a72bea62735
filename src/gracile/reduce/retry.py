"""Policy when a cut fails: keep what stands in the way, choose again, and give up after a bounded number.

Every failure pins a block, so refusals by the graph, which cost nothing, come to an end by themselves;
failed verifications cost forward passes and are limited to ``ROUNDS``.

The watch is not repeated. What stands in the way is named by the graph (a size that cannot be had) or by
verification (the first operator that differs): the blocks of units that this operator touches stay from then
on; if it touches none, those of its module, of the module around it, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from gracile.graph import CutRefusedError, Graph, Step
from gracile.reduce.refusal import Refusal
from gracile.reduce.replay import UnprovenError

ROUNDS = 20
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The last graph, what the attempt gave (None when nothing could go), and what had to stay on the way."""

    graph: Graph
    result: T | None
    refused: tuple[Refusal, ...]


def narrow(
    graph: Graph, choose: Callable[[Graph], Collection[int]], attempt: Callable[[Graph, Collection[int]], T]
) -> Outcome[T]:
    """Call ``attempt`` with chosen units until it succeeds, pinning after every failure what was to blame."""
    refused: list[Refusal] = []
    failures = 0
    while failures < ROUNDS and (units := choose(graph)):
        try:
            return Outcome(graph, attempt(graph, units), tuple(refused))
        except (CutRefusedError, UnprovenError) as error:
            failures += isinstance(error, UnprovenError)
            chosen = set(units)
            named = error.units if isinstance(error, CutRefusedError) else _touched(graph, units, error.step)
            blocks = {graph.units[unit].block for unit in (chosen & set(named)) or chosen}
            for b in sorted(blocks):
                block = graph.blocks[b]
                count = len(chosen & set(block.units))
                refused.append(
                    Refusal(block.name, error.op, error.source or block.source, error.got, max(count, 1))
                )
            pinned = [unit for b in blocks for unit in graph.blocks[b].units]
            graph = graph.pin(pinned, str(error))
    return Outcome(graph, None, tuple(refused))


def _touched(graph: Graph, units: Collection[int], number: int) -> set[int]:
    """Which of ``units`` the step handles, or its module, or the modules around that, or a later step."""
    if number < 0:
        return set(units)
    chosen = np.array(sorted(units))
    path = graph.steps[number].module
    steps = [graph.steps[number]]
    while True:
        found: set[int] = set()
        for step in steps:
            found |= _handled(graph, step, chosen)
        if found or not path:
            break
        steps = [step for step in graph.steps if f"{step.module}.".startswith(f"{path}.")]
        path = path.rpartition(".")[0]
    later = (_handled(graph, step, chosen) for step in graph.steps[number:])  # where a wrong number is used
    return found or next(filter(None, later), set())


def _handled(graph: Graph, step: Step, chosen: npt.NDArray[np.int64]) -> set[int]:
    found: set[int] = set()
    for given in (*step.inputs, *step.outputs):
        for axis in given.labels:
            owners = graph.owners(axis)
            if owners is not None:
                found |= set(owners[np.isin(owners, chosen)].tolist())
    return found
