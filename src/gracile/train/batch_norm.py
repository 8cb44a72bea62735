"""Batch-norm statistics of another domain: the cheapest adaptation there is, without a step of training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gracile.errors import UsageError


@torch.no_grad()
def adapt_batch_norm(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """A copy of ``model``, in eval mode, whose batch-norm statistics are those of ``batches`` (AdaBN).

    Running mean and variance become the plain means, over the batches, of each batch's mean and unbiased
    variance. Everything else stays: weights, dropout off, and the model that was passed. While they are
    collected, layers normalize with the statistics of the batch, as in training; give batches of equal size,
    as large as those that the network was trained with.

    Args:
        model: has batch-norm layers that keep running statistics.
        batches: input tensors, or (input, anything) pairs of which the first is taken; no labels are used.

    Raises:
        UsageError: no such layer, or no batch.

    Source: Li et al. (2018), "Adaptive Batch Normalization".

    >>> adapted = adapt_batch_norm(nn.BatchNorm1d(1), [torch.tensor([[0.0], [2.0]])])
    >>> adapted.running_mean, adapted.running_var
    (tensor([1.]), tensor([2.]))
    """
    adapted = copy.deepcopy(model).eval()
    layers = [m for m in adapted.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        raise UsageError(
            "adapting batch norm",
            got=f"a {type(model).__name__} without running statistics",
            expected="batch-norm layers",
        )
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.train()
        layer.momentum = None  # a plain mean over batches
    device = next((tensor.device for tensor in [*adapted.parameters(), *adapted.buffers()]), None)
    seen = False
    for batch in batches:
        inputs = batch if isinstance(batch, Tensor) else batch[0]
        adapted(inputs.to(device))
        seen = True
    if not seen:
        raise UsageError("adapting batch norm", got="no batch", expected="batches of the target domain")
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    return adapted.eval()
