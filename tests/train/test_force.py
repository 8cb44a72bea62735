from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gracile.algebra import Attraction, add_force_, channels, filters, mean_cosine
from gracile.errors import ShapeError, UsageError
from gracile.train import Force, Run, attractions_of, classification, fit, until
from gracile.train.force import LOOK_EVERY


def cosine_of(model, name):
    return mean_cosine(filters(name).of(dict(model.named_parameters()))).item()


def train(model, splits, *methods, **more):
    settings = {"epochs": 4, "batch_size": 30, "select": "last", "device": "cpu", "progress": False}
    return fit(model, splits, classification(), methods=methods, **(settings | more))


def alone(strength, steps, **more):
    """A layer on which nothing but the force acts."""
    torch.manual_seed(0)
    model = nn.Linear(20, 12, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run(model, optimizer, steps=steps)
    method = Force([Attraction(filters("weight"), strength)], **more)
    method.start(run)
    for _ in range(steps):
        optimizer.zero_grad()
        method.gradients(run)
        optimizer.step()
        run.step += 1
    return model, method


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_it_turns_filters_while_the_network_learns(digits, mlp, kind):
    plain, forced = mlp(0.0), mlp(0.0)
    history = train(plain, digits)
    method = Force([Attraction(filters("0.weight"), 0.1, kind)])
    other = train(forced, digits, method)
    assert cosine_of(forced, "0.weight") > cosine_of(plain, "0.weight") + 0.1
    assert cosine_of(forced, "4.weight") == pytest.approx(cosine_of(plain, "4.weight"), abs=0.05)
    assert other.test.score > history.test.score - 0.1
    assert method.collapsed == []


def test_it_adds_what_the_function_adds_after_clipping(digits, mlp):
    """One step of plain SGD, so that the weights show the gradient."""
    model, by_hand = mlp(0.0), mlp(0.0)
    attractions = [Attraction(filters("0.weight"), 0.5), Attraction(filters("4.weight"), 0.2, "l1")]
    settings = {"epochs": 1, "batch_size": 360, "clip": 1e-3}
    settings["optimizer"] = lambda parameters: torch.optim.SGD(parameters, lr=1.0)
    train(model, digits, Force(attractions, every=1), **settings)
    start = {name: p.detach().clone() for name, p in by_hand.named_parameters()}
    add_force_(attractions, start)
    train(by_hand, digits, **settings)
    with torch.no_grad():
        for name, parameter in by_hand.named_parameters():
            if start[name].grad is not None:
                parameter -= start[name].grad
    for a, b in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_one_strong_l1_force_in_four_steps_turns_filters_as_far_as_four(digits, mlp):
    found = {}
    for every in (None, 1):
        model = mlp(0.0)
        method = Force([Attraction(filters("0.weight"), 0.2, "l1")], every=every)
        score = train(model, digits, method).test.score
        found[method.every] = cosine_of(model, "0.weight"), score
    plain = mlp(0.0)
    train(plain, digits)
    assert found[1][0] > cosine_of(plain, "0.weight") + 0.1
    assert found[4] == pytest.approx(found[1], abs=0.05)
    assert Force([Attraction(filters("0.weight"))]).every == 1


def test_a_collapsed_layer_is_let_go_or_told_of_once():
    model, method = alone(2.0, 400)
    assert method.collapsed == ["weight"]
    assert 0.95 < cosine_of(model, "weight") < 0.999
    with pytest.warns(UserWarning, match=r"'weight' have collapsed at step \d+0: mean cosine 0.9") as told:
        model, method = alone(2.0, 400, collapsed="warn")
    assert len(told) == 1
    assert method.collapsed == ["weight"]
    assert cosine_of(model, "weight") > 0.9999  # went on


def test_a_weak_force_does_not_collapse():
    model, method = alone(0.02, 100, collapsed="warn")  # warnings are errors here
    assert 0.01 < cosine_of(model, "weight") < 0.9
    assert method.collapsed == []


def test_a_layer_that_was_let_go_stays_so_when_the_run_is_resumed():
    _, method = alone(2.0, 400)
    state = method.state_dict()
    torch.manual_seed(0)
    model = nn.Linear(20, 12, bias=False)  # whose filters have not collapsed
    fresh = Force([Attraction(filters("weight"), 2.0)])
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=LOOK_EVERY * 3)
    fresh.start(run)
    fresh.load_state_dict(state)
    run.step = LOOK_EVERY
    fresh.gradients(run)
    assert model.weight.grad is None
    fresh.start(run)  # another run
    fresh.gradients(run)
    assert model.weight.grad is not None


