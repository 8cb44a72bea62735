"""Every importance: a finite number for each unit, what must not change it, and its value by brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph import Graph, watch
from gracile.reduce import Importance, activation, batch_norm_scale, magnitude, taylor
from gracile.zoo import LSTMLanguageModel


class Net(nn.Module):
    """Two layers and a batch norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.norm.weight.uniform_(-1, 1)
        model.norm.bias.uniform_(-1, 1)
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(0.5, 2)
    return model


INPUTS = [torch.randn(4, 5, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]


def loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def parts(model: Net, unit: int) -> list[tuple[nn.Parameter, tuple]]:
    """The slices of one unit, by hand."""
    return [
        (model.first.weight, (unit,)),
        (model.first.bias, (unit,)),
        (model.norm.weight, (unit,)),
        (model.norm.bias, (unit,)),
        (model.second.weight, (slice(None), unit)),
    ]


def by_magnitude(model: Net, unit: int) -> float:
    return sum(float(p[at].detach().square().sum()) for p, at in parts(model, unit)) ** 0.5


def by_batch_norm(model: Net, unit: int) -> float:
    return abs(float(model.norm.weight.detach()[unit]))


def by_taylor(model: Net, unit: int) -> float:
    """How the loss answers to scaling all slices of the unit by 1 + t, at t = 0."""
    total = 0.0
    for x in INPUTS:
        model.zero_grad()
        loss(model, x).backward()
        total += abs(sum(float((p.detach()[at] * p.grad[at]).sum()) for p, at in parts(model, unit)))
    model.zero_grad()
    return total / len(INPUTS)


@torch.no_grad()
def by_activation(model: Net, unit: int) -> float:
    seen = [torch.relu(model.norm(model.first(x)))[:, unit].abs().mean() for x in INPUTS]
    return float(torch.stack(seen).mean())


@dataclass(frozen=True)
class Case:
    """An importance and its value by hand."""

    importance: Importance
    by_hand: Callable[[Net, int], float]


CASES = {
    "magnitude": Case(magnitude, by_magnitude),
    "batch_norm_scale": Case(batch_norm_scale, by_batch_norm),
    "taylor": Case(taylor(loss, INPUTS), by_taylor),
    "activation": Case(activation(INPUTS), by_activation),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def units_of(graph: Graph) -> list[int]:
    """The index of each unit in the hidden layer."""
    return [unit.slices[0].indices[0] for unit in graph.units]


def test_equals_brute_force_on_two_layers(case: Case) -> None:
    model = net()
    graph = watch(model, INPUTS[0])
    expected = [case.by_hand(model, at) for at in units_of(graph)]
    found = case.importance(graph, model)
    assert found.shape == (len(graph.units),) == (6,)
    torch.testing.assert_close(found.double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-7)
    assert len({round(value, 6) for value in expected}) > 3  # it tells units apart


def test_permuted_units_have_permuted_importances(case: Case) -> None:
    model = net()
    before = case.importance(watch(model, INPUTS[0]), model)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        for tensor in (model.first.weight, model.first.bias, *model.norm.parameters()):
            tensor.copy_(tensor[order])
        for buffer in (model.norm.running_mean, model.norm.running_var):
            buffer.copy_(buffer[order])
        model.second.weight.copy_(model.second.weight[:, order])
    after = case.importance(watch(model, INPUTS[0]), model)
    torch.testing.assert_close(after, before[order])


def test_nothing_is_left_behind(case: Case) -> None:
    """Weights, statistics, gradients, flags and the random state are what they were."""
    model = net().train()
    model.first.weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    frozen = case.importance(watch(model, INPUTS[0]), model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert model.norm.training
    assert not model.first.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    model.first.weight.requires_grad_(True)  # frozen weights matter as much as others
    torch.testing.assert_close(case.importance(watch(model, INPUTS[0]), model), frozen)


def test_a_unit_that_does_nothing_matters_least(case: Case) -> None:
    model = net()
    with torch.no_grad():
        for tensor, at in parts(model, 2):
            tensor[at] = 0
    found = case.importance(watch(model, INPUTS[0]), model)
    assert found[2] == 0
    assert (found[[0, 1, 3, 4, 5]] >= 0).all()


@pytest.mark.parametrize("name", ["magnitude", "taylor", "activation"])
def test_recurrent_networks_and_those_without_batch_norm(name: str) -> None:
    torch.manual_seed(0)
    model = LSTMLanguageModel(20, (8, 6)).eval()
    tokens = torch.randint(20, (2, 5))
    given = {
        "magnitude": magnitude,
        "taylor": taylor(lambda m, x: m(x).square().mean(), [tokens]),
        "activation": activation([tokens, torch.randint(20, (3, 5))]),
    }
    graph = watch(model, tokens)
    found = given[name](graph, model)
    assert found.shape == (len(graph.units),)
    assert found.isfinite().all()
    assert (found > 0).all()


def test_activation_of_an_lstm_is_what_its_consumers_see() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"rnn": nn.RNN(3, 4, batch_first=True), "out": nn.Linear(4, 2)})
    model.forward = lambda x: model["out"](model["rnn"](x)[0])  # type: ignore[method-assign]
    x = torch.randn(2, 1, 3)  # one step: the first state is zero, so only the output layer sees the units
    graph = watch(model, x)
    found = activation([x])(graph, model)
    seen = model["rnn"](x)[0].detach().abs().mean((0, 1))
    ratio = found / seen[[u.slices[0].indices[0] for u in graph.units]].double()
    torch.testing.assert_close(ratio, ratio[0].expand(len(ratio)))


def test_a_block_without_batch_norm_is_ranked_by_magnitude() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1)
    ).eval()
    x = torch.randn(1, 1, 3, 3)
    graph = watch(model, x)
    found, norms = batch_norm_scale(graph, model), magnitude(graph, model)
    with_norm, without = (list(block.units) for block in graph.blocks)
    torch.testing.assert_close(found[with_norm], torch.ones(4).double())
    torch.testing.assert_close(found[without], norms[without])


def test_mistakes_are_explained() -> None:
    model = net()
    graph = watch(model, INPUTS[0])
    with pytest.raises(UsageError, match="no batch"):
        taylor(loss, [])
    with pytest.raises(UsageError, match="no batch"):
        activation([])
    with pytest.raises(UsageError, match="0-d"):
        taylor(lambda m, x: m(x), INPUTS)(graph, model)
    with pytest.raises(UsageError, match="finite"):
        taylor(lambda m, x: m(x).sum() * float("nan"), INPUTS)(graph, model)
    plain = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="batch norm"):
        batch_norm_scale(watch(plain, INPUTS[0]), plain)

    class Longer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.out = nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(x.shape[0]):
                x = self.layer(x)
            return self.out(x)

    looped = Longer()
    with pytest.raises(UsageError, match="operators that the example called"):
        activation([torch.randn(3, 5)])(watch(looped, torch.randn(1, 5)), looped)
