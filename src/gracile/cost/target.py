"""What every machine that a network can be made for has in common: a target compiles, a program runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gracile.cost.count import Cost
from gracile.errors import UsageError


class Program(Protocol):
    """A network made ready for one machine."""

    def __call__(self, *inputs: Any) -> Any:
        """What the network would compute, nested as its outputs are."""
        ...

    def cost(self) -> Cost:
        """Parameters, multiply-accumulates and bytes by layer, as the program carries them out."""
        ...

    def report(self) -> Mapping[str, str]:
        """Plain facts, each with a name: where it runs, on how many threads, how exact it is."""
        ...


class Target(Protocol):
    """A machine, or a way to use one. What it makes equals the network within a tolerance that it states."""

    def compile(self, model: nn.Module, *example: Any) -> Program:
        """Make ``model`` ready to be called with inputs like ``example``; it is left as it was."""
        ...


def compile(model: nn.Module, *example: Any, target: Target) -> Program:
    """Make a network ready for a machine.

    Args:
        model: in evaluation mode; it is left as it was.
        example: inputs as the network takes them: tensors, or tuples, lists and dictionaries of tensors.
        target: the machine.

    Raises:
        UsageError: the model is in training mode, or there is no tensor in the example.
        GracileError: the target cannot run this model; the message says why.

    >>> import torch
    >>> from gracile.cost import count
    >>> class Eager:  # the smallest target that there is: torch itself
    ...     def compile(self, model, *example):
    ...         class Running:
    ...             __call__ = staticmethod(model)
    ...             cost = staticmethod(lambda: count(model, *example))
    ...             report = staticmethod(lambda: {"runs in": "torch"})
    ...         return Running()
    >>> program = compile(nn.Linear(3, 5).eval(), torch.zeros(2, 3), target=Eager())
    >>> program(torch.zeros(4, 3)).shape, program.cost().macs
    (torch.Size([4, 5]), 30.0)
    """
    operation = f"compiling {type(model).__name__}"
    training = [name for name, module in model.named_modules() if module.training]
    if training:
        raise UsageError(
            operation,
            got=f"'{training[0]}' in training mode" if training[0] else "a model in training mode",
            expected="a model in evaluation mode",
            hint="call .eval(): dropout and batch-norm updates are no part of inference",
        )
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(example)):
        raise UsageError(operation, got=f"the example {example!r:.100}", expected="one tensor or more in it")
    return target.compile(model, *example)
