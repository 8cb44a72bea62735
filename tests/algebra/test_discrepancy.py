"""Discrepancies of samples against sums written out, and what their gradients do."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra import coral, mean_entropy, mmd, reverse_gradient
from gracile.errors import GracileError, ShapeError, UsageError

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


def samples(n: int, m: int, d: int, seed: int = 0, shift: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, shift + 1.5 * torch.randn(m, d, generator=generator, dtype=torch.float64)


def brute_mmd(x: np.ndarray, y: np.ndarray, bandwidth: str) -> float:
    def square(a, b):
        return float(((a - b) ** 2).sum())

    pairs = sorted(square(a, b) for a, b in combinations([*x, *y], 2))
    # torch's median is the lower of the two in the middle
    h = pairs[(len(pairs) - 1) // 2] if bandwidth == "median" else sum(pairs) / len(pairs)

    def mean_kernel(these, those):
        values = [
            sum(math.exp(-square(a, b) / (s * h)) for s in SCALES) / len(SCALES) for a in these for b in those
        ]
        return sum(values) / len(values)

    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)


@pytest.mark.parametrize("bandwidth", ["median", "mean"])
@pytest.mark.parametrize(("n", "m", "d"), [(5, 7, 3), (1, 4, 2), (6, 6, 1)])
def test_mmd_equals_loops(n, m, d, bandwidth):
    x, y = samples(n, m, d, seed=n)
    expected = brute_mmd(x.numpy(), y.numpy(), bandwidth)
    assert mmd(x, y, bandwidth=bandwidth).item() == pytest.approx(expected, rel=1e-10)
    assert mmd(x.float(), y.float(), bandwidth=bandwidth).item() == pytest.approx(expected, rel=1e-4)


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 5), st.integers(0, 999))
def test_mmd_is_a_distance(n, m, d, seed):
    x, y = samples(n, m, d, seed)
    value = mmd(x, y).item()
    assert -1e-12 <= value <= 2
    assert mmd(y, x).item() == pytest.approx(value, abs=1e-12)
    assert mmd(x, x).item() == pytest.approx(0, abs=1e-12)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    assert mmd(x[order], y).item() == pytest.approx(value, abs=1e-12)
    # The bandwidth follows the features: neither their unit nor their origin matters.
    assert mmd(3 * x + 5, 3 * y + 5).item() == pytest.approx(value, abs=1e-9)


def test_mmd_sees_a_shift_that_coral_does_not():
    x, _ = samples(40, 1, 3)
    assert coral(x, x + 2).item() == pytest.approx(0, abs=1e-20)
    assert mmd(x, x + 2) > 0.5 > mmd(x, x + 0.1)


def test_coral_equals_numpy():
    x, y = samples(9, 14, 4)
    apart = np.cov(x.numpy(), rowvar=False) - np.cov(y.numpy(), rowvar=False)
    assert coral(x, y).item() == pytest.approx((apart**2).sum() / (4 * 4**2), rel=1e-12)


def test_entropy_equals_the_sum():
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    total = 0.0
    for row in logits.tolist():
        shares = [math.exp(value) / sum(map(math.exp, row)) for value in row]
        total -= sum(p * math.log(p) for p in shares)
    assert mean_entropy(logits).item() == pytest.approx(total / 6, rel=1e-12)
    assert mean_entropy(torch.zeros(3, 7)).item() == pytest.approx(math.log(7), rel=1e-6)
    assert mean_entropy(1e4 * torch.eye(3)).item() == 0


def fixed_bandwidth(x, y):
    """MMD with the bandwidth of the first call: what the gradient is the gradient of."""
    from gracile.algebra import discrepancy

    squares = discrepancy._squared_distances(torch.cat([x, y]))
    kernel = sum(torch.exp(-squares / (s * h)) for s in SCALES) / len(SCALES)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()


h = 1.7


def test_gradients_of_distances_and_entropy():
    x, y = (sample.requires_grad_() for sample in samples(4, 5, 3))
    assert torch.autograd.gradcheck(coral, (x, y))
    assert torch.autograd.gradcheck(mean_entropy, (x,))
    assert torch.autograd.gradcheck(fixed_bandwidth, (x, y))


@pytest.mark.parametrize("bandwidth", ["median", "mean"])
def test_the_bandwidth_is_a_constant_to_the_gradient(bandwidth):
    x, y = (sample.requires_grad_() for sample in samples(4, 5, 3))
    (found,) = torch.autograd.grad(mmd(x, y, bandwidth=bandwidth), x)
    pairs = torch.stack([(a - b).square().sum() for a, b in combinations([*x.detach(), *y.detach()], 2)])
    global h
    h = float(pairs.median() if bandwidth == "median" else pairs.mean())
    (expected,) = torch.autograd.grad(fixed_bandwidth(x, y), x)
    torch.testing.assert_close(found, expected)
    # With a bandwidth that moved along, stretching everything would change nothing.
    assert (
        abs((found * x).sum() + torch.autograd.grad(mmd(x, y, bandwidth=bandwidth), y)[0].mul(y).sum()) > 1e-3
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [0.0, 1e-20, 1.0, 10.0])
def test_gradients_are_finite_everywhere(dtype, scale):
    x, y = samples(6, 5, 3)
    x[:4] = 0  # most pairs are alike, as after a ReLU that is off
    y[:4] = 0
    for of in (mmd, coral):
        a, b = ((scale * part).to(dtype).requires_grad_() for part in (x, y))
        value = of(a, b)
        value.backward()
        assert torch.isfinite(value)
        assert torch.isfinite(a.grad).all()
        assert torch.isfinite(b.grad).all()
    logits = (scale * x).to(dtype).requires_grad_()
    mean_entropy(logits).backward()
    assert torch.isfinite(logits.grad).all()


def test_following_the_gradient_brings_samples_together():
    x, y = samples(20, 20, 2, shift=3.0)
    for of, rate in ((mmd, 20.0), (coral, 2.0)):
        moved = x.clone().requires_grad_()
        start = of(moved, y).item()
        for _ in range(60):
            (gradient,) = torch.autograd.grad(of(moved, y), moved)
            moved = (moved - rate * gradient).detach().requires_grad_()
        assert of(moved, y).item() < 0.2 * start


@given(st.floats(0, 10), st.integers(0, 99))
def test_the_reversed_gradient_is_minus_the_factor_times_the_gradient(factor, seed):
    x = samples(3, 1, 4, seed)[0].requires_grad_()
    (plain,) = torch.autograd.grad(x.sin().sum(), x)
    y = reverse_gradient(x, factor)
    assert torch.equal(y, x)
    (found,) = torch.autograd.grad(y.sin().sum(), x)
    torch.testing.assert_close(found, -factor * plain)


@pytest.mark.parametrize("of", [mmd, coral])
def test_wrong_shapes_are_named(of):
    x = torch.zeros(4, 3)
    for wrong in (
        torch.zeros(4),
        torch.zeros(4, 3, 1),
        torch.zeros(0, 3),
        torch.zeros(4, 3, dtype=torch.long),
    ):
        with pytest.raises(ShapeError, match="samples, features"):
            of(x, wrong)
    with pytest.raises(ShapeError, match="as many features"):
        of(x, torch.zeros(4, 2))
    with pytest.raises(UsageError, match="not finite"):
        of(x, torch.full((4, 3), float("nan")))


def test_wrong_numbers_are_named():
    x = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match="2 or more samples"):
        coral(x, x[:1])
    for scales in ((), (0.0,), (1.0, float("nan")), (-1.0,)):
        with pytest.raises(UsageError, match="scales"):
            mmd(x, x, scales)
    with pytest.raises(UsageError, match="'median' or 'mean'"):
        mmd(x, x, bandwidth="mode")
    with pytest.raises(ShapeError, match="entropy"):
        mean_entropy(torch.zeros(3))
    with pytest.raises(UsageError, match="entropy"):
        mean_entropy(torch.tensor([[0.0, float("-inf")]]))
    for factor in (-1.0, float("nan"), float("inf")):
        with pytest.raises(GracileError, match="factor"):
            reverse_gradient(x, factor)
