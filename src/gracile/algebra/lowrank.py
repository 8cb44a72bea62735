"""A matrix as the product of two thinner ones: mix (outputs x rank) @ basis (rank x inputs).

Everything is computed in float64 on the CPU, whatever the tensors are: the same numbers give the same factors
on every device and every rank. A batch of matrices (the groups of a convolution) shares one rank.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Final, Literal

import torch
from scipy.cluster.vq import kmeans2  # type: ignore[import-untyped]
from torch import Tensor

from gracile.errors import ShapeError, UsageError

Factoring = Literal["pca", "svd", "kmeans"]


def factor(matrix: Tensor, rank: int, method: Factoring = "pca") -> tuple[Tensor, Tensor]:
    """Mix and basis, whose product is ``matrix`` or near to it.

    ``pca``: mix = V, the first eigenvectors of the covariance W Wᵀ, from which no mean is taken, and
    basis = Vᵀ W. ``svd``: W = U S Vᵀ, mix = U √S, basis = √S Vᵀ. Both products are the nearest matrix of that
    rank and differ in scale alone: the first has an orthonormal mix, the second two factors of one size.
    ``kmeans``: basis = centers of the rows, mix tells by a single 1 which of them each row is near to.

    With rank = min(outputs, inputs) the first two are exact, ``kmeans`` where no more rows than that differ.

    Args:
        matrix: W, shape (..., outputs, inputs).
        rank: K, from 1 to min(outputs, inputs).
        method: see above.

    Returns:
        mix of shape (..., outputs, K) and basis of shape (..., K, inputs), as ``matrix`` in dtype and device.

    Raises:
        ShapeError: ``matrix`` is no matrix of floating-point numbers.
        UsageError: a number that is not finite, an impossible rank, or an unknown method.

    Source: C5 (force regularization), the authors' code. The eigenvectors are computed as left singular
    vectors of W, which are the same: squaring W first would lose half of the digits.

    >>> mix, basis = factor(torch.tensor([[1.0, 2.0], [2.0, 4.0]]), rank=1)
    >>> mix.shape, basis.shape, torch.allclose(mix @ basis, torch.tensor([[1.0, 2.0], [2.0, 4.0]]))
    (torch.Size([2, 1]), torch.Size([1, 2]), True)
    """
    W = _double("factoring a matrix", matrix)
    full = min(W.shape[-2:])
    if type(rank) is not int or not 1 <= rank <= full:
        raise UsageError(
            "factoring a matrix",
            got=f"rank {rank} for shape {tuple(W.shape)}",
            expected=f"a whole number from 1 to {full}",
        )
    if method not in _METHODS:
        raise UsageError(
            "factoring a matrix", got=f"method {method!r}", expected=f"one of {', '.join(_METHODS)}"
        )
    mix, basis = _METHODS[method](W, rank)
    return mix.to(matrix), basis.to(matrix)


def spectrum(matrix: Tensor) -> Tensor:
    """Singular values, the largest first, in float64 on the CPU; below rounding they are 0.

    Of a batch, whose matrices share one rank, the root of the sum of squares over the batch: component k of
    all its matrices goes together.

    Args:
        matrix: shape (..., outputs, inputs).

    Returns:
        shape (min(outputs, inputs),).

    Raises:
        ShapeError, UsageError: as :func:`factor`.

    >>> spectrum(torch.diag(torch.tensor([3.0, 4.0])))
    tensor([4., 3.], dtype=torch.float64)
    """
    values = torch.linalg.svdvals(_double("singular values", matrix))
    return _joint(values, max(matrix.shape[-2:]))


def rank_within(values: Tensor, error: float) -> int:
    """The smallest K >= 1 with e(K) = sum_{k>K} s_k² / sum_k s_k² <= error.

    Args:
        values: singular values s, the largest first, as from :func:`spectrum`.
        error: share of the energy that may be lost, 0 <= error < 1; 0.05 keeps 95 %.

    Raises:
        UsageError: an error outside of [0, 1).

    Source: C5 (force regularization) and C18 (Group Scissor).

    >>> rank_within(torch.tensor([4.0, 3.0, 0.0]), 0.0), rank_within(torch.tensor([4.0, 3.0, 0.0]), 0.36)
    (2, 1)
    """
    if not 0 <= error < 1:
        raise UsageError("choosing a rank", got=f"an error of {error}", expected="0 <= error < 1")
    if not bool(values.any()):
        return 1
    energy = (values / values.max()).square()
    lost = energy.flip(0).cumsum(0).flip(0)  # lost[K] is what all from K on hold: small ones first, exactly
    return max(1, int((lost > error * lost[0]).sum()))


def live_rank(mix: Tensor, basis: Tensor, groups: int = 1) -> int:
    """How many components are not zero in both factors.

    Args:
        mix, basis, groups: as :func:`clip_rank_`.

    >>> live_rank(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    1
    """
    a, b = _matrices(mix, basis, groups)
    return int(((a != 0).any(1) | (b != 0).any(2)).any(0).sum())


@torch.no_grad()
def clip_rank_(mix: Tensor, basis: Tensor, epsilon: float, groups: int = 1) -> int:
    """Clip the rank of a product in place; return how many components live.

    From QR of both factors and the SVD of a small matrix, mix @ basis = U S Vᵀ. K is the smallest rank with
    e(K) = sum_{k>K} s_k² / sum_k s_k² <= epsilon, measured on the product and not on a factor. If fewer than
    now, mix becomes (U √S, 0) and basis (√S Vᵀ, 0). A component that is zero in both factors gets no gradient
    and stays zero, so zeroing equals removing while shapes, optimizer and checkpoints stay as they are.

    Nothing changes where the rank does not fall, where epsilon is 0, and where the product is zero.

    Args:
        mix: shape (outputs, K, ...) with dimensions of size 1 at the end: the weight of a linear layer or of
            a convolution of size 1.
        basis: shape (groups * K, inputs, ...): the weight of the layer before it.
        epsilon: share of the energy that may be lost, 0 <= epsilon < 1.
        groups: of both convolutions. All groups keep the same number of components.

    Raises:
        ShapeError: the shapes do not belong together.
        UsageError: a number that is not finite, or an epsilon outside of [0, 1).

    Source: C18 (Group Scissor), rank clipping. There the factors are projected on principal components of one
    factor; here both get the root of the singular values, so that their scales stay balanced.

    >>> mix, basis = torch.eye(3), torch.diag(torch.tensor([3.0, 1.0, 0.1]))
    >>> clip_rank_(mix, basis, epsilon=0.01), (mix @ basis).diagonal()
    (2, tensor([3., 1., 0.]))
    """
    if not 0 <= epsilon < 1:
        raise UsageError("clipping a rank", got=f"epsilon {epsilon}", expected="0 <= epsilon < 1")
    a, b = (_double("clipping a rank", part) for part in _matrices(mix, basis, groups))
    live = live_rank(mix, basis, groups)
    (qa, ra), (qb, rb) = torch.linalg.qr(a), torch.linalg.qr(b.mT)
    u, s, vh = torch.linalg.svd(ra @ rb.mT, full_matrices=False)
    values = _joint(s, max(a.shape[1], b.shape[2]))
    rank = rank_within(values, epsilon)
    if epsilon == 0 or rank >= live or not bool(values.any()):
        return live
    root = s[:, :rank].sqrt()
    a, b = torch.zeros_like(a), torch.zeros_like(b)
    a[:, :, :rank] = qa @ u[:, :, :rank] * root[:, None, :]
    b[:, :rank] = root[:, :, None] * vh[:, :rank] @ qb.mT
    mix.copy_(a.reshape(mix.shape))
    basis.copy_(b.reshape(basis.shape))
    return rank


@torch.no_grad()
def truncate_rank_(mix: Tensor, basis: Tensor, rank: int, groups: int = 1) -> None:
    """Zero all components but the first ``rank`` in both factors, in place.

    Args:
        mix, basis, groups: as :func:`clip_rank_`.
        rank: components that stay.

    >>> mix, basis = torch.ones(2, 3), torch.ones(3, 4)
    >>> truncate_rank_(mix, basis, 1); mix @ basis
    tensor([[1., 1., 1., 1.],
            [1., 1., 1., 1.]])
    """
    _matrices(mix, basis, groups)  # raises where the shapes do not belong together
    mix[:, rank:] = 0
    basis.view(groups, -1, *basis.shape[1:])[:, rank:] = 0


def _pca(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    mix = torch.linalg.svd(W, full_matrices=False).U[..., :rank]
    return mix, mix.mT @ W


def _svd(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(W, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root[..., None, :], root[..., None] * vh[..., :rank, :]


def _kmeans(W: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    pairs = [_clustered(rows, rank) for rows in W.reshape(-1, *W.shape[-2:])]
    mix, basis = (torch.stack(parts) for parts in zip(*pairs, strict=True))
    return mix.reshape(*W.shape[:-1], rank), basis.reshape(*W.shape[:-2], rank, W.shape[-1])


def _clustered(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Centers that start from the rows that lie furthest apart: no random numbers, and no equal centers."""
    chosen = [int(rows.norm(dim=1).argmax())]
    nearest = torch.cdist(rows, rows[chosen]).flatten()
    while len(chosen) < rank:
        chosen.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, torch.cdist(rows, rows[chosen[-1:]]).flatten())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        _, owner = kmeans2(rows.numpy(), rows[chosen].numpy(), iter=100, minit="matrix")
    mix = torch.nn.functional.one_hot(torch.from_numpy(owner).long(), rank).double()
    # Means anew, from the rows that each center has at last; one that has none becomes a zero component.
    return mix, (mix.mT @ rows) / mix.sum(0).clamp_min(1)[:, None]


