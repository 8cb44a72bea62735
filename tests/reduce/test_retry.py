"""The retry policy on its own: what is pinned after which failure, and that it ends."""

from __future__ import annotations

from collections.abc import Collection

import pytest
import torch
from torch import Tensor, nn

from gracile.graph import CutRefusedError, Graph, watch
from gracile.reduce import UnprovenError
from gracile.reduce.retry import ROUNDS, narrow


@pytest.fixture
def graph() -> Graph:
    layers = [nn.Linear(4, 4) for _ in range(5)]
    return watch(nn.Sequential(*layers[:2], nn.Sequential(*layers[2:4]), layers[4]), torch.randn(2, 4))


def everything(graph: Graph) -> list[int]:
    return [unit for block in graph.blocks for unit in block.units[:2]]


def names(graph: Graph) -> list[str]:
    return [block.name for block in graph.blocks]


def test_success_at_once(graph: Graph) -> None:
    outcome = narrow(graph, everything, lambda graph, units: sorted(units))
    assert outcome.result == everything(graph)
    assert outcome.graph is graph
    assert outcome.refused == ()


def test_units_named_by_a_refused_cut_stay(graph: Graph) -> None:
    assert names(graph) == ["0", "1", "2.0", "2.1"]

    def attempt(graph: Graph, units: Collection[int]) -> list[str]:
        if "1" in names(graph):
            unit = next(block.units[0] for block in graph.blocks if block.name == "1")
            raise CutRefusedError(
                "cutting", got="five", expected="six", units=[unit], op="view", source="net.py:3"
            )
        return names(graph)

    outcome = narrow(graph, everything, attempt)
    assert outcome.result == ["0", "2.0", "2.1"]
    (refusal,) = outcome.refused
    assert (refusal.unit, refusal.operator, refusal.source, refusal.count) == ("1", "view", "net.py:3", 2)
    assert "five" in refusal.reason


def test_units_of_the_failing_operator_stay(graph: Graph) -> None:
    """The product of layer 2.0 receives the units of 1 and makes its own."""
    step = next(n for n, s in enumerate(graph.steps) if s.module == "2.0" and s.op.startswith("aten.addmm"))

    def attempt(graph: Graph, units: Collection[int]) -> list[str]:
        if "2.0" in names(graph):
            raise UnprovenError("differs", graph, step)
        return names(graph)

    outcome = narrow(graph, everything, attempt)
    assert outcome.result == ["0", "2.1"]
    assert [refusal.unit for refusal in outcome.refused] == ["1", "2.0"]
    assert all(refusal.operator == "aten.addmm.default" for refusal in outcome.refused)


def test_an_operator_that_touches_nothing_blames_its_module(graph: Graph) -> None:
    step = next(n for n, s in enumerate(graph.steps) if s.module == "2.0")

    def choose(graph: Graph) -> list[int]:
        return [unit for block in graph.blocks if block.name == "2.1" for unit in block.units[:1]]

    def attempt(graph: Graph, units: Collection[int]) -> None:
        raise UnprovenError("differs", graph, step)

    outcome = narrow(graph, choose, attempt)
    assert outcome.result is None
    assert [refusal.unit for refusal in outcome.refused] == ["2.1"]  # found in "2", around "2.0"


def test_an_operator_of_the_whole_model_that_touches_nothing_blames_the_next_that_does() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.b(self.a(x))
            return self.d(self.c(h * torch.tensor(2.0)))

    graph = watch(Scaled(), torch.randn(2, 4))
    step = next(n for n, s in enumerate(graph.steps) if s.op == "aten.lift_fresh.default")

    def attempt(graph: Graph, units: Collection[int]) -> None:
        raise UnprovenError("differs", graph, step)

    outcome = narrow(graph, everything, attempt)
    assert outcome.refused[0].unit == "b"


def test_unknown_causes_blame_everything_chosen(graph: Graph) -> None:
    def attempt(graph: Graph, units: Collection[int]) -> None:
        raise UnprovenError("differs", graph)

    outcome = narrow(graph, everything, attempt)
    assert outcome.result is None
    assert len(outcome.refused) == 4
    assert names(outcome.graph) == []


def test_other_errors_are_not_swallowed(graph: Graph) -> None:
    def attempt(graph: Graph, units: Collection[int]) -> None:
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError):
        narrow(graph, everything, attempt)


@pytest.mark.parametrize("proofs_fail", [True, False])
def test_it_ends(proofs_fail: bool) -> None:
    """Failed proofs are limited; refusals by the graph end with the last block."""
    count = ROUNDS + 10
    graph = watch(nn.Sequential(*[nn.Linear(2, 2) for _ in range(count + 1)]), torch.randn(1, 2))
    calls = []

    def attempt(graph: Graph, units: Collection[int]) -> None:
        calls.append(1)
        if proofs_fail:
            first = graph.blocks[0].name
            raise UnprovenError(
                "differs", graph, next(n for n, s in enumerate(graph.steps) if s.module == first)
            )
        raise CutRefusedError("cutting", got="one", expected="two", units=[min(units)])

    outcome = narrow(graph, everything, attempt)
    assert outcome.result is None
    assert len(calls) == (ROUNDS if proofs_fail else count)
