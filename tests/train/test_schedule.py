from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.errors import UsageError
from gracile.train import constant, cosine, sqrt_decay, step, tanh_ramp, until, warmup

shares = st.floats(0, 1, exclude_max=True)


@given(shares, shares, st.floats(0, 1))
def test_cosine_stays_between_its_ends_and_falls(progress, start, floor):
    rate = cosine(start, floor)
    value = rate(progress)
    assert 0 <= value <= 1 + 1e-12
    if progress >= start:
        assert value >= floor - 1e-12
        later = min(0.999, progress + 0.01)
        if later > progress:
            assert rate(later) <= value + 1e-12


def test_cosine_is_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=37)
    for done in range(37):
        assert cosine()(done / 37) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_cosine_warms_up_linearly_and_without_a_jump():
    rate = cosine(warmup=0.25, floor=0.1)
    assert [rate(p) for p in (0.0, 0.125, 0.25)] == [0.0, 0.5, 1.0]
    assert rate(0.25 - 1e-9) == pytest.approx(rate(0.25))
    assert rate(1.0) == pytest.approx(0.1)
    assert rate(0.625) == pytest.approx(0.55)


def test_step_counts_milestones_reached():
    rate = step(at=(0.2, 0.5, 0.9), factor=0.5)
    assert [rate(p) for p in (0.0, 0.2, 0.49, 0.5, 0.95)] == [1.0, 0.5, 0.5, 0.25, 0.125]


def test_constant_and_warmup():
    assert {constant()(p / 10) for p in range(10)} == {1.0}
    assert [warmup(0.5)(p) for p in (0.0, 0.1, 0.5, 0.9)] == [0.0, 0.2, 1.0, 1.0]
    assert warmup(0.0)(0.0) == 1.0


@pytest.mark.parametrize("value", [-0.1, 1.0, math.nan, 3])
def test_shares_outside_the_run_are_refused(value):
    for make in (lambda: cosine(value), lambda: step((value,)), lambda: warmup(value), lambda: until(value)):
        with pytest.raises(UsageError, match="share of the run"):
            make()


def test_until_ends_at_its_share():
    assert [until(0.4)(p) for p in (0.0, 0.39, 0.4, 1.0)] == [1.0, 1.0, 0.0, 0.0]


@given(share=shares)
def test_noise_comes_and_goes_as_the_authors_write_it(share):
    done, steps = share * 500, 500
    expected = (math.tanh(10 * (done / steps - 0.5)) + 1) / 2
    assert tanh_ramp()(share) == pytest.approx(expected, abs=1e-12)
    assert sqrt_decay(steps)(share) == pytest.approx(math.sqrt(1 / (1 + done) ** 0.55))


@pytest.mark.parametrize(
    "make",
    [lambda: tanh_ramp(0.0), lambda: tanh_ramp(math.nan), lambda: sqrt_decay(0), lambda: sqrt_decay(9, -1)],
)
def test_bad_noise_schedules_are_refused(make):
    with pytest.raises(UsageError, match="schedule"):
        make()
