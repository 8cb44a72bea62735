"""Keep the winners: in every sample the entries of largest magnitude, whatever the sample is (C13 (JPnet)).

A static threshold keeps many entries of a loud sample and few of a quiet one. The dynamic one is found anew
for each sample, as its k-th largest magnitude, exactly or from a random part of the entries.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gracile.errors import ShapeError, UsageError

_SLACK = 1e-9  # 0.07 * 100 is 7.000000000000001, whose ceiling is not meant


def winner_threshold(activations: Tensor, rate: float, sample: float = 1.0, seed: int | None = 0) -> Tensor:
    """The k-th largest magnitude of every sample, with k = ceil(rate * size).

    With ``sample`` a < 1 it is predicted as the ceil(rate * m)-th largest of m = ceil(a * size) entries, the
    same for all samples. Which ones is a function of ``seed`` and the two sizes, so that the same input gives
    the same answer and no random stream is touched; or, where ``seed`` is None, drawn anew from torch's
    generator.

    Args:
        activations: shape (samples, ...), real numbers. For one threshold of a whole batch, which is
            what a static threshold is calibrated to, pass ``activations.reshape(1, -1)``.
        rate: share of the entries to keep, the winner rate, in (0, 1].
        sample: share a of the entries to look at, in (0, 1].
        seed: of the choice of those entries; None draws them.

    Returns:
        Shape (samples,), without a gradient. Infinite where a sample has no entries.

    Raises:
        UsageError: a share outside (0, 1].
        ShapeError: no axis of samples, or not floating-point numbers.

    Source: C13 (JPnet), whose first form is IPnet: alpha = 0.1 of the entries, drawn anew each time, predict
    the threshold.

    >>> winner_threshold(torch.tensor([[1.0, -4.0, 2.0, 0.0], [0.1, 0.0, 0.0, 0.0]]), rate=0.5)
    tensor([2., 0.])
    """
    _require_share("rate", rate)
    _require_share("sample", sample)
    if activations.dim() < 2 or not activations.is_floating_point():
        raise ShapeError(
            "choosing winners",
            got=f"activations of shape {tuple(activations.shape)} and {activations.dtype}",
            expected="floating-point numbers of shape (samples, ...)",
            hint="x[None] makes one sample of a tensor",
        )
    entries = activations.detach().flatten(1).abs()
    size = entries.shape[1]
    if not size:
        return entries.new_full((len(entries),), math.inf)
    looked_at = _share_of(sample, size)
    if looked_at < size:
        if seed is None:
            positions = torch.randperm(size, device=entries.device)[:looked_at]
        else:
            positions = torch.from_numpy(_positions(size, looked_at, seed)).to(entries.device)
        entries = entries[:, positions]
    best = entries.topk(_share_of(rate, looked_at), dim=1, sorted=False)
    return best.values.amin(1)


def keep_winners(activations: Tensor, rate: float, sample: float = 1.0, seed: int | None = 0) -> Tensor:
    """Every sample with only its winners: a where |a| >= threshold, else 0.

    Ties at the threshold all win, so that at least ceil(rate * size) entries are kept; with > at most one
    fewer would be. The mask counts as a constant: the gradient reaches the winners and nobody else.
    What is not a number stays, so that it is seen. At rate 1 the input itself is returned.

    Args:
        activations, rate, sample, seed: as in :func:`winner_threshold`.

    >>> keep_winners(torch.tensor([[1.0, -4.0, 2.0, 0.0], [0.1, 0.3, 0.2, 0.0]]), rate=0.5)
    tensor([[ 0.0000, -4.0000,  2.0000,  0.0000],
            [ 0.0000,  0.3000,  0.2000,  0.0000]])
    """
    threshold = winner_threshold(activations, rate, sample, seed)
    if rate == 1.0:
        return activations
    threshold = threshold.reshape(-1, *(1,) * (activations.dim() - 1))
    return activations.masked_fill(activations.detach().abs() < threshold, 0.0)


def _share_of(share: float, size: int) -> int:
    return max(1, math.ceil(share * size - _SLACK))


@lru_cache(maxsize=256)
def _positions(size: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    """``count`` of ``size`` positions in rising order, which memory likes.

    No tensor, since one that is made while a network is traced must not be kept.
    """
    return np.sort(np.random.default_rng(seed).permutation(size)[:count])


def _require_share(name: str, value: float) -> None:
    if not 0.0 < value <= 1.0:  # also true for NaN
        raise UsageError("choosing winners", got=f"{name}={value}", expected="a share in (0, 1]")
