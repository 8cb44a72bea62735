from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from gracile.errors import UsageError
from gracile.train import Splits, Task, classification, evaluate, fit, sharpness

BOX = 5e-4


class Bowl(nn.Module):
    """L(w) = 1/2 sum h (w - m)^2, in two tensors."""

    def __init__(self, curvature, away):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.h = curvature * torch.exp(2 * torch.randn(300, generator=generator, dtype=torch.float64))
        self.m = torch.randn(300, generator=generator, dtype=torch.float64)
        w = self.m + away * torch.randn(300, generator=generator, dtype=torch.float64)
        self.first = nn.Parameter(w[:100].reshape(4, 25).clone())
        self.rest = nn.Parameter(w[100:].clone())

    def forward(self, x):
        w = torch.cat([self.first.flatten(), self.rest])
        return x.sum() * 0 + 0.5 * (self.h * (w - self.m).square()).sum()


AS_IT_IS = Task(loss=lambda output, target: output, items=lambda output, target: output, name="value")
NOTHING = TensorDataset(torch.zeros(4, 1), torch.zeros(4))


@pytest.mark.parametrize("away", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("curvature", [1e-3, 1.0, 1e3])
def test_a_bowl_has_its_maximum_in_a_known_corner(curvature, away):
    """Away from the minimum, where |w - m| and the box add up; also at the minimum, where the slope is 0."""
    bowl = Bowl(curvature, away)
    w = torch.cat([bowl.first.flatten(), bowl.rest]).detach()
    before = 0.5 * (bowl.h * (w - bowl.m) ** 2).sum()
    highest = 0.5 * (bowl.h * ((w - bowl.m).abs() + BOX * (w.abs() + 1)) ** 2).sum()
    expected = 100 * (highest - before) / (1 + before)
    found = sharpness(bowl, NOTHING, AS_IT_IS)
    assert found == pytest.approx(expected.item(), rel=1e-2)
    assert found <= expected * (1 + 1e-9)
    thorough = sharpness(bowl, NOTHING, AS_IT_IS, iterations=200)
    assert thorough == pytest.approx(expected.item(), rel=1e-6)


def test_a_plane_has_none_and_a_slope_has_that_of_its_steepest_corner():
    class Plane(nn.Module):
        def __init__(self, slope):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([1.0, -3.0], dtype=torch.float64))
            self.slope = torch.tensor(slope, dtype=torch.float64)

        def forward(self, x):
            return x.sum() * 0 + 7 + (self.w * self.slope).sum()

    assert sharpness(Plane([0.0, 0.0]), NOTHING, AS_IT_IS) == 0
    expected = 100 * BOX * (2.0 * 2 + 5.0 * 4) / (1 + 7 + 2 + 15)
    assert sharpness(Plane([2.0, -5.0]), NOTHING, AS_IT_IS) == pytest.approx(expected)


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    x = torch.randn(90, 8)
    data = TensorDataset(x, (x[:, :3].argmax(1)))
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    fit(model, Splits(data, data, data), classification(), epochs=20, batch_size=30, progress=False)
    return model.train(), data


def test_no_random_corner_and_no_single_step_is_worse(trained):
    model, data = trained
    found = sharpness(model, data, classification(), box=0.01)
    twin = copy.deepcopy(model).eval()
    before = evaluate(twin, data, classification()).loss
    clean = [p.detach().clone() for p in twin.parameters()]
    loss = functional.cross_entropy(twin(data.tensors[0]), data.tensors[1])
    uphill = [g.sign() for g in torch.autograd.grad(loss, list(twin.parameters()))]
    corners = [[torch.randn_like(w).sign() for w in clean] for _ in range(200)]
    for signs in [uphill, *corners]:
        with torch.no_grad():
            for p, w, sign in zip(twin.parameters(), clean, signs, strict=True):
                p.copy_(w + sign * 0.01 * (w.abs() + 1))
        there = evaluate(twin, data, classification()).loss
        assert found >= 100 * (there - before) / (1 + before) - 1e-6
    assert found > 1


def test_batches_do_not_matter(trained):
    model, data = trained
    whole = sharpness(model, data, classification(), batch_size=90)
    parts = sharpness(model, data, classification(), batch_size=40)
    assert parts == pytest.approx(whole, rel=1e-3)


def test_the_model_is_put_back_exactly(trained, same):
    model, data = trained
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[3].eval()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    sharpness(model, data, classification())
    same(model, before)
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert torch.equal(torch.get_rng_state(), state)
    model[3].train()
    model[0].weight.grad = None


def test_also_when_it_breaks_off(trained, same):
    model, data = trained
    before, calls = copy.deepcopy(model), []

    def loss(output, target):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return functional.cross_entropy(output, target)

    with pytest.raises(KeyboardInterrupt):
        sharpness(model, data, Task(loss, classification().items, "accuracy"))
    same(model, before)
    assert model.training


def test_weights_that_are_not_trained_stay(trained):
    model, data = copy.deepcopy(trained[0]), trained[1]
    every = sharpness(model, data, classification())
    model[0].requires_grad_(False)
    assert 0 < sharpness(model, data, classification()) < every


@pytest.mark.parametrize("wrong", [{"box": 0.0}, {"box": float("nan")}, {"iterations": 0}])
def test_bad_arguments_are_refused(trained, wrong):
    with pytest.raises(UsageError, match="measuring sharpness"):
        sharpness(*trained, classification(), **wrong)


def test_what_cannot_be_measured_is_told(trained):
    model, data = trained
    with pytest.raises(UsageError, match="0 trained parameters"):
        sharpness(nn.ReLU(), data, classification())
    with pytest.raises(UsageError, match="0 samples"):
        sharpness(model, TensorDataset(torch.zeros(0, 8), torch.zeros(0)), classification())
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken[4].weight[0, 0] = float("nan")
    with pytest.raises(UsageError, match="a loss of nan"):
        sharpness(broken, data, classification())
