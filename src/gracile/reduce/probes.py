"""What to test a network with: inputs like the example, weights without accidents, outputs as a flat list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in its lists, tuples and dictionaries changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(item, change) for item in value))
    if isinstance(value, (list, tuple)):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, Mapping):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def leaves(value: Any) -> Iterator[Tensor]:
    """Every tensor inside a result, in a fixed order, whatever object holds it."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            yield item
        elif id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, Mapping):
                waiting += reversed(list(item.values()))
            elif isinstance(item, (list, tuple)):
                waiting += reversed(item)
            elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)):
                waiting += reversed(list(vars(item).values()))


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """The tensors that :func:`mapped` would change, in its order."""
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        found.append(x)
        return x

    mapped(inputs, collect)
    return found


def copied(inputs: Inputs) -> Inputs:
    """The same numbers in memory of their own: a forward pass may write to what it is given."""
    args, named = mapped(inputs, lambda x: x.detach().clone())
    return args, named


def fresh(inputs: Inputs, seed: int, *, integers: bool = True) -> Inputs:
    """Other numbers of the same kind: shuffled, and jittered where they are floating-point.

    Truth values and floats with infinities are masks and stay as they are; integers keep their range, or
    with ``integers=False`` their values (they may be lengths or positions).
    """
    generator = torch.Generator().manual_seed(seed)

    def change(x: Tensor) -> Tensor:
        number = x.is_floating_point() or (integers and x.dtype != torch.bool and not x.is_complex())
        if not number or x.numel() == 0 or not x.isfinite().all():
            return x.clone()
        flat = x.detach().reshape(-1)
        order = torch.randperm(len(flat), generator=generator).to(x.device)
        shuffled = flat[order].reshape(x.shape)
        if not x.is_floating_point():
            return shuffled
        noise = torch.randn(x.shape, generator=generator).to(x)
        spread = flat.float().std(correction=0).item()
        return shuffled + noise * (0.1 * spread if spread > 0 else 1.0)

    args, named = mapped(inputs, change)
    return args, named


def twice(inputs: Inputs, seed: int) -> Inputs | None:
    """A batch of twice the size, or None if the inputs share no first dimension."""
    found = tensors_of(inputs)
    if not found or any(x.dim() == 0 for x in found) or len({len(x) for x in found}) > 1:
        return None
    more = iter(tensors_of(fresh(inputs, seed)))
    args, named = mapped(inputs, lambda x: torch.cat([x.detach(), next(more)]))
    return args, named


@torch.no_grad()
def jitter_(model: nn.Module, seed: int) -> None:
    """Add noise to every floating-point parameter, in place, so that nothing is zero or constant by chance.

    A head that starts at zero, a layer scale of 1e-6 or a fresh batch norm would hide any mistake.
    """
    for parameter, noise in _noises(model, seed):
        spread = parameter.float().std(correction=0).item()
        # vectors are scales and shifts, most of them constant at the start
        parameter.add_(noise, alpha=max(spread, 0.1) if parameter.dim() < 2 else (0.5 * spread or 0.05))


@torch.no_grad()
def scramble_(model: nn.Module, seed: int, sign: float = 1.0) -> None:
    """Noise of the same size in the place of every floating-point parameter.

    With the opposite ``sign`` what a relu silenced in a first layer speaks, whatever the input.
    """
    for parameter, noise in _noises(model, seed):
        size = parameter.float().square().mean().sqrt().item()
        parameter.copy_(noise).mul_(sign * 1.7 * (size if 0 < size < float("inf") else 0.1))


def _noises(model: nn.Module, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Every floating-point parameter with uniform noise of its shape; running means are shifted, too."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel():
            yield parameter, torch.empty(parameter.shape).uniform_(-1, 1, generator=generator).to(parameter)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(torch.randn(buffer.shape, generator=generator).to(buffer), alpha=0.1)
