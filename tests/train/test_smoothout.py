from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from gracile.errors import UsageError
from gracile.train import Method, Run, SmoothOut, classification, fit, smoothout, tanh_ramp
from gracile.train.smoothout import noisy_parameters

KINDS = ["uniform", "gaussian", "weight", "filter"]


def odd_network():
    """Numbers that adding and subtracting would not bring back, norm layers, a frozen weight, a tied one."""
    torch.manual_seed(1)
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "norm": nn.BatchNorm2d(4),
            "block": nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.Linear(4, 4), nn.RMSNorm(4)),
            "frozen": nn.Linear(4, 4).requires_grad_(False),
            "head": nn.Linear(4, 4),
        }
    )
    model["head"].weight = model["block"][2].weight
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(torch.logspace(-30, 3, parameter.numel()).view_as(parameter))
        model["conv"].weight[0, 0, 0, 0] = -0.0
    return model


MOVED = ["conv.weight", "conv.bias", "block.2.weight", "block.2.bias", "head.bias"]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_come_back_bit_for_bit_and_others_never_move(same, kind):
    model, before = odd_network(), odd_network()
    with smoothout(model, 0.3, kind, seed=5):
        moved = [n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))]
        assert moved == MOVED
    same(model, before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_they_come_back_when_the_block_raises(same, error):
    model, before = odd_network(), odd_network()
    with pytest.raises(error), smoothout(model, 0.3, seed=0):
        raise error
    same(model, before)


def test_one_line_in_a_loop_of_your_own(digits, mlp):
    """The gradient is that at the noisy weights, the step goes from the clean ones."""
    model, by_hand = mlp(0.0), mlp(0.0)
    images, labels = (t[:60] for t in digits.train.tensors)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with smoothout(model, 0.1, seed=3):
        functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    clean = [p.detach().clone() for p in by_hand.parameters()]
    with torch.no_grad():
        with smoothout(by_hand, 0.1, seed=3):
            noisy = [p.detach().clone() for p in by_hand.parameters()]
        for p, n in zip(by_hand.parameters(), noisy, strict=True):
            p.copy_(n)
    functional.cross_entropy(by_hand(images), labels).backward()
    for p, start, stepped in zip(by_hand.parameters(), clean, model.parameters(), strict=True):
        torch.testing.assert_close(stepped.detach(), start - 0.5 * p.grad)


def test_the_gradient_is_that_of_the_average_over_the_box():
    """E over n of the derivative of sum w^4 is 4 w^3 + 4 w a^2, for uniform noise in (-a, a)."""
    model = nn.Linear(1, 4000, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.7)
    for draw in range(50):
        with smoothout(model, 0.5, seed=draw):
            (model.weight**4).sum().div(50).backward()
    expected = 4 * 0.7**3 + 4 * 0.7 * 0.5**2
    assert model.weight.grad.mean().item() == pytest.approx(expected, rel=5e-3)


def test_further_names_stay_quiet():
    model = odd_network()
    assert list(noisy_parameters(model)) == MOVED
    assert list(noisy_parameters(model, ["conv", "block.2.bias"])) == ["block.2.weight", "head.bias"]
    # tied: whichever name is given
    assert list(noisy_parameters(model, ["head.weight", "conv"])) == ["block.2.bias", "head.bias"]
    with pytest.raises(UsageError, match="without='haed'"):
        noisy_parameters(model, ["haed"])


class Draws(Method):
    """Writes down the noise of every forward pass; comes after SmoothOut."""

    def __init__(self):
        self.noise, self.clean = {}, None

    def start(self, run):
        self.clean = run.model[0].weight.detach().clone()

    def loss(self, run, loss):
        noise = run.model[0].weight.detach() - self.clean
        self.noise.setdefault(run.step, []).append(noise)
        return loss

    def mask(self, run):
        self.clean = run.model[0].weight.detach().clone()


def train(model, splits, *methods, **more):
    settings = {"epochs": 2, "batch_size": 90, "select": "last", "device": "cpu", "progress": False}
    return fit(model, splits, classification(), methods=methods, **(settings | more))


def test_every_part_of_every_batch_has_noise_of_its_own(digits, mlp):
    draws = Draws()
    train(mlp(), digits, SmoothOut(0.1), draws, ghost_batch=30)
    assert list(draws.noise) == list(range(8))
    assert [len(parts) for parts in draws.noise.values()] == [3] * 8
    together = [noise for parts in draws.noise.values() for noise in parts]
    for i, noise in enumerate(together):
        assert 0.09 < noise.abs().max() <= 0.1 + 1e-5
        assert all((noise - other).abs().mean() > 0.03 for other in together[:i])


def test_a_schedule_scales_the_noise(digits, mlp):
    draws = Draws()
    train(mlp(), digits, SmoothOut(0.1, schedule=tanh_ramp()), draws)
    for step, (noise,) in draws.noise.items():
        assert noise.abs().max().item() == pytest.approx(0.1 * tanh_ramp()(step / 8), rel=0.05, abs=1e-4)


def test_the_same_method_starts_anew_in_another_run(digits, mlp, same):
    method = SmoothOut(0.05, "filter")
    first, second = mlp(), mlp()
    for model in (first, second):
        train(model, digits, method, epochs=1, batch_size=360)  # one step
    same(first, second)


def test_seeds_give_different_runs(digits, mlp):
    first, second = mlp(), mlp()
    train(first, digits, SmoothOut(0.05, seed=0))
    train(second, digits, SmoothOut(0.05, seed=1))
    assert not torch.equal(first[0].weight, second[0].weight)


class Fault(Method):
    """Raise in one of the places of the third step where noise is on."""

    def __init__(self, place, error):
        self.place, self.error, self.clean, self.step = place, error, {}, 0

    def start(self, run):
        run.model[4].register_forward_hook(lambda *_: self.fail("forward"))
        run.model[4].register_full_backward_hook(lambda *_: self.fail("backward"))

    def before_forward(self, run):
        self.fail("before_forward")

    def loss(self, run, loss):
        self.fail("loss")
        return loss

    def mask(self, run):
        self.step = run.step + 1
        self.clean = {name: p.detach().clone() for name, p in run.model.named_parameters()}

    def fail(self, place):
        if (place, self.step) == (self.place, 2):
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["before_forward", "forward", "loss", "backward"])
def test_the_clean_weights_come_back_when_a_step_breaks_off(digits, mlp, place, error):
    model, fault = mlp(), Fault(place, error)
    with pytest.raises(error):
        train(model, digits, SmoothOut(0.1), fault, SmoothOut(0.2, "filter"))
    assert fault.step == 2
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, fault.clean[name]), name


