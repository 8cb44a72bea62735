"""Pruning while training, against the rules written out step by step."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import SGD

from gracile.algebra import GradientThreshold, Hysteresis, Lasso, Term, Threshold, elements
from gracile.errors import FileError, UsageError
from gracile.train import Method, Prune, Run, Structure, Surgery, classification, fit


def linear(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(6, 5, bias=False)


def gradients(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 6, generator=generator) for _ in range(count)]


def step(run: Run, gradient: torch.Tensor, *methods: Method) -> None:
    """One step whose gradient is given, in the order of the training loop."""
    for method in methods:
        method.before_forward(run)
    for method in reversed(methods):
        method.undo(run)
    run.model.weight.grad = gradient.clone()
    for method in methods:
        method.after_backward(run)
    for method in methods:
        method.gradients(run)
    run.optimizer.step()
    for method in methods:
        method.after_step(run)
    for method in methods:
        method.mask(run)


def test_l1_and_the_gradient_threshold_are_the_published_solver():
    """Written out from the authors' solver: the threshold sees the gradient with the regularizer's."""
    model = linear()
    w = model.weight.detach().clone()
    history = torch.zeros_like(w)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = Run(model, optimizer, steps=6)
    l1 = Structure([Term(elements("weight"), Lasso(), 0.02)], threshold=0.0)
    prune = Prune(["weight"], GradientThreshold(0.05, 4.0))
    for method in (l1, prune):
        method.start(run)
    for gradient in gradients(6):
        step(run, gradient, l1, prune)
        total = gradient + 0.02 * w.sign()
        history = 0.9 * history + total
        w = w - 0.1 * history
        w[w.abs() <= 1 / (total.abs() / 0.05 + 1 / (4.0 * 0.05))] = 0
        torch.testing.assert_close(model.weight.detach(), w)
    assert 0 < (w == 0).sum() < 30


@pytest.mark.parametrize(
    "rule", [Hysteresis(0.15, 0.2), Threshold(0.2), GradientThreshold(0.1, 3.0)], ids=str
)
def test_surgery_updates_the_full_weights_and_shows_the_cut_ones(rule):
    model = linear()
    full = model.weight.detach().clone()
    alive = torch.ones_like(full, dtype=torch.bool)
    run = Run(model, SGD(model.parameters(), lr=0.05), steps=20)
    surgery = Surgery(["weight"], rule)
    surgery.start(run)
    back = 0
    for gradient in gradients(20):
        step(run, gradient, surgery)
        full = full - 0.05 * gradient
        before, alive = alive, rule.alive(full, gradient, alive)
        back += int((alive & ~before).sum())
        torch.testing.assert_close(model.weight.detach(), torch.where(alive, full, 0.0))
        torch.testing.assert_close(surgery.full(run)["weight"], full)
    assert back  # spliced in again


def test_the_loss_is_that_of_the_cut_weights():
    """Gradients are taken where the mask is on, and reach cut weights, too."""
    model = linear()
    x, y = torch.randn(8, 6), torch.randn(8, 5)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=5)
    surgery = Surgery(["weight"], Threshold(0.2))
    surgery.start(run)
    surgery.mask(run)
    full, cut = surgery.full(run)["weight"], model.weight.detach().clone()
    assert (cut == 0).any()
    for part in (0, 1):  # a batch in two parts: the mask is put on again for the second
        surgery.before_forward(run)
        assert torch.equal(model.weight.detach(), cut), part
        (model(x) - y).square().mean().backward()
        surgery.undo(run)
        assert torch.equal(model.weight.detach(), full), part
    leaf = cut.clone().requires_grad_()
    (2 * (x @ leaf.T - y).square().mean()).backward()
    torch.testing.assert_close(model.weight.grad, leaf.grad)
    assert (model.weight.grad[cut == 0] != 0).all()


def test_a_step_that_fails_leaves_the_full_weights_to_nobody_else():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=5)
    surgery = Surgery(["weight"], Threshold(0.2))
    surgery.start(run)
    surgery.mask(run)
    full, cut = surgery.full(run), model.weight.detach().clone()
    surgery.before_forward(run)
    surgery.undo(run)
    surgery.undo(run)  # once more does no harm
    assert torch.equal(model.weight.detach(), full["weight"])
    surgery.mask(run)
    assert torch.equal(model.weight.detach(), cut)


def test_training_with_a_rule_makes_a_sparse_network(digits):
    def trained(*methods: Method) -> tuple[float, float]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        history = fit(
            model,
            digits,
            classification(),
            epochs=20,
            batch_size=20,
            methods=methods,
            select="last",
            device="cpu",
            progress=False,
        )
        return (model[0].weight != 0).double().mean().item(), history.test.score

    _, dense = trained()
    l1 = Structure([Term(elements("0.weight"), Lasso(), 1e-3)], threshold=0.0)
    cases = {
        "prune": [l1, Prune(["0.weight"], GradientThreshold())],
        "surgery": [l1, Surgery(["0.weight"], Threshold(0.08))],
    }
    for name, methods in cases.items():
        density, score = trained(*methods)
        assert density < 0.5, name
        assert score > dense - 0.06, name


def test_bad_names_and_foreign_states_are_told():
    model = linear()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=5)
    for method in (Prune(["0.weight"], Threshold(0.1)), Surgery(["0.weight"], Threshold(0.1))):
        with pytest.raises(UsageError, match=r"'0\.weight', no parameter of Linear; expected one of weight"):
            method.start(run)
    surgery = Surgery(["weight"], Threshold(0.1))
    surgery.start(run)
    state = surgery.state_dict()
    other = Surgery(["weight"], Threshold(0.2))
    with pytest.raises(UsageError, match=r"Threshold\(threshold=0.2\)"):
        other.load_state_dict(state)
    for damaged in ({**state, "alive": {}}, {**state, "hidden": {"weight": torch.zeros(2)}}):
        with pytest.raises(FileError):
            surgery.load_state_dict(damaged)
    with pytest.raises(UsageError):
        Prune(["weight"], Threshold(0.2)).load_state_dict(Prune(["weight"], Threshold(0.1)).state_dict())
