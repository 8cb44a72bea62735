from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam

from gracile.algebra import (
    L1,
    GroupHoyer,
    Grouping,
    HoyerSquare,
    Lasso,
    Ridge,
    Term,
    View,
    channels,
    elements,
    filters,
    layer,
)
from gracile.errors import FileError, ShapeError, UsageError
from gracile.train import Freeze, Method, Run, Structure, classification, fit, warmup
from gracile.train.structure import steps_of

MODES = ["gradient", "proximal", "loss"]


def linear(rows=6, columns=5, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        model.weight[1] = 0
    return model


def lasso(strength=0.3):
    return [Term(filters("weight"), Lasso(), strength)]


def one_step(model, method, optimizer, gradient, steps=10):
    run = Run(model, optimizer, steps=steps)
    method.start(run)
    model.weight.grad = gradient.clone()
    method.gradients(run)
    optimizer.step()
    method.after_step(run)
    return run


def test_gradient_mode_is_the_rule_of_ssl():
    """Written out from C6: g + lambda w / ||w_g|| into momentum, then small weights to zero."""
    model = linear()
    w = model.weight.detach().clone()
    history = torch.zeros_like(w)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Run(model, optimizer, steps=5)
    method = Structure(lasso(), threshold=0.05)
    method.start(run)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        g = torch.randn(w.shape, generator=generator)
        model.weight.grad = g.clone()
        method.gradients(run)
        optimizer.step()
        method.after_step(run)
        norm = w.norm(dim=1, keepdim=True)
        history = 0.9 * history + g + 0.3 * torch.where(norm > 0, w / norm, 0.0)
        w = w - 0.1 * history
        w[w.abs() <= 0.05] = 0
        torch.testing.assert_close(model.weight.detach(), w)


def test_proximal_mode_is_soft_thresholding_of_norms():
    model = linear()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.75, dampening=0.5)
    gradient = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    w = (model.weight - 0.1 * gradient).detach()
    one_step(model, Structure(lasso(), mode="proximal"), optimizer, gradient)
    norm = w.norm(dim=1, keepdim=True)
    shrink = 0.3 * 0.1 * 0.5 / 0.25
    expected = w * (1 - shrink / norm).clamp(min=0)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_loss_mode_is_autograd():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=1)
    terms = [
        Term(filters("weight"), Lasso() + 0.5 * Ridge(), 0.3),
        Term(channels("weight"), HoyerSquare(), 0.1),
    ]
    method = Structure(terms, mode="loss")
    loss = method.loss(run, model(torch.ones(5)).sum())
    loss.backward()
    w = model.weight.detach().clone().requires_grad_()
    norms = w.norm(dim=1)[[0, 2, 3, 4, 5]]
    hoyer = (w.abs().sum(0) ** 2 / w.square().sum(0)).sum()
    (w.sum() + 0.3 * (norms.sum() + 0.25 * norms.square().sum()) + 0.1 * hoyer).backward()
    torch.testing.assert_close(model.weight.grad, w.grad)


@pytest.mark.parametrize("penalty", [L1(), HoyerSquare(), GroupHoyer(), Lasso(), Ridge()])
def test_loss_and_gradient_mode_agree_without_clipping(digits, mlp, penalty):
    models = []
    for mode in ("gradient", "loss"):
        models.append(mlp(0.0))
        method = Structure([Term(filters("0.weight"), penalty, 1e-3)], mode, threshold=0.0)
        fit(
            models[-1],
            digits,
            classification(),
            epochs=2,
            methods=[method],
            device="cpu",
            select="last",
            progress=False,
        )
    for a, b in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.05, momentum=0.9), partial(Adam, lr=1e-3)])
def test_strength_zero_is_plain_training(digits, mlp, same, mode, optimizer):
    plain, penalized, delayed = mlp(), mlp(), mlp()
    train = partial(
        fit, splits=digits, task=classification(), epochs=2, optimizer=optimizer, device="cpu", progress=False
    )
    with torch.no_grad():
        for model in (plain, penalized, delayed):
            model[0].weight[3] = -0.0  # whose sign any addition of zero would lose
            model[0].weight[4] = 1e-6  # which a threshold would take
    train(plain)
    zero = [
        Term(filters("0.weight"), Lasso(), 0.0),
        Term(layer("4.weight"), Lasso() if mode == "proximal" else HoyerSquare(), 0.0),
    ]
    train(penalized, methods=[Structure(zero, mode, threshold=1e-3)])
    same(plain, penalized)
    never = Structure([Term(filters("0.weight"), Lasso(), 1.0)], mode, threshold=1e-3, schedule=lambda _: 0.0)
    train(delayed, methods=[never])
    same(plain, delayed)


