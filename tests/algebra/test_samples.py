"""Penalties on activations: closed forms, and strengths that do not depend on the batch size."""

from __future__ import annotations

import pytest
import torch

from gracile.algebra import (
    L1,
    GroupHoyer,
    Grouping,
    HoyerSquare,
    Lasso,
    Ridge,
    Term,
    Trimmed,
    View,
    channels,
    elements,
    filters,
    layer,
    mean_loss_of,
)
from gracile.errors import PatternError, ShapeError, UsageError

PENALTIES = [L1(), Lasso(), Ridge(), HoyerSquare(), GroupHoyer(), Trimmed(0.5), 2 * Lasso() + 0.5 * L1()]
ACROSS = [
    layer("a"),
    channels("a"),
    View("a", "batch channel h w", ("channel",)),
    View("a", "batch channel h w", ("channel", "h")),
]
APART = [
    elements("a"),
    filters("a"),
    View("a", "batch channel h w", ("batch", "channel")),
]


def grouping_of(given):
    return Grouping((given,)) if isinstance(given, View) else given


def activations(samples=6):
    return torch.randn(samples, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mean(penalty, given, *calls):
    return mean_loss_of([Term(grouping_of(given), penalty, 0.7)], {"a": list(calls)})


@pytest.mark.parametrize("given", ACROSS + APART, ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_the_same_samples_twice_cost_the_same(penalty, given):
    a = activations()
    torch.testing.assert_close(mean(penalty, given, a), mean(penalty, given, torch.cat([a, a])))


@pytest.mark.parametrize("given", APART, ids=str)
@pytest.mark.parametrize("penalty", [L1(), Lasso(), Ridge(), HoyerSquare()], ids=str)
def test_groups_within_samples_cost_the_mean_over_samples(penalty, given):
    a = activations()
    each = [penalty(grouping_of(given).of({"a": a[n : n + 1]})) for n in range(len(a))]
    torch.testing.assert_close(mean(penalty, given, a), 0.7 * torch.stack(each).mean())


def test_closed_forms():
    a = activations()
    absolute, square = a.abs().sum((1, 2, 3)), a.square().sum((1, 2, 3))
    cases = {
        mean(L1(), elements("a"), a): absolute.mean(),
        mean(L1(), channels("a"), a): absolute.mean(),
        mean(Lasso(), elements("a"), a): absolute.mean(),
        mean(Lasso(), filters("a"), a): square.sqrt().mean(),
        mean(Ridge(), layer("a"), a): 0.5 * square.mean(),
        mean(HoyerSquare(), filters("a"), a): (absolute.square() / square).mean(),
        # One group for each channel, over all samples: the root of the mean square.
        mean(Lasso(), channels("a"), a): a.square().sum((2, 3)).mean(0).sqrt().sum(),
        mean(HoyerSquare(), layer("a"), a): absolute.mean().square() / square.mean(),
    }
    for found, expected in cases.items():
        torch.testing.assert_close(found, 0.7 * expected)


def test_the_axis_called_batch_is_the_axis_of_samples():
    a = activations()
    moved = Grouping((View("a", "time batch h w", ("time",)),))
    expected = mean(Lasso(), View("a", "batch channel h w", ("channel",)), a)
    torch.testing.assert_close(mean(Lasso(), moved, a.transpose(0, 1).contiguous()), expected)


def test_every_call_counts_like_a_layer_of_its_own():
    a, b = activations(), activations()[:, :2] * 3
    shared = mean(L1(), elements("a"), a, b)
    torch.testing.assert_close(shared, mean(L1(), elements("a"), a) + mean(L1(), elements("a"), b))


def test_several_activations_in_one_grouping():
    a, b = activations(), activations()[..., 0] + 1
    both = Grouping((View("a", "n c h w", ("c",)), View("b", "n c h", ("c",))))
    found = mean_loss_of([Term(both, Lasso())], {"a": [a, a], "b": [b, b]})
    one = (a.square().sum((2, 3)).mean(0) + b.square().sum(2).mean(0)).sqrt().sum()
    torch.testing.assert_close(found, 2 * one)


@pytest.mark.parametrize("given", [elements("a"), filters("a"), channels("a"), layer("a")], ids=str)
@pytest.mark.parametrize("penalty", PENALTIES, ids=str)
def test_gradients(penalty, given):
    a = activations(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mean(penalty, given, x), (a,))
    dead = torch.zeros_like(a).requires_grad_()
    mean(penalty, given, dead).backward()
    assert (dead.grad == 0).all()


def test_no_terms_and_no_samples_cost_nothing():
    assert mean_loss_of([], {}) == 0
    assert mean(Lasso(), layer("a"), activations(0)) == 0


def test_bad_input_is_told():
    a = activations()
    with pytest.raises(UsageError, match="no activation 'b'; expected one of a"):
        mean_loss_of([Term(elements("b"), L1())], {"a": [a], "b": []})
    both = Grouping((View("a", "n c h w", ("c",)), View("b", "n c h w", ("c",))))
    with pytest.raises(UsageError, match="'a': 1, 'b': 2"):
        mean_loss_of([Term(both, L1())], {"a": [a], "b": [a, a]})
    with pytest.raises(UsageError, match="3 samples, apart: False and 6 samples, apart: False"):
        mean_loss_of([Term(both, L1())], {"a": [a], "b": [a[:3]]})
    mixed = Grouping((View("a", "n c h w", ("c",)), View("b", "n m", ("n",))))
    with pytest.raises(UsageError, match="apart"):
        mean_loss_of([Term(mixed, L1())], {"a": [a[:3]], "b": [torch.ones(3, 2)]})
    with pytest.raises(PatternError):
        mean(Lasso(), View("a", "n c", ("c",)), a)
    with pytest.raises(ShapeError, match="int64"):
        mean(Lasso(), elements("a"), torch.ones(2, 3, dtype=torch.int64))
