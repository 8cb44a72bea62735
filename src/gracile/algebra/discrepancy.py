"""How far apart two samples are, and how undecided a classifier is: what domain adaptation makes small.

A network trained on one domain and used on another meets features that it has not seen. Each function here
puts a differentiable number on that; added to the loss it draws the two domains together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from gracile.errors import ShapeError, UsageError

Bandwidth = Literal["median", "mean"]

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Bandwidths of the kernels, in units of the typical squared distance."""


def mmd(x: Tensor, y: Tensor, scales: Sequence[float] = SCALES, bandwidth: Bandwidth = "median") -> Tensor:
    """Squared maximum mean discrepancy of two samples under a mean of Gaussian kernels, the biased estimate::

        MMD^2  = mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)
        k(a, b) = mean over scales s of exp(-|a - b|^2 / (s h))

    with h the median (or mean) of |a - b|^2 over all pairs of different members of both samples together. The
    bandwidth adapts to the features and counts as a constant: no gradient flows through it. Where the median
    is 0 (most members are alike) the mean stands in.

    All pairs are in, also of a member with itself (a V-statistic): never negative beyond rounding, 0 for
    equal samples, and its gradient pulls even where each sample has a single member.

    Args:
        x: features of one domain, shape (n, d).
        y: features of the other, shape (m, d); n and m are 1 or more and need not be equal.
        scales: positive multiples of h.
        bandwidth: what is typical of the squared distances.

    Returns:
        0-d tensor, in 32 bits at least; in [0, 2].

    Raises:
        ShapeError: other shapes, or not floating-point numbers.
        UsageError: a number that is not finite, no scale, a scale that is not positive, an unknown bandwidth.

    Source: Gretton et al. (2012), equation 5, with the kernels of Long et al. (2015). C22 reduces the
    divergence of representations; which measure it takes could not be confirmed.

    >>> x = torch.tensor([[0.0], [1.0]])
    >>> mmd(x, x).item(), round(mmd(x, x + 9.0).item(), 4)
    (0.0, 1.321)
    """
    _require_pair("maximum mean discrepancy", x, y, least=1)
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise UsageError("maximum mean discrepancy", got=f"scales={scales}", expected="positive numbers")
    if bandwidth not in ("median", "mean"):
        raise UsageError(
            "maximum mean discrepancy", got=f"bandwidth={bandwidth!r}", expected="'median' or 'mean'"
        )
    squares = _squared_distances(torch.cat([_wide(x), _wide(y)]))
    typical = _typical(squares.detach(), bandwidth)
    kernel = torch.stack([torch.exp(-squares / (scale * typical)) for scale in scales]).mean(0)
    n = len(x)
    return kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2.0 * kernel[:n, n:].mean()


def coral(x: Tensor, y: Tensor) -> Tensor:
    """Distance of two samples' covariances, |C_x - C_y|_F^2 / (4 d^2).

    With C = sum (x - mean)(x - mean)^T / (n - 1). It compares second moments alone: a shift changes nothing.

    Args:
        x: features of one domain, shape (n, d).
        y: features of the other, shape (m, d); n and m are 2 or more.

    Returns:
        0-d tensor, in 32 bits at least; in the unit of the features to the fourth power.

    Raises:
        ShapeError: other shapes, or not floating-point numbers.
        UsageError: a number that is not finite.

    Source: Sun and Saenko (2016), equation 1.

    >>> x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    >>> coral(x, 2 * x), coral(x, x + 5.0)
    (tensor(2.2500), tensor(0.))
    """
    _require_pair("CORAL", x, y, least=2)
    apart = _covariance(_wide(x)) - _covariance(_wide(y))
    return apart.square().sum() / (4.0 * x.shape[1] ** 2)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean over samples of the entropy of softmax(logits), in nats: 0 decided, log(classes) undecided.

    Made small on samples without labels it moves the border between classes to where there are few of them.

    Args:
        logits: shape (n, classes), n 1 or more.

    Returns:
        0-d tensor, in 32 bits at least.

    Raises:
        ShapeError: another shape, or not floating-point numbers.
        UsageError: a number that is not finite.

    Source: Grandvalet and Bengio (2005).

    >>> round(mean_entropy(torch.tensor([[0.0, 0.0], [99.0, -99.0]])).item(), 4)
    0.3466
    """
    _require("entropy", logits, least=1)
    logarithms = torch.log_softmax(_wide(logits), dim=1)
    return -(logarithms.exp() * logarithms).sum(1).mean()


def reverse_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself; backwards the gradient is multiplied by ``-factor``.

    What comes after it learns to tell the domains apart, what comes before it to make them alike.

    Args:
        x: any tensor.
        factor: 0 or more; 0 cuts the gradient off.

    Raises:
        UsageError: a factor that is negative or not finite.

    Source: Ganin et al. (2016), equations 12 and 13.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> reverse_gradient(x, 0.5).sum().backward(); x.grad
    tensor([-0.5000, -0.5000])
    """
    if not 0 <= factor < float("inf"):  # also true for NaN
        raise UsageError(
            "reversing a gradient", got=f"factor={factor}", expected="a finite number, 0 or more"
        )
    reversed_: Tensor = _Reverse.apply(x, float(factor))  # type: ignore[no-untyped-call]
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def _squared_distances(z: Tensor) -> Tensor:
    """Of all pairs of rows. From the products, so that no root has to be differentiated at 0."""
    z = z - z.detach().mean(0)  # far from the origin the products would cancel
    products = z @ z.T
    lengths = products.diagonal()
    return (lengths[:, None] + lengths[None, :] - 2.0 * products).clamp_min(0.0)


def _typical(squares: Tensor, bandwidth: Bandwidth) -> Tensor:
    count = len(squares)
    row, column = torch.triu_indices(count, count, offset=1, device=squares.device)
    pairs = squares[row, column]
    mean = pairs.mean()
    typical = torch.where(pairs.median() > 0, pairs.median(), mean) if bandwidth == "median" else mean
    return typical.clamp_min(torch.finfo(squares.dtype).tiny ** 0.5)


def _covariance(x: Tensor) -> Tensor:
    centered = x - x.mean(0)
    return centered.T @ centered / (len(x) - 1)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _require_pair(operation: str, x: Tensor, y: Tensor, least: int) -> None:
    for sample in (x, y):
        _require(operation, sample, least)
    if x.shape[1] != y.shape[1]:
        raise ShapeError(
            operation,
            got=f"features of shapes {tuple(x.shape)} and {tuple(y.shape)}",
            expected="as many features in both domains",
        )


def _require(operation: str, x: Tensor, least: int) -> None:
    if x.dim() != 2 or len(x) < least or x.shape[1] < 1 or not x.is_floating_point():
        raise ShapeError(
            operation,
            got=f"shape {tuple(x.shape)} of {x.dtype}",
            expected=f"floating-point numbers of shape (samples, features), {least} or more samples",
            hint="x.flatten(1) makes one row of each sample",
        )
    if not torch.isfinite(x.detach()).all():
        raise UsageError(operation, got="a number that is not finite", expected="finite numbers")
