"""How a hand-written network is put down: a forward pass as a function, its parts, and its inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reducible.architecture import Architecture, Built

Input = Callable[[int], Any]


class Net(nn.Module):
    """``forward(*args)`` is ``run(self, *args)``; every part is an attribute, as if set in a constructor."""

    def __init__(self, run: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.run(self, *args)


def normal(*shape: int, at: int = 0) -> Input:
    """Random numbers of this shape, with the batch inserted as dimension ``at``."""
    return lambda batch: torch.randn(*shape[:at], batch, *shape[at:])


def tokens(count: int, *shape: int, at: int = 0) -> Input:
    """Random integers below ``count``."""
    return lambda batch: torch.randint(count, (*shape[:at], batch, *shape[at:]))


def parameter(*shape: int) -> nn.Parameter:
    """A bare parameter with random numbers."""
    return nn.Parameter(torch.randn(shape) * 0.5)


def buffered(module: nn.Module, **buffers: Tensor) -> nn.Module:
    """The module with these buffers registered."""
    for name, tensor in buffers.items():
        module.register_buffer(name, tensor)
    return module


def case(name: str, family: str, make: Callable[[], nn.Module], *inputs: Input) -> Architecture:
    """A hand-written network; weights and inputs come from seed 0."""

    def build(batch: int) -> Built:
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        try:
            return Built(make(), tuple(given(batch) for given in inputs))
        finally:
            torch.random.set_rng_state(state)

    return Architecture(name, "hand", family, build)
