"""How sharp the minimum is that training has found."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gracile.errors import UsageError
from gracile.train.task import Task

_Numbers = NDArray[np.float64]
_START = 0.01  # of the box: at a minimum the gradient is zero, and a search from there would not begin
_STEEP = 10.0  # mean slope of the scaled problem; so steep that the first step reaches the sides


def sharpness(
    model: nn.Module,
    data: Any,
    task: Task,
    *,
    box: float = 5e-4,
    iterations: int = 10,
    batch_size: int = 256,
    seed: int = 0,
) -> float:
    """By how much, in percent, the loss can rise within a small box around the weights::

        100 * (max L(w + d) - L(w)) / (1 + L(w))   over all d with |d_i| <= box * (|w_i| + 1)

    The maximum is searched by L-BFGS-B over all trained parameters, those of normalization layers included;
    what is found is a lower bound of it. The model is in eval mode (batch-norm statistics as they are, no
    dropout), the loss is that of all of ``data``, and weights and modes are put back exactly.

    The figure belongs to one network and one data set, and a network whose weights are scaled without a
    change of its function has another: compare networks of one kind, trained on the same data.

    Args:
        model: a trained network.
        data: what it was trained on, or a part of it.
        task: whose loss is meant, 0 or more.
        box: half the width of the box, relative to |w_i| + 1.
        iterations: of the search; each costs about one pass over ``data``.
        batch_size: samples in a pass.
        seed: of the random signs with which the search starts where the slope is 0.

    Raises:
        UsageError: no data, no trained parameter, a loss that is not finite, a box or a number of iterations
            that is not positive.

    Source: T1 (SmoothOut), the authors' measure. They search in the units of the weights, from w itself; such
    a search does not leave a minimum. Here it starts a hundredth of the box uphill, in the units of the box.

    >>> from torch.utils.data import TensorDataset
    >>> model = nn.Linear(1, 1, bias=False)
    >>> _ = model.weight.data.fill_(1.0)
    >>> square = Task(lambda output, target: output.square().mean(), lambda output, target: output, "square")
    >>> round(sharpness(model, TensorDataset(torch.ones(4, 1), torch.ones(4, 1)), square, box=0.05), 4)
    10.5
    """
    if not 0 < box < math.inf or iterations < 1:
        raise UsageError(
            "measuring sharpness",
            got=f"box={box}, iterations={iterations}",
            expected="a positive size and 1 or more iterations",
        )
    weights = [p for p in model.parameters() if p.requires_grad]
    if not weights or not len(data):
        raise UsageError(
            "measuring sharpness",
            got=f"{len(weights)} trained parameters, {len(data)} samples",
            expected="at least one of each",
        )
    with ExitStack() as restore:
        restore.callback(_put_back_, weights, [w.detach().clone() for w in weights])
        for module in model.modules():
            restore.callback(setattr, module, "training", module.training)
        model.eval()

        def at(flat: _Numbers) -> tuple[float, _Numbers]:
            _fill_(weights, torch.from_numpy(flat))
            loss, gradients = _loss_and_gradients(model, data, task, weights, batch_size)
            return loss, _flat(gradients)

        start = _flat(weights)
        before, slopes = at(start)
        if not math.isfinite(before):
            raise UsageError("measuring sharpness", got=f"a loss of {before}", expected="a finite loss")
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], start.size)
        uphill = np.where(slopes == 0, signs, np.sign(slopes))
        worst = _maximum(at, start, box * (np.abs(start) + 1), uphill, iterations)
    return 100.0 * max(worst - before, 0.0) / (1.0 + before)


def _maximum(at: Any, center: _Numbers, box: _Numbers, uphill: _Numbers, iterations: int) -> float:
    """The largest value that is met on the way to the maximum of ``at`` over the box around ``center``."""
    met: list[float] = []

    def downhill(u: _Numbers) -> tuple[float, _Numbers]:
        value, gradient = at(center + box * u)
        met.append(value if math.isfinite(value) else -math.inf)
        return -value / scale, -box * gradient / scale

    start = _START * uphill
    slope = float(np.abs(box * at(center + box * start)[1]).mean())
    scale = slope / _STEEP if slope > 0 else 1.0
    minimize(
        downhill,
        start,
        jac=True,
        method="L-BFGS-B",
        bounds=np.broadcast_to([-1.0, 1.0], (center.size, 2)),
        options={"maxiter": iterations, "ftol": 0.0, "gtol": 0.0},
    )
    return max(met)


def _loss_and_gradients(
    model: nn.Module, data: Any, task: Task, weights: list[nn.Parameter], batch_size: int
) -> tuple[float, list[Tensor]]:
    """Mean loss over the data, and its gradients by the weights."""
    total, sums = 0.0, [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    for inputs, target in DataLoader(data, batch_size, generator=torch.Generator()):
        share = len(inputs) / len(data)
        with torch.enable_grad():
            loss = task.loss(model(inputs.to(weights[0].device)), target.to(weights[0].device))
            gradients = torch.autograd.grad(loss, weights, materialize_grads=True, allow_unused=True)
        total += share * loss.item()
        torch._foreach_add_(sums, [g.double() for g in gradients], alpha=share)
    return total, sums


def _flat(tensors: list[Any]) -> _Numbers:
    flat: _Numbers = torch.cat([t.detach().double().flatten().cpu() for t in tensors]).numpy()
    return flat


@torch.no_grad()
def _fill_(weights: list[nn.Parameter], flat: Tensor) -> None:
    for weight, part in zip(weights, flat.split([w.numel() for w in weights]), strict=True):
        weight.copy_(part.view(weight.shape))


@torch.no_grad()
def _put_back_(weights: list[nn.Parameter], clean: list[Tensor]) -> None:
    torch._foreach_copy_(weights, clean)
