"""Rules of pruning against the published formula and against loops over single weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra import GradientThreshold, Hysteresis, Threshold, prune_
from gracile.errors import UsageError


def random(seed, scale=1e-3):
    return scale * torch.randn(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_golden_thresholds_of_the_publication():
    rule = GradientThreshold()
    assert rule.threshold(torch.tensor(0.0)).item() == pytest.approx(1e-3)
    assert rule.threshold(torch.tensor(1.0)).item() == pytest.approx(9.1e-5, rel=2e-3)
    assert rule.threshold(torch.tensor(-1.0)) == rule.threshold(torch.tensor(1.0))


@given(seed=st.integers(0, 99), th0=st.floats(1e-5, 1e-2), kappa=st.floats(0.1, 100))
def test_gradient_threshold_equals_a_loop(seed, th0, kappa):
    w, g = random(seed), random(seed + 100, 0.5)
    alive = GradientThreshold(th0, kappa).alive(w, g, w != 0)
    for weight, gradient, lives in zip(w.tolist(), g.tolist(), alive.tolist(), strict=True):
        assert lives == (abs(weight) > 1 / (abs(gradient) / th0 + 1 / (kappa * th0)))
    still = GradientThreshold(th0, kappa).alive(w, None, w != 0)
    assert torch.equal(still, w.abs() > 1 / (1 / (kappa * th0)))


@given(seed=st.integers(0, 99), lower=st.floats(0, 1e-3), more=st.floats(0, 1e-3))
def test_hysteresis_equals_a_loop(seed, lower, more):
    w, before = random(seed), random(seed + 1) > 0
    alive = Hysteresis(lower, lower + more).alive(w, None, before)
    for weight, lived, lives in zip(w.abs().tolist(), before.tolist(), alive.tolist(), strict=True):
        if weight < lower:
            assert not lives
        elif weight >= lower + more:
            assert lives
        else:
            assert lives == lived


def test_prune_zeroes_what_dies_and_nothing_else():
    w, g = random(0), random(1, 0.5)
    expected = torch.where(w.abs() > GradientThreshold().threshold(g), w, 0.0)
    assert 0 < expected.count_nonzero() < 40
    prune_(w, g, GradientThreshold())
    assert torch.equal(w, expected)
    prune_(w, None, Threshold(0.0))
    assert torch.equal(w, expected)


@pytest.mark.parametrize("rule", [Threshold(1.0), GradientThreshold(), Hysteresis(1.0, 2.0)])
def test_what_is_not_a_number_is_not_hidden(rule):
    w = torch.tensor([float("nan"), 0.0])
    prune_(w, torch.zeros(2), rule)
    assert w.isnan().tolist() == [True, False]


def test_bad_input_is_told():
    for wrong in (
        lambda: Threshold(-1.0),
        lambda: Threshold(float("nan")),
        lambda: GradientThreshold(0.0),
        lambda: GradientThreshold(1e-4, float("nan")),
        lambda: GradientThreshold(float("inf")),
        lambda: Hysteresis(-0.1, 1.0),
        lambda: Hysteresis(0.2, 0.1),
        lambda: Hysteresis(0.2, float("nan")),
    ):
        with pytest.raises(UsageError):
            wrong()
