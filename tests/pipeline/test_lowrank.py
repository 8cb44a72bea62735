"""Ranks for whole networks: budgets that are kept, against all choices there are; and latencies, measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gracile.cost import count
from gracile.errors import RefusedError, UsageError
from gracile.pipeline import low_rank_to_latency, ranks_within
from gracile.reduce import factorize, load, pairs, paying, save
from gracile.zoo import build


def small() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Flatten(), nn.Linear(72, 9)
    )
    with torch.no_grad():  # spectra that differ
        model[2].weight *= torch.linspace(3, 0.1, 8)[:, None, None, None]
        model[4].weight *= torch.linspace(1, 0.01, 72)
    return model, torch.randn(2, 2, 5, 5)


def cost_of(model: nn.Module, x: Tensor, of: str) -> float:
    return float(getattr(count(model, x), of))


def lost(model: nn.Module, ranks: dict[str, int]) -> float:
    """Lost over kept energy, summed over layers, by NumPy."""
    total = 0.0
    for name, rank in ranks.items():
        s = np.linalg.svd(model.get_submodule(name).weight.detach().flatten(1).numpy(), compute_uv=False) ** 2
        total += s[rank:].sum() / s[:rank].sum()
    return total


@pytest.mark.parametrize("of", ["macs", "parameters"])
@pytest.mark.parametrize("left", [0.9, 0.75, 0.6, 0.45])
def test_the_budget_is_kept_and_little_is_lost(left, of):
    model, x = small()
    ranks = ranks_within(model, x, left=left, of=of)
    whole = cost_of(model, x, of)
    assert cost_of(factorize(model, ranks), x, of) <= left * whole
    most = paying(model)
    feasible = []
    for choice in itertools.product(*([None, *range(1, most[name] + 1)] for name in most)):
        named = {name: rank for name, rank in zip(most, choice, strict=True) if rank}
        if cost_of_ranks(model, x, of, named) <= left * whole:
            feasible.append(lost(model, named))
    assert lost(model, ranks) <= 1.6 * min(feasible) + 0.02  # greedy is near the best of all choices


def cost_of_ranks(model: nn.Module, x: Tensor, of: str, ranks: dict[str, int]) -> float:
    """Written out, so that a thousand choices cost nothing."""
    positions = {"0": 25 * len(x), "2": 9 * len(x), "4": len(x)}
    total = 0.0
    for name, count_ in positions.items():
        layer = model.get_submodule(name)
        outputs, inputs = layer.weight.flatten(1).shape
        weights = ranks[name] * (outputs + inputs) if name in ranks else outputs * inputs
        total += weights * count_ if of == "macs" else weights + outputs
    return total


def test_the_costs_of_the_test_are_right():
    model, x = small()
    for of in ("macs", "parameters"):
        for ranks in ({}, {"0": 2, "4": 3}):
            assert cost_of_ranks(model, x, of, ranks) == cost_of(factorize(model, ranks), x, of)


def test_budgets_of_a_residual_network_are_met_closely():
    torch.manual_seed(0)
    model, x = build("resnet20", (3, 16, 16)).eval(), torch.randn(1, 3, 16, 16)
    for of in ("macs", "parameters"):
        found = cost_of(factorize(model, ranks_within(model, x, left=0.5, of=of)), x, of)
        assert 0.47 <= found / cost_of(model, x, of) <= 0.5
    assert ranks_within(model, x, left=1.0) == {}
    only = ranks_within(model, x, left=0.95, layers=["layer3.0.conv2"])
    assert list(only) == ["layer3.0.conv2"]


def test_what_cannot_be_met_is_refused():
    model, x = small()
    with pytest.raises(RefusedError, match=r"at least 0\.1"):
        ranks_within(model, x, left=0.01)
    for wrong in ({"left": 0.0}, {"left": 1.5}, {"left": float("nan")}, {"left": 0.5, "of": "bytes"}):
        with pytest.raises(UsageError, match="choosing ranks"):
            ranks_within(model, x, **wrong)
    with pytest.raises(UsageError, match=r"'nowhere'; expected some of 0, 2, 4"):
        ranks_within(model, x, left=0.5, layers=["nowhere"])
    with pytest.raises(UsageError, match="no layer for which a rank pays"):
        ranks_within(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2), left=0.5)


class Idle(nn.Module):
    """Has a layer, and computes something else."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.layer, self.of = nn.Linear(20, 20), of

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.matrix_exp(x) if self.of == "unknown" else x + 1


@pytest.mark.parametrize("of", ["nothing", "unknown"])
def test_costs_that_are_nothing_or_unknown_are_refused(of):
    with pytest.raises(UsageError, match="known for all operators"):
        ranks_within(Idle(of), torch.zeros(4, 4), left=0.5)


class Wide(nn.Module):
    """Two layers that low rank makes faster, and one that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(600, 800), nn.Linear(800, 600), nn.Linear(600, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_a_real_network_meets_the_latency_that_was_asked(tmp_path):
    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(32, 600)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    steps: list[str] = []
    fitted = low_rank_to_latency(model, x, share=0.5, announce=steps.append)
    assert fitted.asked == 0.5
    assert fitted.ratio <= 1.1 * 0.5
    assert set(pairs(fitted.model)) == set(fitted.ranks) <= {"first", "second"}
    assert set(fitted.left_alone) == {"first", "second", "last"} - set(fitted.ranks)
    assert fitted.lowest < 0.5
    assert "1 thread" in str(fitted)
    assert len(steps) >= 3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    save(tmp_path, fitted.model, fitted.ranks)
    assert torch.equal(load(tmp_path, Wide()).eval()(x), fitted.model(x))


def test_a_latency_that_cannot_be_reached_is_refused_at_once():
    torch.manual_seed(0)
    model, x = Wide().eval(), torch.randn(4, 600)
    steps: list[str] = []
    with pytest.raises(RefusedError, match="or more: rank 1 everywhere") as error:
        low_rank_to_latency(model, x, latency_s=1e-7, announce=steps.append)
    assert "ms" in str(error.value)
    assert len(steps) == 1
    for wrong in ({}, {"share": 0.5, "latency_s": 1.0}, {"share": -1.0}):
        with pytest.raises(UsageError, match="fitting to a latency"):
            low_rank_to_latency(model, x, **wrong)
