"""Random noise on weights, as a function of a seed alone: nothing to keep, nothing to resume."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import torch
from torch import Tensor

from gracile.errors import ShapeError, UsageError

Noise = Literal["uniform", "gaussian", "weight", "filter"]

_APART = 0x9E3779B9  # so that seed 0 is not the stream from which torch.manual_seed(0) drew the weights
_FLOOR = 1e-6  # of a filter's noise before it is brought to length; the authors' number


@torch.no_grad()
def add_noise_(tensors: Iterable[Tensor], strength: float, kind: Noise = "uniform", *, seed: int) -> None:
    """Add noise to every tensor, in place; with u = U(-1, 1), drawn for every number w::

        uniform    w + strength * u
        gaussian   w + strength * N(0, 1)
        weight     w + strength * u * |w|
        filter     w_i + strength * u_i * ||w_i|| / (||u_i|| + 1e-6)   for the filters i along axis 0

    ``weight`` leaves zeros at zero. ``filter`` gives every filter noise of the length strength * ||w_i||,
    so that it does not matter how the size of the weights is shared between layers; a bias counts as
    filters of one number. Strength 0 changes nothing.

    Args:
        tensors: of floating-point numbers, of any shape; changed in the order given.
        strength: in the unit of the weights for ``uniform`` (half the width) and ``gaussian`` (the standard
            deviation), a share of the weights for the other two; 0 or more.
        kind: see above.
        seed: the same seed and tensors give the same noise, on one kind of device.

    Raises:
        UsageError: an unknown kind, a strength that is negative or not finite.
        ShapeError: a tensor that does not hold floating-point numbers.

    Source: T1 (SmoothOut), the authors' ``none``, ``weight`` and ``filter``.

    >>> w = torch.tensor([[3.0, 4.0], [0.0, 0.0]]); clean = w.clone()
    >>> add_noise_([w], 0.1, "filter", seed=7); (w - clean).norm(dim=1).round(decimals=4)
    tensor([0.5000, 0.0000])
    """
    require_noise("adding noise", strength, kind)
    if not strength:
        return
    generators: dict[torch.device, torch.Generator] = {}
    for w in tensors:
        if not w.is_floating_point():
            raise ShapeError("adding noise", got=f"numbers of {w.dtype}", expected="floating-point numbers")
        if w.device not in generators:
            generators[w.device] = torch.Generator(w.device).manual_seed((seed + _APART) % 2**63)
        _add_(w, strength, kind, generators[w.device])


def require_noise(operation: str, strength: float, kind: str) -> None:
    """Raise UsageError for an unknown kind and for a strength that is negative or not finite."""
    if kind not in get_args(Noise):
        raise UsageError(operation, got=f"kind={kind!r}", expected=f"one of {', '.join(get_args(Noise))}")
    if not 0 <= strength < float("inf"):  # also true for NaN
        raise UsageError(operation, got=f"strength={strength}", expected="a finite number, 0 or more")


def _add_(w: Tensor, strength: float, kind: Noise, generator: torch.Generator) -> None:
    # Half precision is too coarse to draw in; one tensor at a time, so that the memory is used again.
    noise = torch.empty_like(w, dtype=torch.promote_types(w.dtype, torch.float32))
    if kind == "gaussian":
        noise.normal_(0.0, strength, generator=generator)
    else:
        width = strength if kind == "uniform" else 1.0
        noise.uniform_(-width, width, generator=generator)
    if kind == "weight":
        w.addcmul_(w.abs().mul_(strength), noise.to(w.dtype))
    elif kind == "filter":
        scale = _lengths(w) / (_lengths(noise) + _FLOOR)
        w.add_(noise.mul_(scale), alpha=strength)
    else:
        w.add_(noise)


def _lengths(w: Tensor) -> Tensor:
    """Norm of every slice along axis 0, in a shape that broadcasts; in 32 bits at least."""
    if w.dim() < 2:
        return w.abs()
    dtype = torch.promote_types(w.dtype, torch.float32)
    lengths: Tensor = torch.linalg.vector_norm(w, 2, tuple(range(1, w.dim())), keepdim=True, dtype=dtype)
    return lengths
