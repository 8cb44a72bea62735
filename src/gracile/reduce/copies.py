"""Copies of a model to work on, so that the user's own stays untouched."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def duplicate(model: nn.Module) -> nn.Module:
    """Deep copy that also takes tensors which autograd made, such as the ``weight`` of a weight norm.

    ``copy.deepcopy`` refuses those; here they are copied as plain values. Gradients are not copied.

    >>> layer = torch.nn.Linear(2, 2)
    >>> layer.derived = layer.weight * 2
    >>> duplicate(layer).derived.requires_grad
    False
    """
    memo: dict[int, Tensor] = {}
    for module in model.modules():
        for value in vars(module).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(model, memo)


@contextmanager
def quiet(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, no autograd, and the random state as it was; every module's mode is restored.

    >>> layer = torch.nn.Dropout()
    >>> with quiet(layer):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for module, _ in modes:
                module.training = False
            yield
    finally:
        for module, training in modes:
            module.training = training
