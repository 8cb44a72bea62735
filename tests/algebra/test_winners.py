"""Winners against sorting, one sample at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra import keep_winners, winner_threshold
from gracile.errors import ShapeError, UsageError


def by_sorting(x, rate):
    """The k largest magnitudes of every sample and whatever equals the smallest of them."""
    kept = torch.zeros_like(x)
    for n, sample in enumerate(x):
        k = max(1, math.ceil(round(rate * sample.numel(), 6)))
        least = sorted(sample.abs().flatten().tolist())[-k]
        kept[n] = torch.where(sample.abs() >= least, sample, 0.0)
    return kept


@given(
    rate=st.floats(0.01, 1.0),
    shape=st.sampled_from([(3, 7), (2, 3, 4), (4, 2, 3, 3), (1, 100)]),
    seed=st.integers(0, 99),
)
def test_winners_are_those_that_sorting_finds(rate, shape, seed):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = keep_winners(x, rate)
    assert torch.equal(kept, by_sorting(x, rate))
    expected = math.ceil(round(rate * x[0].numel(), 6))
    assert kept.flatten(1).count_nonzero(1).tolist() == [max(1, expected)] * len(x)


def test_the_number_of_winners_is_rounded_up_but_not_by_the_float():
    x = torch.rand(1, 100) + 1
    assert keep_winners(x, 0.07).count_nonzero() == 7  # 0.07 * 100 is 7.000000000000001
    assert keep_winners(x, 0.071).count_nonzero() == 8
    assert keep_winners(x, 1e-9).count_nonzero() == 1


def test_ties_at_the_threshold_all_win():
    x = torch.tensor([[3.0, -2.0, 2.0, 2.0, 1.0]])
    assert keep_winners(x, 0.4).tolist() == [[3.0, -2.0, 2.0, 2.0, 0.0]]
    relu = torch.tensor([[5.0, 0.0, 0.0, 0.0]])
    assert winner_threshold(relu, 0.5).tolist() == [0.0]
    assert torch.equal(keep_winners(relu, 0.5), relu)  # zeros that win are zeros


def test_each_sample_has_its_own_threshold():
    quiet = torch.rand(1, 50) + 0.5
    both = keep_winners(torch.cat([quiet, 100 * quiet]), 0.2)
    assert torch.equal(both[0] * 100, both[1])
    one = winner_threshold(torch.cat([quiet, 100 * quiet]).reshape(1, -1), 0.2)
    assert one.item() > quiet.max()  # a threshold of the whole batch keeps nothing of the quiet one


def test_gradient_reaches_the_winners_alone():
    x = torch.tensor([[3.0, -2.0, 1.0, 0.5]], requires_grad=True)
    given_back = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    keep_winners(x, 0.5).backward(given_back)
    assert x.grad.tolist() == [[1.0, 2.0, 0.0, 0.0]]


def test_sampled_threshold_is_the_quantile_of_a_fixed_part():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 1000, generator=generator)
    found = winner_threshold(x, 0.25, sample=0.1, seed=3)
    positions = np.random.default_rng(3).permutation(1000)[:100]
    expected = x.abs()[:, positions].sort(dim=1, descending=True).values[:, 24]
    assert torch.equal(found, expected)
    assert torch.equal(found, winner_threshold(x, 0.25, sample=0.1, seed=3))
    assert not torch.equal(found, winner_threshold(x, 0.25, sample=0.1, seed=4))


def test_sampled_threshold_touches_no_random_stream():
    before = torch.get_rng_state()
    winner_threshold(torch.rand(2, 5000), 0.3, sample=0.2, seed=11)
    torch.rand(10_000)
    torch.set_rng_state(before)
    expected = torch.rand(3)
    torch.set_rng_state(before)
    keep_winners(torch.ones(2, 4999), 0.3, sample=0.2, seed=12)
    assert torch.equal(torch.rand(3), expected)


def test_drawn_samples_differ_and_follow_the_global_generator():
    x = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(5)
    first, second = (winner_threshold(x, 0.25, sample=0.1, seed=None) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, winner_threshold(x, 0.25, sample=0.1, seed=None))
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    assert torch.equal(winner_threshold(x, 0.25, seed=None), winner_threshold(x, 0.25))  # nothing to draw
    assert torch.equal(torch.get_rng_state(), before)


def test_sampled_threshold_keeps_about_the_share():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2000, generator=generator)
    kept = keep_winners(x, 0.2, sample=0.1)
    shares = kept.count_nonzero(1) / 2000
    # Of 200 entries looked at, 40 win: the share is 0.2 give or take sqrt(0.2 * 0.8 / 200) = 0.028.
    assert abs(shares.mean().item() - 0.2) < 0.01
    assert 0.015 < shares.std().item() < 0.04


def test_what_is_not_a_number_is_not_hidden():
    x = torch.tensor([[1.0, float("nan"), 3.0, 2.0]])
    assert keep_winners(x, 0.5).isnan().any()
    assert keep_winners(torch.tensor([[1.0, float("inf"), 3.0]]), 0.3).tolist() == [[0.0, math.inf, 0.0]]


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (2, 0, 4)])
def test_nothing_stays_nothing(shape):
    assert keep_winners(torch.zeros(shape), 0.5).shape == shape
    assert winner_threshold(torch.zeros(shape), 0.5).shape == shape[:1]


def test_rate_one_is_the_input_itself():
    x = torch.randn(2, 3)
    assert keep_winners(x, 1.0) is x


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_shares_are_shares(rate):
    with pytest.raises(UsageError, match=f"rate={rate}"):
        keep_winners(torch.ones(2, 2), rate)
    with pytest.raises(UsageError, match=f"sample={rate}"):
        winner_threshold(torch.ones(2, 2), 0.5, sample=rate)


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(2, 3, dtype=torch.int64), torch.ones(())])
def test_samples_and_real_numbers_are_needed(x):
    with pytest.raises(ShapeError, match="floating-point numbers of shape"):
        keep_winners(x, 0.5)
