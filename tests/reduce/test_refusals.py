"""What cannot be proven is narrowed or refused, with unit, operator and line; wrong arguments are named."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError, UsageError
from gracile.graph import Cut, Graph, watch
from gracile.reduce import Refusal, random_units, remove

Mask = Callable[[nn.Module, Cut], nn.Module]


class Literal(nn.Module):
    """A size written into the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu().view(-1, 8)  # stays 8
        return self.c(self.b(h).relu())


class Width(nn.Module):
    """A constant that follows from a width and is seen by no label: only numbers can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        h = h / len(h[0]) ** 0.5
        return self.c(self.b(h).relu())


class Assertive(nn.Module):
    """Python that raises when a size changes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        if int(str(h.shape[1])) != 8:
            raise ValueError("eight, please")
        return self.c(self.b(h).relu())


@pytest.mark.parametrize("kind", [Literal, Width, Assertive])
def test_narrowed_to_what_can_be_proven(kind: type[nn.Module], masked: Mask) -> None:
    torch.manual_seed(0)
    model = kind().double()
    x, other = torch.randn(3, 4).double(), torch.randn(5, 4).double()
    reduction = remove(model, x, units=partial(random_units, fraction=0.5))
    assert reduction.model.a.weight.shape == (8, 4)
    assert reduction.model.b.weight.shape == (3, 8)
    assert [refusal.unit for refusal in reduction.refused] == ["a"]
    assert reduction.refused[0].count == 4
    assert reduction.refused[0].source.startswith("test_refusals.py:")
    with torch.no_grad():
        torch.testing.assert_close(reduction.model(other), masked(model, reduction.cut)(other))


def test_refusal_names_unit_operator_and_line() -> None:
    torch.manual_seed(0)
    model = Literal()

    def first_layer(graph: Graph, model: nn.Module) -> list[int]:
        return [u for block in graph.blocks if block.name == "a" for u in block.units[:3]]

    with pytest.raises(RefusedError) as caught:
        remove(model, torch.randn(3, 4), units=first_layer)
    message = str(caught.value)
    lines = Path(__file__).read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "# stays 8" in text)
    assert f"test_refusals.py:{line}" in message
    assert "view" in message
    assert "3 chosen" in message


def test_any_single_unit_can_be_proven() -> None:
    """However silent a unit is on the example, behind a relu, some jitter wakes it."""
    torch.manual_seed(0)
    for _ in range(5):
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).double()
        for unit in range(8):
            with torch.no_grad():
                model[0].bias[unit] = -10
            reduction = remove(model, torch.randn(1, 4).double(), units=lambda graph, model, u=unit: [u])
            assert reduction.verdict.moved > 1e-3


def test_a_choice_that_does_not_narrow_ends() -> None:
    with pytest.raises(RefusedError, match="written in the code"):
        remove(Literal(), torch.randn(3, 4), units=lambda graph, model: [7])


@pytest.mark.parametrize(
    ("model", "units", "message"),
    [
        (nn.Linear(2, 2), [1], "function"),
        (torch.relu, random_units, "an nn.Module"),
        (nn.Linear(2, 2, device="meta"), random_units, "meta device"),
        (nn.Linear(2, 2), lambda graph, model: [-1], "numbers from 0"),
    ],
)
def test_wrong_arguments(model: nn.Module, units: Callable[..., list[int]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        remove(model, torch.randn(3, 2), units=units)


class Locked(nn.Linear):
    """Holds what cannot be copied."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (lambda graph, model: None, "NoneType"),
        (lambda graph, model: ["a"], "got a .str."),
        (lambda graph, model: [1.7], "1.7"),
        (lambda graph, model: [True, False, True], "turns a mask into numbers"),
        (lambda graph, model: torch.arange(8) > 5, "turns a mask into numbers"),
        (lambda graph, model: torch.ones(2, 2).bool(), "numbers of units"),
    ],
)
def test_a_mask_or_a_fraction_is_no_list_of_units(units: Callable[..., list[int]], message: str) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(UsageError, match=message):
        remove(model, torch.randn(3, 4), units=units)
    with pytest.raises(UsageError, match=message):
        watch(model, torch.randn(3, 4)).cut(units(None, None))


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf"), "small"])
def test_a_tolerance_is_a_finite_number(tolerance: float) -> None:
    with pytest.raises(UsageError, match="tolerance"):
        remove(nn.Linear(2, 2), torch.randn(3, 2), tolerance=tolerance)


def test_a_model_that_cannot_be_copied_is_named() -> None:
    with pytest.raises(UsageError, match=r"copying Locked.*lock"):
        remove(Locked(), torch.randn(3, 2))


def test_a_refusal_without_operator_reads_well() -> None:
    assert str(Refusal("fc.weight[0]", "", "net.py:3", "nothing is proven")).endswith("proven (net.py:3)")
