"""Rank clipping while training: what is clipped is gone, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop
from torch.utils.data import TensorDataset

from gracile.algebra import truncate_rank_
from gracile.errors import FileError, UsageError
from gracile.reduce import factorize, pairs, remove
from gracile.train import ClipRank, Method, Run, Splits, classification, fit
from gracile.train.clip_rank import forget_

FULL = {"0": 16, "2": 20}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(16, 20), nn.ReLU(), nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 4))
    return factorize(plain, FULL).to(dtype)


def product(pair: nn.Module) -> np.ndarray:
    return (pair[1].weight @ pair[0].weight).detach().double().numpy()


def one_step(model, method, optimizer, run, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(32, 16, generator=generator), torch.randint(4, (32,), generator=generator)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(x.to(model[4].weight.dtype)), y)
    loss.backward()
    optimizer.step()
    method.after_step(run)
    method.mask(run)
    run.step += 1


def test_a_clipping_is_a_truncated_svd_at_the_right_steps():
    model = network()
    run = Run(model, SGD(model.parameters(), lr=0.0), steps=9)
    method = ClipRank(0.3, every=3)
    method.start(run)
    assert method.ranks == FULL
    before = {name: product(pair) for name, pair in pairs(model).items()}
    for seed in range(2):
        one_step(model, method, run.optimizer, run, seed)
        assert method.ranks == FULL
    one_step(model, method, run.optimizer, run, 2)
    for name, pair in pairs(model).items():
        u, s, vh = np.linalg.svd(before[name], full_matrices=False)
        lost = 1 - (s**2).cumsum() / (s**2).sum()
        rank = int((lost > 0.3).sum()) + 1
        assert 1 < rank == method.ranks[name] < FULL[name]
        np.testing.assert_allclose(product(pair), (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-5)


OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "sgd without momentum": partial(SGD, lr=0.05),
    "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True),
    "fused sgd": partial(SGD, lr=0.05, momentum=0.9, fused=True),
    "adam": partial(Adam, lr=1e-2),
    "fused adam": partial(Adam, lr=1e-2, fused=True),
    "amsgrad": partial(AdamW, lr=1e-2, amsgrad=True),
    "rmsprop": partial(RMSprop, lr=1e-3, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_dead_components_stay_exactly_zero_and_ranks_never_grow(name):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    run = Run(model, optimizer, steps=40)
    method = ClipRank(0.1, every=7)
    method.start(run)
    seen = [dict(method.ranks)]
    for seed in range(40):
        one_step(model, method, optimizer, run, seed)
        seen.append(dict(method.ranks))
        for layer, pair in pairs(model).items():
            rank = method.ranks[layer]
            if rank < FULL[layer]:
                assert not pair[1].weight[:, rank:].any()
                assert not pair[0].weight[rank:].any()
                assert pair[1].weight[:, :rank].any(0).all()
    assert all(now[layer] <= then[layer] for then, now in pairwise(seen) for layer in FULL)
    assert seen[-1]["2"] < seen[7]["2"] < FULL["2"]  # training makes room for another clipping
    assert all(p.isfinite().all() for p in model.parameters())


def test_zero_components_train_like_removed_ones():
    """In double precision: the clipped network and the one without its dead components, step by step."""
    model = network(torch.float64)
    run = Run(model, SGD(model.parameters(), lr=0.05, momentum=0.9), steps=8)
    method = ClipRank(0.3, every=1)
    method.start(run)
    one_step(model, method, run.optimizer, run, 0)
    assert method.ranks["2"] < FULL["2"]
    small = remove(model, torch.randn(3, 16, dtype=torch.float64)).model
    assert {n: p[1].weight.shape[1] for n, p in pairs(small).items()} == method.ranks
    large = copy.deepcopy(model)
    nothing = ClipRank(0.0)
    for net in (large, small):
        optimizer = SGD(net.parameters(), lr=0.05, momentum=0.9)
        for seed in range(1, 8):
            one_step(net, nothing, optimizer, Run(net, optimizer, steps=8), seed)
    x = torch.randn(5, 16, dtype=torch.float64)
    torch.testing.assert_close(large(x), small(x), rtol=1e-10, atol=1e-10)


class Noise(Method):
    """Something else that moves every weight."""

    def after_step(self, run: Run) -> None:
        with torch.no_grad():
            for parameter in run.model.parameters():
                parameter.add_(1e-3)


def test_other_methods_do_not_wake_the_dead():
    model = network()
    images, labels = load_digits(n_class=4, return_X_y=True)
    data = TensorDataset(torch.tensor(images[:96, :16]).float() / 16, torch.tensor(labels[:96]))
    method = ClipRank(0.3, every=3)
    fit(
        model,
        Splits(data, data, data),
        classification(),
        epochs=2,
        batch_size=24,
        methods=[method, Noise()],
        select="last",
        device="cpu",
        progress=False,
    )
    rank = method.ranks["2"]
    assert rank < FULL["2"]
    assert not pairs(model)["2"][0].weight[rank:].any()
    reduction = remove(model, torch.randn(2, 16))
    assert pairs(reduction.model)["2"][1].weight.shape[1] == rank
    assert reduction.verdict.kind == "exact"


class Ranks(Method):
    """Notes the ranks of every epoch."""

    def __init__(self, of: ClipRank) -> None:
        self.of, self.seen = of, []

    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        self.seen.append(dict(self.of.ranks))


@pytest.mark.parametrize("select", ["best", "last"])
def test_ranks_are_those_of_the_selected_weights(select):
    """Random labels: the first epoch is as good as any, and later ones have lower ranks."""
    model = network()
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 16, generator=generator), torch.randint(4, (96,), generator=generator)
    train, others = TensorDataset(x[:64], y[:64]), TensorDataset(x[64:], y[64:])
    method = ClipRank(0.2, every=2)
    ranks = Ranks(method)
    history = fit(
        model,
        Splits(train, others, others),
        classification(),
        epochs=8,
        batch_size=16,
        methods=[method, ranks],
        select=select,
        device="cpu",
        progress=False,
    )
    alive = {n: int((p[1].weight != 0).any(0).sum()) for n, p in pairs(model).items()}
    assert method.ranks == alive == ranks.seen[history.selected - 1]
    assert (method.ranks == ranks.seen[-1]) == (select == "last")


def test_grouped_convolutions_keep_one_rank_for_all_groups():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 9, 4))
    model = factorize(plain, {"0": 6}, "svd")
    x = torch.randn(4, 8, 5, 5)
    run = Run(model, SGD(model.parameters(), lr=0.01, momentum=0.9), steps=4)
    method = ClipRank(0.3, every=2, layers=["0"])
    method.start(run)
    for _ in range(4):
        run.optimizer.zero_grad()
        model(x).square().mean().backward()
        run.optimizer.step()
        method.after_step(run)
        method.mask(run)
        run.step += 1
    assert method.ranks["0"] < 6
    reduction = remove(model, x)
    assert reduction.model[0][0].weight.shape[0] == 2 * method.ranks["0"]
    torch.testing.assert_close(reduction.model.eval()(x), model.eval()(x))


def test_the_optimizer_forgets_only_what_was_rewritten():
    model = network()
    optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = Run(model, optimizer, steps=4)
    method = ClipRank(0.3, every=2, layers=["2"])
    method.start(run)
    one_step(model, method, optimizer, run, 0)
    momentum = optimizer.state[model[0][0].weight]["momentum_buffer"].clone()
    assert momentum.any()
    model[0][0].weight.grad = None
    method.after_step(run)
    assert method.ranks["2"] < FULL["2"]
    assert torch.equal(optimizer.state[model[0][0].weight]["momentum_buffer"], momentum)
    for weight in (model[2][0].weight, model[2][1].weight):
        assert not optimizer.state[weight]["momentum_buffer"].any()
    assert optimizer.state[model[2][1].bias]["momentum_buffer"].any()
    forget_(SGD([model[4].weight], lr=0.1), model[4].weight)  # nothing was known


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epsilon": -0.1}, "epsilon=-0.1"),
        ({"epsilon": 1.0}, "epsilon=1.0"),
        ({"epsilon": float("nan")}, "epsilon=nan"),
        ({"every": 0}, "every=0"),
        ({"every": 2.5}, "every=2.5"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        ClipRank(**arguments)


def test_layers_that_are_not_factorized_are_refused():
    model = network()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=1)
    for layers in (["4"], ["2", "nowhere"]):
        with pytest.raises(
            UsageError, match=f"'{layers[-1]}', which is not factorized; expected one of 0, 2"
        ):
            ClipRank(layers=layers).start(run)
    plain = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="without factorized layers"):
        ClipRank().start(Run(plain, SGD(plain.parameters(), lr=0.1), steps=1))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"epsilon": 0.5}, UsageError, "epsilon"),
        ({"every": 3}, UsageError, "every"),
        ({"ranks": {"0": 3}}, FileError, "rank for each of 0, 2"),
        ({"ranks": {"0": 3, "2": 99}}, FileError, "rank for each"),
        ({"ranks": None}, FileError, "rank for each"),
        ({"held": {"9": 3}}, FileError, "rank for each"),
        ({"held": {"0": "3"}}, FileError, "rank for each"),
    ],
)
def test_other_states_are_refused(change, error, words):
    model = network()
    method = ClipRank()
    method.start(Run(model, SGD(model.parameters(), lr=0.1), steps=1))
    with pytest.raises(error, match=words):
        method.load_state_dict({**method.state_dict(), **change})
    assert method.ranks == FULL


def test_truncation_by_hand_is_the_same_in_any_loop():
    """The first door: a function on the weights."""
    model = network()
    pair = pairs(model)["2"]
    full = product(pair)
    truncate_rank_(pair[1].weight, pair[0].weight, 5)
    u, s, vh = np.linalg.svd(full, full_matrices=False)  # components of a PCA lie in order already
    np.testing.assert_allclose(product(pair), (u[:, :5] * s[:5]) @ vh[:5], atol=1e-5)