def test_a_schedule_ends_the_force():
    model = nn.Linear(6, 5, bias=False)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=10)
    method = Force([Attraction(filters("weight"), 1.0)], schedule=until(0.3))
    method.start(run)
    acted = []
    for run.step in range(10):
        model.weight.grad = torch.zeros(5, 6)
        method.gradients(run)
        acted.append(bool(model.weight.grad.any()))
    assert acted == [True] * 3 + [False] * 7


def test_every_few_steps_it_is_that_many_times_as_strong():
    forces = []
    for every in (1, 3):
        model = nn.Linear(6, 5, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.arange(30).view(5, 6).sin())
        run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=7)
        method = Force([Attraction(filters("weight"), 0.5)], every=every, schedule=lambda p: 1 - p)
        method.start(run)
        forces.append([])
        for run.step in range(7):
            model.weight.grad = torch.zeros(5, 6)
            method.gradients(run)
            forces[-1].append(model.weight.grad)
    for step, (steady, rare) in enumerate(zip(*forces, strict=True)):
        torch.testing.assert_close(rare, 3 * steady if step % 3 == 0 else torch.zeros(5, 6))


def test_attractions_of_a_network():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 8, 3),
        nn.Sequential(nn.Conv2d(8, 4, 1), nn.Linear(4, 2)),
        nn.Conv2d(2, 2, 1).requires_grad_(False),
    )
    found = attractions_of(model, 0.2, kind="l1", pairs="sum", scale="adaptive")
    assert found == [
        Attraction(filters("1.weight"), 0.2, "l1", "sum", "adaptive", banks=4),
        Attraction(filters("4.0.weight"), 0.2, "l1", "sum", "adaptive"),
    ]
    assert attractions_of(model, 0.1, layers=["4.1"]) == [Attraction(filters("4.1.weight"), 0.1)]


@pytest.mark.parametrize("layers", [["5"], ["4"], ["3"], ["0.weight"]])
def test_layers_without_filters_are_refused(layers):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.ConvTranspose2d(8, 8, 3), nn.ReLU())
    with pytest.raises(UsageError, match=f"layer '{layers[0]}'"):
        attractions_of(model, 0.1, layers=layers)


def test_a_network_without_convolutions_asks_for_names():
    with pytest.raises(UsageError, match="name the layers"):
        attractions_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(3, 3)), 0.1)


@pytest.mark.parametrize(
    "wrong", [{"limit": 0.0}, {"limit": 1.1}, {"collapsed": "halt"}, {"every": 0}, {"every": 1.5}]
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(UsageError, match="Force"):
        Force([], **wrong)


def test_a_wrong_name_is_told_before_training_and_start_changes_nothing(same):
    model = nn.Linear(4, 4)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    with pytest.raises(ShapeError, match="wieght"):
        Force([Attraction(filters("wieght"))]).start(run)
    with pytest.raises(ShapeError, match="4 filters in 3 banks"):
        Force([Attraction(filters("weight"), banks=3)]).start(run)
    twin = copy.deepcopy(model)
    Force([Attraction(filters("weight")), Attraction(channels("weight"), kind="l1")]).start(run)
    same(model, twin)
    assert model.weight.grad is None


OTHER = [{"strength": 0.2}, {"kind": "l1"}, {"pairs": "sum"}, {"scale": "adaptive"}, {"every": 2}]


@pytest.mark.parametrize("other", OTHER)
def test_another_force_does_not_resume(other):
    def made(every=1, **more):
        return Force([Attraction(filters("weight"), **({"strength": 0.1} | more))], every=every)

    made().load_state_dict(made().state_dict())
    with pytest.raises(UsageError, match="as the run was started"):
        made(**other).load_state_dict(made().state_dict())
