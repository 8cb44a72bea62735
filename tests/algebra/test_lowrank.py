"""Factors of matrices against closed forms, NumPy and scikit-learn; clipping against truncation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from gracile.algebra import clip_rank_, factor, live_rank, rank_within, spectrum
from gracile.errors import ShapeError, UsageError

METHODS = ["pca", "svd", "kmeans"]


def matrix(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def truncated(W: Tensor, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(W.double().numpy(), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vh[..., :rank, :]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_pca_and_svd_are_the_nearest_matrix_of_their_rank(outputs, inputs, rank, seed):
    W, rank = matrix(outputs, inputs, seed=seed), min(rank, outputs, inputs)
    for method in ("pca", "svd"):
        mix, basis = factor(W, rank, method)
        assert mix.shape == (outputs, rank)
        assert basis.shape == (rank, inputs)
        np.testing.assert_allclose((mix @ basis).numpy(), truncated(W, rank), atol=1e-12)


def test_pca_is_the_authors_rule():
    """Eigenvectors of X'X / (CHW - 1) with X = (CHW) x N, no mean taken; layer 1 is (X V)', layer 2 is V."""
    W = matrix(6, 20)
    values, vectors = np.linalg.eigh((W @ W.T).numpy() / 19)
    V = vectors[:, ::-1][:, :3]
    mix, basis = factor(W, 3, "pca")
    signs = np.sign((mix.numpy() * V).sum(0))
    np.testing.assert_allclose(mix.numpy() * signs, V, atol=1e-12)
    np.testing.assert_allclose(basis.numpy() * signs[:, None], (W.T.numpy() @ V).T, atol=1e-12)
    shares = values[::-1].cumsum() / values.sum()
    for share in (0.5, 0.7, 0.9, 0.95):
        assert rank_within(spectrum(W), 1 - share) == int((shares < share).sum()) + 1


def test_svd_splits_the_scale_evenly():
    mix, basis = factor(1e6 * matrix(7, 5), 4, "svd")
    torch.testing.assert_close(mix.mT @ mix, basis @ basis.mT)
    torch.testing.assert_close((mix.mT @ mix).diagonal(), spectrum(1e6 * matrix(7, 5))[:4])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_full_rank_is_exact(method, dtype):
    W = matrix(4, 9).to(dtype)
    mix, basis = factor(W, 4, method)
    assert mix.dtype == basis.dtype == dtype
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(mix @ basis, W, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "W", [torch.zeros(3, 5), torch.ones(4, 4), 1e-30 * matrix(3, 3), 1e30 * matrix(5, 2)]
)
def test_zero_deficient_tiny_and_huge_matrices(W, method):
    mix, basis = factor(W, min(W.shape), method)
    assert mix.isfinite().all()
    assert basis.isfinite().all()
    if method != "kmeans" or len(W.unique(dim=0)) <= min(W.shape):
        torch.testing.assert_close(mix @ basis, W, rtol=1e-6, atol=1e-6 * float(W.abs().max()))


def test_the_same_numbers_give_the_same_factors():
    for method in METHODS:
        first, second = factor(matrix(12, 30), 5, method), factor(matrix(12, 30).clone(), 5, method)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_kmeans_assigns_each_row_to_its_nearest_center_and_rivals_scikit_learn():
    for seed in range(5):
        W = matrix(5, 8, seed=seed)[torch.arange(40) % 5] + 0.3 * matrix(40, 8, seed=seed + 50)
        mix, centers = factor(W, 5, "kmeans")
        assert torch.equal(mix.sum(1), torch.ones(40, dtype=torch.float64))
        assert set(mix.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(mix.argmax(1), torch.cdist(W, centers).argmin(1))
        ours = float((W - mix @ centers).square().sum())
        theirs = KMeans(5, n_init=10, random_state=0).fit(W.numpy()).inertia_
        assert ours <= 1.01 * theirs


def test_a_batch_is_factored_matrix_by_matrix_and_shares_one_spectrum():
    W = matrix(3, 4, 6)
    for method in METHODS:
        mix, basis = factor(W, 2, method)
        for one, a, b in zip(W, mix, basis, strict=True):
            alone = factor(one, 2, method)
            torch.testing.assert_close((a, b), alone)
    alone = torch.stack([spectrum(one) for one in W])
    torch.testing.assert_close(spectrum(W), alone.square().sum(0).sqrt())


def test_spectrum_forgets_rounding_errors():
    W = matrix(20, 4) @ matrix(4, 30)
    assert int((spectrum(W) > 0).sum()) == 4
    assert rank_within(spectrum(W), 0.0) == 4
    assert rank_within(spectrum(torch.zeros(4, 4)), 0.0) == 1


@pytest.mark.parametrize(
    ("W", "rank", "method", "error", "words"),
    [
        (torch.ones(3), 1, "pca", ShapeError, "shape"),
        (torch.ones(3, 3, dtype=torch.long), 1, "pca", ShapeError, "floating"),
        (torch.ones(0, 3), 1, "pca", ShapeError, "shape"),
        (torch.ones(3, 3, device="meta"), 1, "pca", ShapeError, "shape"),
        (torch.tensor([[1.0, float("nan")]]), 1, "svd", UsageError, "not finite"),
        (torch.tensor([[1.0, float("inf")]]), 1, "kmeans", UsageError, "not finite"),
        (torch.ones(3, 4), 0, "pca", UsageError, "from 1 to 3"),
        (torch.ones(3, 4), 4, "pca", UsageError, "from 1 to 3"),
        (torch.ones(3, 4), 2.0, "pca", UsageError, "from 1 to 3"),
        (torch.ones(3, 4), True, "pca", UsageError, "from 1 to 3"),
        (torch.ones(3, 4), 2, "qr", UsageError, "pca, svd, kmeans"),
    ],
)
def test_what_makes_no_sense_is_refused(W, rank, method, error, words):
    with pytest.raises(error, match=words):
        factor(W, rank, method)


@pytest.mark.parametrize("error", [-0.1, 1.0, float("nan")])
def test_errors_outside_of_their_range_are_refused(error):
    with pytest.raises(UsageError, match="0 <= e"):
        rank_within(torch.ones(3), error)
    with pytest.raises(UsageError, match="0 <= e"):
        clip_rank_(torch.ones(2, 2), torch.ones(2, 2), error)


def error_of(W: np.ndarray, rank: int) -> float:
    s = np.linalg.svd(W, compute_uv=False)
    return float((s[rank:] ** 2).sum() / (s**2).sum())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 9), st.floats(0.01, 0.6), st.integers(0, 99))
def test_clipping_truncates_the_product(outputs, inputs, components, epsilon, seed):
    """Also where there are more components than the product can have, and factors of very different size."""
    mix, basis = (
        1e4 * matrix(outputs, components, seed=seed),
        1e-3 * matrix(components, inputs, seed=seed + 100),
    )
    W = (mix @ basis).numpy()
    before = mix.clone(), basis.clone()
    rank = clip_rank_(mix, basis, epsilon)
    most = min(outputs, inputs, components)
    wanted = next(k for k in range(1, most + 1) if k == most or error_of(W, k) <= epsilon)
    assert rank == wanted
    if rank == components:
        assert all(torch.equal(a, b) for a, b in zip(before, (mix, basis), strict=True))
        return
    np.testing.assert_allclose((mix @ basis).numpy(), truncated(torch.tensor(W), rank), rtol=1e-9, atol=1e-9)
    assert not mix[:, rank:].any()
    assert not basis[rank:].any()
    torch.testing.assert_close(mix.mT @ mix, basis @ basis.mT, rtol=1e-8, atol=1e-8)
    assert live_rank(mix, basis) == rank


def test_the_error_is_measured_on_the_product_not_on_a_factor():
    """The first factor alone would give up its second column, which the second makes the larger one."""
    mix = torch.diag(torch.tensor([1.0, 0.1], dtype=torch.float64))
    basis = torch.diag(torch.tensor([0.01, 1.0], dtype=torch.float64))
    assert error_of(mix.numpy(), 1) < 0.02
    assert clip_rank_(mix, basis, 0.02) == 1
    torch.testing.assert_close(mix @ basis, torch.diag(torch.tensor([0.0, 0.1], dtype=torch.float64)))


def test_dead_components_get_no_gradient():
    mix, basis = matrix(5, 4).requires_grad_(), matrix(4, 6).requires_grad_()
    rank = clip_rank_(mix, basis, 0.3)
    assert rank < 4
    (mix @ (basis @ matrix(6, 10, seed=1))).square().sum().backward()
    assert not mix.grad[:, rank:].any()
    assert not basis.grad[rank:].any()
    assert mix.grad[:, :rank].any()


@pytest.mark.parametrize("zero", ["mix", "basis", "both"])
def test_a_product_of_zero_is_left_as_it_is(zero):
    """A factor that starts from zero means to grow."""
    mix, basis = matrix(3, 2), matrix(2, 4)
    for part in {"mix": (mix,), "basis": (basis,), "both": (mix, basis)}[zero]:
        part.zero_()
    before = mix.clone(), basis.clone()
    assert clip_rank_(mix, basis, 0.5) == (0 if zero == "both" else 2)
    assert torch.equal(mix, before[0])
    assert torch.equal(basis, before[1])


def test_half_dead_components_die_altogether():
    mix, basis = matrix(4, 3), matrix(3, 5)
    W = mix[:, [0, 2]] @ basis[[0, 2]]
    basis[1] = 0
    assert live_rank(mix, basis) == 3
    assert clip_rank_(mix, basis, 1e-9) == 2
    torch.testing.assert_close(mix @ basis, W)


def test_epsilon_zero_does_nothing():
    mix, basis = torch.ones(3, 3), torch.ones(3, 3)
    assert clip_rank_(mix, basis, 0.0) == 3
    assert torch.equal(mix, torch.ones(3, 3))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_of_grouped_convolutions(layout):
    """Every group by itself, one rank for all: block-diagonal products, written out."""
    mix = torch.randn(6, 4, 1, 1, generator=torch.Generator().manual_seed(0)).to(memory_format=layout)
    basis = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)
    before = [(mix[3 * g : 3 * g + 3, :, 0, 0] @ basis[4 * g : 4 * g + 4].flatten(1)) for g in range(2)]
    rank = clip_rank_(mix, basis, 0.2, groups=2)
    s = [np.linalg.svd(W.numpy(), compute_uv=False) ** 2 for W in before]
    lost = [sum(v[k:].sum() for v in s) / sum(v.sum() for v in s) for k in range(4)]
    assert rank == next(k for k in range(4) if lost[k] <= 0.2)
    for g, W in enumerate(before):
        now = mix[3 * g : 3 * g + 3, :, 0, 0] @ basis[4 * g : 4 * g + 4].flatten(1)
        np.testing.assert_allclose(now.numpy(), truncated(W, rank), atol=1e-5)
    assert live_rank(mix, basis, groups=2) == rank


@pytest.mark.parametrize(
    ("mix", "basis", "groups"),
    [
        ((3, 2), (3, 4), 1),
        ((3, 2, 3, 3), (2, 4), 1),
        ((3, 2), (4, 4), 2),
        ((4, 2), (4, 4), 0),
        ((2,), (2, 4), 1),
    ],
)
def test_factors_that_do_not_belong_together_are_refused(mix, basis, groups):
    with pytest.raises(ShapeError, match="groups"):
        clip_rank_(torch.ones(mix), torch.ones(basis), 0.1, groups)


def test_not_a_number_is_refused_and_nothing_changes():
    mix, basis = torch.ones(2, 2), torch.ones(2, 2)
    mix[0, 0] = float("nan")
    with pytest.raises(UsageError, match="not finite"):
        clip_rank_(mix, basis, 0.1)
    assert torch.equal(basis, torch.ones(2, 2))
