"""PyTorch itself, in three ways."""

from __future__ import annotations

import warnings
from typing import Any, final

import torch
from torch import nn

from gracile.errors import RefusedError
from gracile.reduce.copies import duplicate
from gracile.runtime.engines import Call, Engine, limited


@final
class Torch(Engine):
    """Operator by operator, as the model stands.

    >>> run = Torch().prepare(nn.Linear(3, 2).eval(), torch.zeros(1, 3), threads=1)
    >>> run(torch.zeros(1, 3)).shape
    torch.Size([1, 2])
    """

    name = "torch"
    package = "torch"

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        return limited(model, threads)


@final
class ChannelsLast(Engine):
    """Operator by operator, with the channels of a pixel side by side; torch converts other inputs."""

    name = "torch channels-last"
    package = "torch"

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            raise RefusedError(
                "storing channels last",
                got=f"{type(model).__name__} without 2-d convolutions",
                expected="a network that has some; others run as in torch",
            )
        network: Any = duplicate(model)  # the stubs do not know memory formats
        return limited(network.to(memory_format=torch.channels_last), threads)


@final
class Compiled(Engine):
    """Fused to machine code for the example's shapes, with weights taken for constants."""

    name = "torch.compile"
    package = "torch"
    patient = True

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Call:
        network = duplicate(model)

        def run(*inputs: Any) -> object:
            return network(*inputs)

        # Torch keeps what it compiled with the code object, and gives up silently after eight of them.
        run.__code__ = run.__code__.replace()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about itself
            compiled = limited(torch.compile(run, dynamic=False, options={"freezing": True}), threads)
            compiled(*example)
        return compiled
