from __future__ import annotations

import math

import pytest
import torch

from gracile.algebra import add_noise_
from gracile.errors import ShapeError, UsageError

KINDS = ["uniform", "gaussian", "weight", "filter"]


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = [(40, 20, 5, 5), (300, 100), (7,), ()]
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def noise_on(tensors, strength, kind, seed=0):
    noisy = [w.clone() for w in tensors]
    add_noise_(noisy, strength, kind, seed=seed)
    return [a - b for a, b in zip(noisy, tensors, strict=True)]


def test_uniform_noise_fills_its_box_evenly():
    for noise in noise_on(weights(), 0.1, "uniform")[:2]:
        assert noise.abs().max() <= 0.1 + 1e-6
        assert noise.mean().abs() < 5 * 0.1 / math.sqrt(3 * noise.numel())
        quarters = torch.histc(noise, 4, -0.1, 0.1) / noise.numel()
        assert (quarters - 0.25).abs().max() < 0.02


def test_gaussian_noise_has_its_deviation():
    for noise in noise_on(weights(), 0.1, "gaussian")[:2]:
        assert noise.std() == pytest.approx(0.1, rel=0.02)
        assert (noise.abs() < 0.1).double().mean() == pytest.approx(0.6827, abs=0.02)


def test_weight_noise_is_a_share_of_every_weight():
    tensors = weights()
    tensors[1][5:] = 0
    for w, noise in zip(tensors, noise_on(tensors, 0.3, "weight"), strict=True):
        assert (noise.abs() <= 0.3 * w.abs() + 1e-6).all()
    shares = (noise_on(tensors, 0.3, "weight")[0] / tensors[0]).flatten()
    large = shares[tensors[0].flatten().abs() > 0.1]
    assert large.std() == pytest.approx(0.3 / math.sqrt(3), rel=0.02)
    assert not noise_on(tensors, 0.3, "weight")[1][5:].any()


def test_filter_noise_is_the_authors_formula():
    """Written out, filter by filter; the draws are what uniform noise makes of zeros."""
    tensors = weights(torch.float64)
    tensors[0][3] = 0
    found = noise_on(tensors, 0.3, "filter", seed=11)
    draws = noise_on([torch.zeros_like(w) for w in tensors], 1.0, "uniform", seed=11)
    for w, draw, noise in zip(tensors, draws, found, strict=True):
        rows = [(w, draw, noise)] if w.dim() == 0 else zip(w, draw, noise, strict=True)
        for w_i, n_i, added in rows:
            expected = n_i / (n_i.norm() + 1e-6) * w_i.norm() * 0.3
            torch.testing.assert_close(added, expected, atol=1e-12, rtol=1e-6)
            assert added.norm().item() == pytest.approx(0.3 * w_i.norm().item(), rel=1e-3)
    assert not found[0][3].any()


@pytest.mark.parametrize("kind", KINDS)
def test_noise_follows_from_the_seed_alone(kind):
    """And is not the stream that torch.manual_seed gives to whoever made the weights."""
    torch.manual_seed(1)
    state = torch.get_rng_state()
    stream = torch.empty(20000).uniform_(-0.1, 0.1)
    torch.set_rng_state(state)
    first, again, other = (noise_on(weights(), 0.1, kind, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first[:2], again, other, strict=False):
        assert torch.equal(a, b)
        assert (a != c).double().mean() > 0.99
    assert torch.corrcoef(torch.stack([first[0].flatten(), stream]))[0, 1].abs() < 0.05
    assert not torch.equal(first[0].flatten()[:700], first[1].flatten()[:700])  # tensors share no draws


@pytest.mark.parametrize("kind", KINDS)
def test_strength_zero_changes_no_bit(kind):
    tensors = [torch.tensor([-0.0, 1.0, float("inf")])]
    add_noise_(tensors, 0.0, kind, seed=0)
    assert tensors[0].tolist() == [0.0, 1.0, float("inf")]
    assert math.copysign(1, tensors[0][0].item()) == -1


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_and_other_layouts(kind):
    w = torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    for tensor in (w.bfloat16(), w.to(memory_format=torch.channels_last), w.requires_grad_()):
        clean = tensor.detach().clone()
        add_noise_([tensor], 0.5, kind, seed=0)
        noise = (tensor.detach().double() - clean.double()).flatten(1)
        assert noise.isfinite().all()
        assert (noise != 0).double().mean() > 0.9
        lengths = noise.norm(dim=1) / clean.double().flatten(1).norm(dim=1)
        # E |u|^2 = 1/3, of a normal number 1; weights here have E w^2 = 1
        expected = 0.5 if kind in ("gaussian", "filter") else 0.5 / math.sqrt(3)
        assert lengths.mean() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("strength", [-0.1, float("nan"), float("inf")])
def test_bad_strengths_are_refused(strength):
    with pytest.raises(UsageError, match="strength"):
        add_noise_(weights(), strength, seed=0)


def test_bad_kinds_and_tensors_are_refused():
    with pytest.raises(UsageError, match="uniform, gaussian, weight, filter"):
        add_noise_(weights(), 0.1, "laplace", seed=0)
    with pytest.raises(ShapeError, match="int64"):
        add_noise_([torch.arange(3)], 0.1, seed=0)
