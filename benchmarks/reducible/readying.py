"""A freshly built network made fit for a test: nothing zero or constant by chance, and in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reducible.architecture import Built


@torch.no_grad()
def ready(built: Built, seed: int) -> None:
    """Jitter, calibrate batch-norm statistics on the built example, and switch to evaluation, in place."""
    built.model.float().eval()
    jitter(built.model, seed)
    calibrate(built)


@torch.no_grad()
def jitter(model: nn.Module, seed: int) -> None:
    """Noise on every vector (scales, shifts) and on every tensor that is constant.

    A constant that is not zero is a scale in the shape of what it scales (gains of a standardized
    convolution, layer scales) and gets the little noise of a vector: gains that scatter by as much as they
    measure make a network which amplifies its own rounding. Zeros are a matrix yet to be learned.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        constant = bool((parameter == parameter.reshape(-1)[0]).all())
        if parameter.dim() < 2 or (constant and bool(parameter.any())):
            parameter.add_(noise, alpha=0.1)
        elif constant:
            parameter.add_(noise, alpha=max(1, parameter.shape[1]) ** -0.5)


@torch.no_grad()
def calibrate(built: Built) -> None:
    """Running statistics from two forward passes in which only the normalizations are training."""
    norms = [m for m in built.model.modules() if isinstance(getattr(m, "running_var", None), Tensor)]
    momenta = [getattr(m, "momentum", None) for m in norms]
    if not norms:
        return
    for module in norms:
        module.train()
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average of what is seen
            module.reset_running_stats()
    for _ in range(2):
        args, kwargs = fresh(built, _)
        built.model(*args, **kwargs)
    for module, momentum in zip(norms, momenta, strict=True):
        module.eval()
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum  # type: ignore[assignment]


def fresh(built: Built, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Other numbers like the example's: noise for what is real and finite; integers shuffled."""
    generator = torch.Generator().manual_seed(1000 + seed)

    def change(x: Tensor) -> Tensor:
        if x.is_floating_point() and x.numel() and bool(x.isfinite().all()) and bool((x != x.round()).any()):
            return x.std(correction=0) * torch.randn(x.shape, generator=generator) + x.mean()
        if x.dtype in (torch.int64, torch.int32) and x.dim() == 2:
            return x[:, torch.randperm(x.shape[1], generator=generator)]
        return x.clone()

    def changed(value: Any) -> Any:
        if isinstance(value, Tensor):
            return change(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(changed, value))
        if isinstance(value, (list, tuple)):
            return type(value)(map(changed, value))
        if isinstance(value, Mapping):
            return {key: changed(item) for key, item in value.items()}
        return value

    return changed(built.args), changed(built.kwargs)


def tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in an output, whatever holds it."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, nn.Module)):
        yield from tensors(vars(value))


@contextmanager
def counting(model: nn.Module) -> Iterator[list[int]]:
    """How often a model of this class is called, calls within calls left out."""
    calls, depth = [0], [0]

    def enter(module: nn.Module, _: Any) -> None:
        if type(module) is type(model):
            calls[0] += depth[0] == 0
            depth[0] += 1

    def leave(module: nn.Module, _: Any, __: Any) -> None:
        depth[0] -= type(module) is type(model)

    hooks = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
