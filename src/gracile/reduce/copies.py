"""Copies of a model to work on, so that the user's own stays untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph.still import still


def duplicate(model: nn.Module) -> nn.Module:
    """Deep copy that also takes tensors which autograd made, such as the ``weight`` of a weight norm.

    ``copy.deepcopy`` refuses those; here they are copied as plain values. Gradients are not copied.

    Raises:
        UsageError: the model holds something else that cannot be copied, such as a lock.

    >>> layer = torch.nn.Linear(2, 2)
    >>> layer.derived = layer.weight * 2
    >>> duplicate(layer).derived.requires_grad
    False
    """
    if not isinstance(model, nn.Module):
        raise UsageError("copying a model", got=f"a {type(model).__name__}", expected="an nn.Module")
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever the user's own attributes make of it
        raise UsageError(
            f"copying {type(model).__name__}",
            got=f"{type(error).__name__}: {error}",
            expected="a model that copy.deepcopy can copy",
            hint="keep locks, files and other resources outside of the model",
        ) from error


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards everything is as it was, values of buffers included.

    >>> layer = torch.nn.BatchNorm1d(2)
    >>> with undisturbed(layer):
    ...     _ = layer.running_mean.add_(1)
    >>> layer.training, layer.running_mean
    (True, tensor([0., 0.]))
    """
    before = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with still(model):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                buffer.copy_(value)
