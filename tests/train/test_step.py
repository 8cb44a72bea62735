"""One step, and batches that are taken in parts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from gracile.algebra import L1, HoyerSquare, Lasso, Term, elements, filters
from gracile.errors import UsageError
from gracile.train import (
    MMD,
    Activations,
    Adapt,
    Checkpoints,
    Coral,
    Force,
    Freeze,
    Method,
    Run,
    SmoothOut,
    Structure,
    attractions_of,
    classification,
    fit,
)
from gracile.train.step import Step


def train(model, splits, *methods, **more):
    settings = {"epochs": 2, "batch_size": 60, "select": "last", "device": "cpu", "progress": False}
    return fit(model, splits, classification(), methods=methods, **(settings | more))


def without_norm():
    torch.manual_seed(42)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def test_parts_equal_accumulation_written_by_hand(digits, mlp):
    """With batch norm, whose statistics are those of each part, and clipping of the average."""
    ours, theirs = mlp(0.0), mlp(0.0)
    history = train(ours, digits, clip=0.5, ghost_batch=20)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    images, labels = digits.train.tensors
    losses = []
    for epoch in range(2):
        theirs.train()
        for batch in torch.randperm(360, generator=torch.Generator().manual_seed(epoch)).split(60):
            optimizer.zero_grad()
            for part in batch.split(20):
                loss = functional.cross_entropy(theirs(images[part]), labels[part])
                losses.append(loss.item())
                (loss / 3).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    assert history.epochs[0].train_loss == pytest.approx(sum(losses[:18]) / 18, rel=1e-5)


def test_without_statistics_of_the_batch_parts_change_nothing(digits):
    """Whatever methods add to the loss or the gradients is added once, and clipped once."""
    models = []
    for ghost_batch in (None, 60, 20, 4, 1):
        models.append(without_norm())
        with torch.no_grad():
            models[-1][0].weight[::3] = 0
        methods = [
            Structure([Term(filters("2.weight"), HoyerSquare(), 1e-2)], "loss"),
            Structure([Term(filters("0.weight"), Lasso(), 1e-2)]),
            Force(attractions_of(models[-1], 0.1, layers=["2"])),
            Freeze(),
        ]
        train(models[-1], digits, *methods, clip=0.3, ghost_batch=ghost_batch)
    whole = models[0].state_dict()
    for model in models[1:]:
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-5)
        assert not model[0].weight[::3].any()


@pytest.mark.parametrize("methods", [[], [SmoothOut(0.05)]], ids=["plain", "noise"])
def test_one_part_is_the_whole_batch(digits, mlp, same, methods):
    whole, part = mlp(), mlp()
    train(whole, digits, *methods)
    train(part, digits, *methods, ghost_batch=60)
    same(whole, part)


class Calls(Method):
    def __init__(self, name, calls):
        self.name, self.calls = name, calls


HOOKS = [
    "before_forward",
    "after_forward",
    "loss",
    "undo",
    "after_backward",
    "gradients",
    "after_step",
    "mask",
]
for hook in HOOKS:

    def note(self, run, *loss, hook=hook):
        self.calls.append(f"{self.name} {hook}")
        return loss[0] if loss else None

    setattr(Calls, hook, note)


def test_hooks_of_every_part_and_of_the_step():
    calls = []
    model = nn.Linear(3, 2)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    step = Step(run, model, classification(), [Calls("a", calls), Calls("b", calls)], ghost_batch=2)
    step(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))

    def both(hook):
        return [f"a {hook}", f"b {hook}"]

    undone = ["b undo", "a undo"]  # what came last goes first
    forward = [*both("before_forward"), *both("after_forward")]
    part = [*forward, *both("loss"), *undone, *both("after_backward")]
    assert calls == [*part, *part, *both("gradients"), *both("after_step"), *both("mask")]


def test_only_what_was_begun_is_undone():
    calls = []

    class Breaks(Calls):
        def before_forward(self, run):
            raise RuntimeError("half-way")

    model = nn.Linear(3, 2)
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    step = Step(run, model, classification(), [Calls("a", calls), Breaks("b", calls), Calls("c", calls)])
    with pytest.raises(RuntimeError, match="half-way"):
        step(torch.randn(2, 3), torch.tensor([0, 1]))
    assert calls == ["a before_forward", "b undo", "a undo"]


@pytest.mark.parametrize("ghost_batch", [0, -1, 7, 61, 120, 20.0])
def test_parts_that_do_not_divide_the_batch_are_refused(digits, mlp, ghost_batch):
    with pytest.raises(UsageError, match="a divisor of the 60 samples"):
        train(mlp(), digits, ghost_batch=ghost_batch)


class Interrupt(Method):
    def __init__(self, at):
        self.at = at

    def mask(self, run):
        if run.step == self.at:
            raise KeyboardInterrupt


def test_resumed_equals_uninterrupted_and_other_parts_do_not_resume(digits, mlp, same, tmp_path):
    saving = Checkpoints(tmp_path, every=2)
    whole, resumed = mlp(), mlp()
    train(whole, digits, SmoothOut(0.05), Interrupt(-1), ghost_batch=20)
    with pytest.raises(KeyboardInterrupt):
        train(mlp(), digits, SmoothOut(0.05), Interrupt(5), ghost_batch=20, folder=saving)
    with pytest.raises(UsageError, match="ghost batch 30; expected 20"):
        train(mlp(), digits, SmoothOut(0.05), Interrupt(-1), ghost_batch=30, folder=saving)
    train(resumed, digits, SmoothOut(0.05), Interrupt(-1), ghost_batch=20, folder=saving)
    same(whole, resumed)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_methods_that_run_the_model_again_are_not_watched_by_others(order):
    """Two methods that pass target samples through the model, and one that penalizes what it captures."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, y = torch.randn(6, 3), torch.arange(6) % 2
    target = torch.randn(20, 3) + 1
    methods = [
        Activations([Term(elements("1"), L1(), 0.3)]),
        Adapt(target, "1", [MMD(1.0)], seed=1),
        Adapt(target, "1", [Coral(1.0)], seed=2),
    ]

    def gradient(*used):
        run = Run(model, torch.optim.SGD(model.parameters(), lr=0.0), steps=1)
        for method in used:
            method.start(run)
        Step(run, model, classification(), used)(x, y)
        return model[0].weight.grad.clone()

    plain = gradient()
    together = gradient(*(methods[i] for i in order)) - plain
    alone = sum(gradient(method) - plain for method in methods)
    torch.testing.assert_close(together, alone)