def test_noise_does_not_touch_the_streams_of_the_run(digits, mlp):
    """Dropout draws the same masks with and without noise."""
    states = []

    class State(Method):
        def mask(self, run):
            states.append(torch.get_rng_state())

    train(mlp(0.5), digits, SmoothOut(0.1, "gaussian"), State())
    noisy, states[:] = list(states), []
    train(mlp(0.5), digits, State())
    assert all(torch.equal(a, b) for a, b in zip(noisy, states, strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": -0.1},
        {"strength": float("nan")},
        {"kind": "laplace"},
        {"seed": -1},
        {"seed": 0.5},
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(UsageError, match="SmoothOut"):
        SmoothOut(**({"strength": 0.1} | wrong))


def test_what_cannot_be_moved_is_told_before_training():
    run = Run(nn.BatchNorm1d(3), torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), steps=1)
    with pytest.raises(UsageError, match="no parameter to move"):
        SmoothOut(0.1).start(run)
    with pytest.raises(UsageError, match="without='head'"):
        SmoothOut(0.1, without=["head"]).start(run)


@pytest.mark.parametrize("other", [{"strength": 0.2}, {"kind": "filter"}, {"seed": 1}, {"without": ["2"]}])
def test_other_noise_does_not_resume(other):
    def made(**more):
        return SmoothOut(**({"strength": 0.1} | more))

    made().load_state_dict(made().state_dict())
    with pytest.raises(UsageError, match=f"{next(iter(other))}.*as the run was started"):
        made(**other).load_state_dict(made().state_dict())