_METHODS: Final[dict[str, Callable[[Tensor, int], tuple[Tensor, Tensor]]]] = {
    "pca": _pca,
    "svd": _svd,
    "kmeans": _kmeans,
}


def _joint(values: Tensor, longer: int) -> Tensor:
    """Singular values (..., K) of a batch as one row, without those that are rounding errors."""
    joint = torch.linalg.vector_norm(values.reshape(-1, values.shape[-1]), dim=0)
    return torch.where(joint > longer * torch.finfo(torch.float64).eps * joint.max(), joint, 0.0)


def _double(operation: str, matrix: Tensor) -> Tensor:
    if matrix.dim() < 2 or not matrix.is_floating_point() or matrix.numel() == 0 or matrix.is_meta:
        raise ShapeError(
            operation,
            got=f"{matrix.dtype} of shape {tuple(matrix.shape)}",
            expected="floating-point numbers of shape (..., outputs, inputs)",
        )
    double = matrix.detach().to("cpu", torch.float64)
    if not bool(double.isfinite().all()):
        raise UsageError(operation, got="a number that is not finite", expected="finite numbers")
    return double


def _matrices(mix: Tensor, basis: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Factors of every group: (groups, outputs, K) and (groups, K, inputs)."""
    fits = (
        groups >= 1
        and mix.dim() >= 2
        and basis.dim() >= 2
        and mix.numel() > 0
        and basis.numel() > 0
        and math.prod(mix.shape[2:]) == 1
        and basis.shape[0] == groups * mix.shape[1]
        and mix.shape[0] % groups == 0
    )
    if not fits:
        raise ShapeError(
            "clipping a rank",
            got=f"mix {tuple(mix.shape)}, basis {tuple(basis.shape)}, {groups} groups",
            expected="(outputs, K, 1...) and (groups * K, inputs, ...)",
        )
    K = mix.shape[1]
    return mix.reshape(groups, -1, K), basis.reshape(groups, K, -1)