def dead_rows(mode, factor=True, **more):
    """Learn structure on a regression in which half of the inputs say nothing."""
    torch.manual_seed(0)
    model = nn.Linear(20, 8, bias=False)
    x = torch.randn(512, 20)
    y = x[:, :10] @ torch.randn(10, 8)
    optimizer = SGD(model.parameters(), lr=0.02, momentum=0.9)
    run = Run(model, optimizer, steps=400)
    method = Structure([Term(channels("weight"), Lasso(), 0.05)], mode, **more)
    method.start(run)
    for i in range(400):
        batch = torch.arange(i * 64, i * 64 + 64) % 512
        loss = method.loss(run, (model(x[batch]) - y[batch]).square().mean())
        optimizer.zero_grad()
        loss.backward()
        method.gradients(run)
        optimizer.step()
        method.after_step(run)
        run.step += 1
    return model.weight.detach().abs().sum(0) == 0


def test_all_modes_find_the_same_structure():
    # A sub-gradient with a fixed rate jumps over zero by lr * strength / (1 - m) / sqrt(8) or less.
    expected = torch.arange(20) >= 10
    assert torch.equal(dead_rows("proximal"), expected)
    assert torch.equal(dead_rows("gradient", threshold=0.01), expected)
    assert torch.equal(dead_rows("loss", threshold=0.01), expected)
    assert not dead_rows("loss").any()  # a sub-gradient alone makes no zeros


def test_defaults_of_the_threshold():
    assert [Structure(lasso(), mode).threshold for mode in MODES] == [1e-4, 0.0, 0.0]


def test_the_threshold_leaves_other_tensors_alone():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1e-6)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=1)
    Structure([Term(filters("0.weight"), Lasso(), 1e-9)]).after_step(run)
    assert model[0].weight.abs().sum() == 0
    assert all((p == 1e-6).all() for p in (model[0].bias, model[1].weight, model[1].bias))


def test_strength_can_grow_in():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=8, step=2)
    model.weight.grad = torch.zeros(6, 5)
    Structure(lasso(0.4), schedule=warmup(0.5)).gradients(run)
    w = model.weight.detach()
    norm = w.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.weight.grad, 0.2 * torch.where(norm > 0, w / norm, 0.0))


def test_steps_follow_parameter_groups():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    optimizer = SGD(
        [
            {"params": model[0].parameters(), "lr": 0.5, "momentum": 0.0, "dampening": 0.3},
            {"params": model[1].weight, "lr": 0.1, "momentum": 0.5},
        ],
        lr=1.0,
    )
    assert steps_of(Run(model, optimizer, steps=1)) == {"0.weight": 0.5, "0.bias": 0.5, "1.weight": 0.2}
    adam = Adam(model.parameters(), lr=0.01)
    assert set(steps_of(Run(model, adam, steps=1)).values()) == {0.01}


OVERLAPPING = [
    [Term(filters("weight"), Lasso(), 1.0), Term(channels("weight"), Lasso(), 1.0)],
    [
        Term(
            Grouping(
                (View("weight", "out in", ("out",)), View("weight", "out in", ("in",), (0, 1, 2, 3, 4)))
            ),
            Lasso(),
            1.0,
        )
    ],
]


@pytest.mark.parametrize("terms", OVERLAPPING)
def test_proximal_mode_refuses_overlapping_groups(terms):
    model = linear()
    with pytest.raises(UsageError, match="overlap"):
        Structure(terms, "proximal").start(Run(model, SGD(model.parameters(), lr=0.1), steps=1))


@pytest.mark.parametrize("penalty", [HoyerSquare(), L1(), GroupHoyer()])
def test_proximal_mode_refuses_other_penalties(penalty):
    model = linear()
    with pytest.raises(UsageError, match="proximal"):
        Structure([Term(filters("weight"), penalty, 1.0)], "proximal").start(
            Run(model, SGD(model.parameters(), lr=0.1), steps=1)
        )


def test_proximal_mode_refuses_what_is_not_trained():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    run = Run(model, SGD(model[1].parameters(), lr=0.1), steps=1)
    with pytest.raises(UsageError, match=r"'0\.weight', which is not trained"):
        Structure([Term(filters("0.weight"), Lasso(), 1.0)], "proximal").start(run)


@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_name_is_told_before_training(mode):
    model = linear()
    with pytest.raises((ShapeError, UsageError), match="wieght"):
        Structure([Term(filters("wieght"), Lasso(), 1.0)], mode).start(
            Run(model, SGD(model.parameters(), lr=0.1), steps=1)
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "prox"},
        {"threshold": -1.0},
        {"threshold": float("nan")},
        {"terms": lasso(-0.1)},
        {"terms": lasso(float("nan"))},
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(UsageError, match="Structure"):
        Structure(**({"terms": lasso()} | wrong))


