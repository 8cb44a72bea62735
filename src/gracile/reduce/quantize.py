"""Round a network's weights to a format, so that they can be stored in few bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gracile.algebra import Codes, Format, Uniform
from gracile.errors import UsageError
from gracile.reduce.copies import duplicate


@final
@dataclass(frozen=True)
class Quantized:
    """A network whose weights are numbers of a format.

    Args:
        model: computes with the rounded weights, as ordinary floating-point tensors.
        codes: of every weight that was rounded, by name: ``scale * values`` is the weight.
        bits: that one number of it takes.
    """

    model: nn.Module
    codes: Mapping[str, Codes]
    bits: Mapping[str, float]


@torch.no_grad()
def quantize(model: nn.Module, bits: int | Format | Mapping[str, int | Format]) -> Quantized:
    """A copy of ``model`` with rounded weights, every filter (index of dimension 0) with a scale of its own.

    Biases, scales of normalization and buffers stay as they are: they are few, and added to sums of many
    products. No training follows: a step of an optimizer would leave the format.

    Args:
        model: any module; it is left untouched.
        bits: of all parameters of two or more dimensions, or for some of them by name. A number stands for
            :class:`gracile.algebra.Uniform` with as many bits.

    Raises:
        UsageError: no parameter of that name, or one with fewer than two dimensions.
        ShapeError: a weight that is not finite.

    >>> done = quantize(nn.Linear(3, 2), 4)
    >>> done.codes["weight"].values.dtype, done.bits
    (torch.int8, {'weight': 4})
    """
    copy = duplicate(model)
    parameters = dict(copy.named_parameters())
    wanted = bits if isinstance(bits, Mapping) else {n: bits for n, p in parameters.items() if p.dim() > 1}
    codes: dict[str, Codes] = {}
    formats: dict[str, Format] = {}
    for name, given in wanted.items():
        formats[name] = form = given if isinstance(given, Format) else Uniform(given)
        codes[name] = form.encode(_weight(parameters, name), along=0)
        parameters[name].copy_(form.decode(codes[name]))
    return Quantized(copy, codes, {name: form.bits for name, form in formats.items()})


def _weight(parameters: Mapping[str, Tensor], name: str) -> Tensor:
    found = parameters.get(name)
    if found is None or found.dim() < 2:
        names = [n for n, p in parameters.items() if p.dim() > 1]
        raise UsageError(
            f"quantizing '{name}'",
            got="no such parameter" if found is None else f"shape {tuple(found.shape)}",
            expected=f"one of {', '.join(names)}"[:400],
        )
    return found
