"""Adapt does by itself what the same functions do by hand, and looks at target samples only when it must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from gracile.algebra import coral, mean_entropy, mmd
from gracile.errors import FileError, GracileError, ShapeError, UsageError
from gracile.train import (
    MMD,
    Adapt,
    Adversarial,
    Coral,
    Entropy,
    Run,
    Splits,
    adapt_batch_norm,
    classification,
    constant,
    evaluate,
    fit,
    logistic_ramp,
    until,
)
from gracile.train.critic import Critic
from gracile.train.pack import pack, unpack
from gracile.train.randomness import mixed


class Watched(TensorDataset):
    """Counts how often its samples are read, and has no second item to peek at."""

    def __init__(self, samples: Tensor) -> None:
        super().__init__(samples)
        self.read: list[int] = []

    def __getitem__(self, index):
        self.read.append(index)
        return super().__getitem__(index)


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(4)
    middle = nn.BatchNorm1d(6) if norm else nn.Identity()
    return nn.Sequential(nn.Linear(3, 6), middle, nn.Tanh(), nn.Linear(6, 2))


def started(method: Adapt, model: nn.Module, **more: int) -> Run:
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=10, **more)
    method.start(run)
    return run


def one(method: Adapt, run: Run, x: Tensor) -> Tensor:
    method.before_forward(run)
    run.model(x)
    loss = method.loss(run, torch.zeros(()))
    method.undo(run)
    return loss


X, TARGET = (
    torch.randn(8, 3, generator=torch.Generator().manual_seed(0)),
    2 + torch.randn(8, 3, generator=torch.Generator().manual_seed(1)),
)


@pytest.mark.parametrize(
    ("alignment", "by_hand"),
    [
        (MMD(0.7), lambda source, target, logits: 0.7 * mmd(source, target)),
        (Coral(0.7), lambda source, target, logits: 0.7 * coral(source, target)),
        (Entropy(0.7), lambda source, target, logits: 0.7 * mean_entropy(logits)),
    ],
)
def test_it_adds_what_the_function_says(alignment, by_hand):
    """With as many target samples as source samples, every step sees all of them."""
    model = network()
    method = Adapt(TARGET, "2", [alignment])
    found = one(method, started(method, model), X)
    body = model[:3]
    expected = by_hand(body(X), body(TARGET), model(TARGET))
    torch.testing.assert_close(found, expected)
    mine, theirs = (
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True) for loss in (found, expected)
    )
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def test_alignments_add_up():
    model = network()
    parts = [MMD(0.3), Coral(0.5), Entropy(0.2), Adversarial(0.4, schedule=constant())]
    single = [one(m, started(m, model), X).item() for m in (Adapt(TARGET, "2", [part]) for part in parts[:3])]
    method = Adapt(TARGET, "2", parts)
    run = started(method, model)
    critic = method._critics[3]
    body = model[:3]
    adversarial = critic.loss(body(X), body(TARGET), 0.4)
    assert one(method, run, X).item() == pytest.approx(sum(single) + adversarial.item(), rel=1e-5)


def test_the_critic_is_trained_one_way_and_the_features_the_other():
    torch.manual_seed(0)
    critic = Critic(features=2, hidden=16, rate=0.01, seed=1)
    source, target = torch.randn(32, 2), torch.randn(32, 2) + 2
    before = critic.loss(source, target, 0.0).item()
    for _ in range(50):
        critic.loss(source, target, 0.0).backward()
        critic.step(ranks=1)
    after = critic.loss(source, target, 0.0).item()
    assert after < 0.5 * before
    moved = target.clone().requires_grad_()
    for _ in range(50):  # the optimizer descends along the reversed gradient: the critic's loss rises
        (gradient,) = torch.autograd.grad(critic.loss(source, moved, 1.0), moved)
        moved = (moved - 5.0 * gradient).detach().requires_grad_()
    assert critic.loss(source, moved, 0.0).item() > 2 * after


def test_strength_scales_the_reversed_gradient_but_not_the_critic():
    critic = Critic(features=2, hidden=4, rate=0.01, seed=1)
    weights = list(critic.network.parameters())
    source, target = (torch.randn(5, 2, requires_grad=True) for _ in range(2))
    of = [source, target, *weights]
    small, large = (torch.autograd.grad(critic.loss(source, target, factor), of) for factor in (0.5, 2.0))
    for number, (a, b) in enumerate(zip(small, large, strict=True)):
        torch.testing.assert_close(b, 4 * a if number < 2 else a)


def test_the_critic_leaves_the_random_stream_alone_and_follows_its_seed():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, third = (Critic(4, 8, 0.1, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    first, second, third = (critic.network[0].weight for critic in (first, second, third))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_nothing_is_read_while_everything_is_off():
    target = Watched(TARGET)
    method = Adapt(target, "2", [MMD(0.0), Adversarial(0.0)])
    run = started(method, network())
    loss = one(method, run, X)
    assert not target.read
    assert not loss.requires_grad
    target = Watched(TARGET)
    method = Adapt(target, "2", [MMD(1.0, schedule=until(0.5))])
    run = started(method, network())
    for step, reads in ((4, True), (5, False), (9, False)):
        target.read.clear()
        run.step = step
        one(method, run, X)
        assert bool(target.read) == reads
    # DANN's ramp starts at 0: the first step has no target pass
    target = Watched(TARGET)
    method = Adapt(target, "2", [Adversarial(1.0)])
    run = started(method, network())
    target.read.clear()
    one(method, run, X)
    assert not target.read


def test_target_batches_differ_by_step_part_and_seed_and_ranks_share_one():
    target = Watched(torch.randn(100, 3))

    def drawn(seed: int = 0, step: int = 3, parts: int = 1, **more: int) -> list[int]:
        method = Adapt(target, "2", [Entropy(1.0)], seed=seed)
        run = started(method, network(), **more)
        run.step = step
        for _ in range(parts):
            target.read.clear()
            one(method, run, X)
        return list(target.read)

    base = drawn()
    assert base == drawn()
    assert len(set(base)) == 8
    assert len({tuple(drawn()), tuple(drawn(seed=1)), tuple(drawn(step=4)), tuple(drawn(parts=2))}) == 4
    shares = [drawn(rank=rank, ranks=3) for rank in range(3)]
    assert len({index for share in shares for index in share}) == 24


def test_few_target_samples_are_drawn_again():
    target = Watched(TARGET[:3])
    method = Adapt(target, "2", [MMD(1.0)])
    run = started(method, network())
    target.read.clear()
    assert torch.isfinite(one(method, run, X))
    assert len(target.read) == 8
    assert set(target.read) <= {0, 1, 2}


def test_labels_are_ignored_and_every_form_of_data_gives_the_same():
    labels = torch.randint(2, (8,))
    forms = [
        TARGET,
        TensorDataset(TARGET),
        TensorDataset(TARGET, labels),
        [(x, "?") for x in TARGET],
        list(TARGET),
    ]
    found = set()
    for form in forms:
        method = Adapt(form, "2", [MMD(1.0)])
        found.add(one(method, started(method, network()), X).item())
    assert len(found) == 1


def test_starting_touches_neither_buffers_nor_modes_nor_the_random_stream():
    model = network(norm=True)
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    started(Adapt(TARGET, "2", [Adversarial(1.0), MMD(1.0)]), model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not model[1].training
    assert not any(module._forward_hooks for module in model.modules())


def test_statistics_take_in_both_domains():
    model = network(norm=True)
    method = Adapt(TARGET, "2", [MMD(1.0)])
    run = started(method, model)
    one(method, run, X)
    mean = torch.zeros(6)
    for batch in (X, TARGET):
        mean = 0.9 * mean + 0.1 * functional.linear(batch, model[0].weight, model[0].bias).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)


def test_state_is_plain_and_comes_back():
    def method() -> Adapt:
        return Adapt(TARGET, "2", [Adversarial(1.0, constant()), Adversarial(0.5, constant(), hidden=5)])

    first, second = method(), method()
    run = started(first, network())
    for step in range(3):
        run.step = step
        one(first, run, X).backward()
        first.gradients(run)
    started(second, network())
    saved = unpack(*pack(first.state_dict()))
    assert str(second.state_dict()) != str(saved)
    second.load_state_dict(saved)
    assert str(second.state_dict()) == str(first.state_dict())
    assert len(saved["critics"]) == 2
    other = Adapt(TARGET, "2", [Adversarial(2.0, constant()), Adversarial(0.5, constant(), hidden=5)])
    started(other, network())
    with pytest.raises(UsageError, match=r"strengths \[2.0, 0.5\]; expected \[1.0, 0.5\]"):
        other.load_state_dict(saved)
    wider = Adapt(TARGET, "2", [Adversarial(1.0, constant()), Adversarial(0.5, constant(), hidden=6)])
    started(wider, network())
    with pytest.raises(FileError, match="restoring Adversarial"):
        wider.load_state_dict(saved)


def test_gradients_of_a_failed_pass_are_not_used():
    method = Adapt(TARGET, "2", [Adversarial(1.0, constant())])
    run = started(method, network())
    one(method, run, X).backward()  # and then something raises: no `gradients`
    assert one(method, run, X).requires_grad  # a second part of the same step adds up
    run.step = 1
    one(method, run, X)
    assert all(p.grad is None for p in method._critics[0].network.parameters())


def test_it_adapts_where_the_domains_are_apart():
    """Two features tell the classes apart in the source; one of them says nothing in the target domain."""
    generator = torch.Generator().manual_seed(0)

    def cloud(count: int, honest: float, offset: float) -> TensorDataset:
        labels = torch.arange(count) % 2
        x = 0.5 * torch.randn(count, 3, generator=generator)
        x[:, 0] += 2.5 * labels
        x[:, 1] += 2.5 * honest * labels + offset
        return TensorDataset(x, labels)

    source = Splits(*(cloud(count, 1.0, 0.0) for count in (256, 64, 64)))
    target, unseen = cloud(256, 0.0, 3.0), cloud(200, 0.0, 3.0)

    def score(*methods: Adapt) -> float:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 2))
        fit(
            model,
            source,
            classification(),
            epochs=12,
            batch_size=32,
            methods=methods,
            select="last",
            device="cpu",
            progress=False,
        )
        return evaluate(model, unseen, classification()).score

    assert score() < 0.8
    for methods in ([MMD(3.0)], [Adversarial(1.0, rate=1e-2)]):
        assert score(Adapt(target, "1", methods)) > 0.9, methods


def test_adapted_batch_norm_has_the_mean_statistics_of_the_batches():
    model = nn.Sequential(nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.9), nn.Linear(3, 2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = TARGET.split(4)
    adapted = adapt_batch_norm(model, DataLoader(TensorDataset(TARGET, torch.zeros(8)), 4))
    torch.testing.assert_close(adapted[0].running_mean, torch.stack([p.mean(0) for p in parts]).mean(0))
    torch.testing.assert_close(adapted[0].running_var, torch.stack([p.var(0) for p in parts]).mean(0))
    assert adapted[0].momentum == 0.3
    assert not any(module.training for module in adapted.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    whole = adapt_batch_norm(model, [TARGET])(TARGET)
    normed = (TARGET - TARGET.mean(0)) / (TARGET.var(0) + 1e-5).sqrt()
    torch.testing.assert_close(whole, model[2](normed))
    with pytest.raises(UsageError, match="no batch"):
        adapt_batch_norm(model, [])
    with pytest.raises(UsageError, match="running statistics"):
        adapt_batch_norm(network(), [TARGET])


def test_the_ramp_is_that_of_the_source():
    import math

    for p in (0.0, 0.2, 0.9):
        assert logistic_ramp()(p) == pytest.approx(2 / (1 + math.exp(-10 * p)) - 1)
    with pytest.raises(UsageError, match="steepness"):
        logistic_ramp(0.0)


@pytest.mark.parametrize("strength", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("kind", [MMD, Coral, Entropy, Adversarial])
def test_bad_strengths_are_refused(kind, strength):
    with pytest.raises(UsageError, match=f"{kind.__name__}: got strength"):
        kind(strength)


def test_mistakes_are_told_when_training_starts():
    for wrong, message in (
        (lambda: Adapt(TARGET, "2", []), "alignments"),
        (lambda: Adapt(TARGET, "2", ["MMD"]), "alignments"),
        (lambda: Adapt(TARGET[:0], "2", [MMD(1.0)]), "no target sample"),
        (lambda: Adapt(TARGET, "2", [MMD(1.0)], seed=-1), "seed"),
        (lambda: Adversarial(1.0, hidden=0), "hidden"),
        (lambda: Adversarial(1.0, rate=float("nan")), "rate"),
        (lambda: started(Adapt(TARGET, "nowhere", [MMD(0.0)]), network()), "'nowhere', no module"),
    ):
        with pytest.raises(UsageError, match=message):
            wrong()

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Flatten(0), nn.Linear(1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(self.used(x) if x.shape[-1] == 2 else x)

    with pytest.raises(UsageError, match="did not run"):
        started(Adapt(TARGET, "idle", [MMD(1.0)]), Odd())
    with pytest.raises(ShapeError, match=r"shape \(3,\)"):
        started(Adapt(TARGET, "used", [MMD(1.0)]), Odd())
    with pytest.raises(UsageError, match="ran 2 times"):
        started(Adapt(TARGET[:, :2], "used", [MMD(1.0)]), Odd())
    frozen = network()
    frozen[0].requires_grad_(False)
    method = Adapt(TARGET, "2", [MMD(1.0)])
    run = started(method, frozen)
    with pytest.raises(UsageError, match="'2' without a gradient"):
        one(method, run, X)
    method = Adapt(TARGET, "2", [MMD(1.0)])
    run = started(method, network())
    with pytest.raises(GracileError, match="not finite"):
        one(method, run, X * float("nan"))


def test_batches_follow_the_documented_seed():
    import numpy as np

    method = Adapt(torch.randn(50, 3), "2", [MMD(1.0)], seed=9)
    run = started(method, network())
    run.step = 6
    method.before_forward(run)
    expected = np.random.default_rng(mixed(9, 6, 0)).choice(50, 4, replace=False)
    assert method._indices(4, run) == expected.tolist()
    method.undo(run)