def test_start_changes_nothing(same):
    for mode in MODES:
        model = linear()
        run = Run(model, SGD(model.parameters(), lr=0.1), steps=1)
        Structure(lasso(), mode).start(run)
        same(model, linear())
        assert model.weight.grad is None


# Freeze


class Holds(Method):
    """Assert that zeros stay, and that other weights move."""

    def __init__(self, held):
        self.held = held

    def mask(self, run):
        weight = run.model[0].weight
        assert not weight[self.held].any()
        assert not weight.grad[self.held].any()


def test_zeros_stay_while_the_rest_moves(digits, mlp):
    model = mlp()
    held = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        model[0].weight[held] = 0
    before = model[0].weight.clone()
    optimizer = partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
    fit(
        model,
        digits,
        classification(),
        epochs=2,
        optimizer=optimizer,
        methods=[Freeze(), Holds(held)],
        select="last",
        device="cpu",
        progress=False,
    )
    assert torch.equal(model[0].weight == 0, held)
    assert (model[0].weight != before)[~held].float().mean() > 0.9
    assert model[1].bias.abs().min() > 0  # zero at the start, but a bias


def test_a_weight_that_passes_through_zero_is_not_caught():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=1.0), steps=1)
    freeze = Freeze()
    freeze.start(run)
    with torch.no_grad():
        model.weight[0, 0] = 0.0
    freeze.mask(run)
    with torch.no_grad():
        model.weight.fill_(2.0)
    freeze.mask(run)
    assert torch.equal(model.weight == 0, torch.arange(6)[:, None].expand(6, 5) == 1)


def test_groups_are_held_as_a_whole_and_other_zeros_may_return():
    model = linear()
    with torch.no_grad():
        model.weight[0, 0] = 0.0
        model.weight[:, 4] = 0.0
    run = Run(model, SGD(model.parameters(), lr=1.0), steps=1)
    freeze = Freeze([filters("weight"), channels("weight")])
    freeze.start(run)
    with torch.no_grad():
        model.weight.fill_(2.0)
    freeze.mask(run)
    expected = torch.full((6, 5), 2.0)
    expected[1] = 0
    expected[:, 4] = 0
    assert torch.equal(model.weight, expected)


def test_held_weights_do_not_count_in_clipping():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=1.0), steps=1)
    freeze = Freeze()
    freeze.start(run)
    model.weight.grad = torch.ones(6, 5)
    freeze.after_backward(run)
    assert nn.utils.clip_grad_norm_(model.parameters(), 100.0) == pytest.approx(25**0.5)


def test_momentum_and_nan_cannot_move_held_weights():
    model = linear()
    optimizer = SGD(model.parameters(), lr=1.0, momentum=0.9)
    model.weight.grad = torch.ones(6, 5)
    optimizer.step()
    with torch.no_grad():
        model.weight[1] = 0
    run = Run(model, optimizer, steps=1)
    freeze = Freeze()
    freeze.start(run)
    model.weight.grad = torch.full((6, 5), float("nan"))
    freeze.after_backward(run)
    optimizer.step()
    freeze.mask(run)
    assert model.weight[1].tolist() == [0.0] * 5


def test_nothing_to_hold_is_plain_training(digits, mlp, same):
    plain, held = mlp(), mlp()
    for model, methods in ((plain, []), (held, [Freeze(), Freeze([elements("0.weight")])])):
        fit(
            model,
            digits,
            classification(),
            epochs=1,
            methods=methods,
            clip=1.0,
            device="cpu",
            progress=False,
        )
    same(plain, held)


@pytest.mark.parametrize(
    "held",
    [
        None,
        3,
        {"weight": torch.zeros(6, 5)},
        {"weight": [True]},
        {"weight": torch.ones(2, 2, dtype=torch.bool)},
        {"other": torch.ones(6, 5, dtype=torch.bool)},
        {0: torch.ones(6, 5, dtype=torch.bool)},
    ],
)
def test_a_state_of_another_kind_is_refused(held):
    model = linear()
    freeze = Freeze()
    freeze.start(Run(model, SGD(model.parameters(), lr=1.0), steps=1))
    with pytest.raises(FileError, match="Freeze"):
        freeze.load_state_dict({"held": held})
    assert freeze.held["weight"].sum() == 5


@pytest.mark.parametrize("other", [{"strength": 0.2}, {"mode": "loss"}, {"threshold": 0.5}])
def test_another_strength_does_not_resume(other):
    def made(strength=0.1, **more):
        return Structure([Term(filters("weight"), Lasso(), strength)], **more)

    state = made().state_dict()
    made().load_state_dict(state)
    with pytest.raises(UsageError, match=f"{next(iter(other))}.*as the run was started"):
        made(**other).load_state_dict(state)
