"""Gradients packed for the wire by compiled kernels, by Triton on GPUs, or by torch, with the same bits.

Everything is written to memory that the caller has: training repeats the same sizes, so nothing is allocated.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from math import isfinite, sqrt
from typing import Any

import torch
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.errors import ShapeError, UsageError
from gracile.wire import blocks
from gracile.wire.blocks import BLOCK, COLUMNS, sum_bits

try:
    from gracile import _native
except ImportError:  # installed without a compiler
    _native = None

TORCH, TRITON = "torch", "triton"
"""The names of the twin and of the kernels for GPUs, beside those of the instruction sets."""
WIDEST = 12
MOST = 2 ** (WIDEST - 1) - 1
"""Most messages that can be summed."""


def kernels(device: str = "cpu") -> tuple[str, ...]:
    """What can pack on a kind of device, ascending: ``torch``, then what was compiled and runs here.

    On the CPU those are instruction sets, on GPUs ``triton``. Where Triton interprets its kernels
    (``TRITON_INTERPRET=1``, for tests) it takes tensors on the CPU as well.

    >>> kernels()[0]
    'torch'
    """
    on = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    triton = (TRITON,) if device == on and _gpu() else ()
    native = _native.kernel_sets() if device == "cpu" and hasattr(_native, "ternary_squares") else ()
    return (TORCH, *triton, *native)


def words(numbers: int, width: int = 2) -> int:
    """Words of 32 bits that so many numbers take in fields of ``width`` bits.

    >>> words(512), words(513), words(512, width=4)
    (32, 64, 64)
    """
    return -(-numbers // BLOCK) * COLUMNS * width


def scaler(x: Tensor, clip: float | None = 2.5, kernel: str | None = None) -> float:
    """The scale of a tensor: min(clip * sqrt(mean(x^2)), max|x|); infinite if a number is not finite.

    Args:
        x: float32, any length, contiguous.
        clip: in units of the root mean square; ``None`` for max|x|.
        kernel: one of :func:`kernels`; the best by default.

    Raises:
        ShapeError: other numbers.
        UsageError: a clip that is not positive.

    Source: C4 (TernGrad) and its authors' code. They take the standard deviation about the mean; gradients
    have means near zero, and where they do not, it would cut off all of them. Where max|x| is less, that is
    taken: a larger scale only adds noise.

    >>> round(scaler(torch.tensor([1.0, -1.0, 1.0, 5.0])), 4), scaler(torch.tensor([float("nan")]))
    (5.0, inf)
    """
    if clip is not None and not clip > 0:
        raise UsageError("scaling gradients", got=f"clip={clip}", expected="a positive number or None")
    on = _kernel(kernel, x)
    twin = on in (TORCH, TRITON)
    total, largest = blocks.squares(x) if twin else _native.ternary_squares(on, x.data_ptr(), x.numel())
    if not 1e-30 < total < 1e30:  # squares too large or small for single precision, or no numbers at all
        total, largest = blocks.squares(x)
    if not isfinite(total):
        return float("inf")
    if clip is None or not x.numel():
        return largest
    return float(torch.tensor(min(clip * sqrt(total / x.numel()), largest)))  # as single precision has it


def ternarize_(
    out: Tensor, x: Tensor, scale: float, random: Random, first: int = 0, kernel: str | None = None
) -> None:
    """Write ``x`` rounded at random to {-s, 0, s}, in 2 bits: P(+-s) = |x| / s, so that the mean is x.

    Numbers beyond the scale s become +-s. A scale below 2^-100 makes zeros, as does NaN.

    Args:
        out: int32, ``words(x.numel())``.
        x: float32, any length.
        scale: s, finite, 0 or more.
        random: the stream of the tensor that ``x`` is part of.
        first: the block of the tensor that ``x`` starts with. Parts make the same bits as the whole.
        kernel: one of :func:`kernels`; the best by default.

    Raises:
        ShapeError, UsageError: other arguments.

    Source: C4 (TernGrad), equation 1. The probability has a resolution of 2^-24.

    >>> out = torch.empty(words(3), dtype=torch.int32); x = torch.tensor([0.5, -2.0, 0.0])
    >>> ternarize_(out, x, 2.0, Random(0)); decode_(x, out, width=2, offset=1, factor=2.0); x
    tensor([ 0., -2.,  0.])
    """
    on = _kernel(kernel, x, out)
    _require_scale(scale)
    _require_words(out, words(x.numel()))
    if twin := _twin(on):
        twin.ternarize(x, scale, random, first, out)
    else:
        _native.ternary_ternarize(*_random(on, x, scale, random, first), out.data_ptr())


def round_(
    out: Tensor, x: Tensor, scale: float, random: Random, first: int = 0, kernel: str | None = None
) -> None:
    """Write ``x`` rounded at random to a neighboring multiple of s / 7, up to +-s, in 4 bits.

    Arguments and errors as in :func:`ternarize_`; ``out`` has ``words(x.numel(), 4)``.
    """
    on = _kernel(kernel, x, out)
    _require_scale(scale)
    _require_words(out, words(x.numel(), 4))
    if twin := _twin(on):
        twin.round_(x, scale, random, first, out)
    else:
        _native.ternary_round(*_random(on, x, scale, random, first), out.data_ptr())


def add_(out: Tensor, messages: Sequence[Tensor], kernel: str | None = None) -> None:
    """Write the sums of the digits of messages of 2 bits, in fields of ``sum_bits(len(messages))`` bits.

    Args:
        out: int32; half as many words as a message for each bit.
        messages: int32, equally long, as :func:`ternarize_` writes them.
        kernel: one of :func:`kernels`; the best by default.

    Raises:
        ShapeError: other lengths.
        UsageError: no message, or more than :data:`MOST`.
    """
    width = _require_messages(messages)
    on = _kernel(kernel, out, *messages)
    size = messages[0].numel()
    _require_words(out, size // 2 * width)
    if twin := _twin(on):
        twin.add(messages, width, out)
    else:
        addresses = [message.data_ptr() for message in messages]
        _native.ternary_add(on, addresses, size // (2 * COLUMNS), width, out.data_ptr())


def decode_(
    out: Tensor, packed: Tensor, *, width: int, offset: int, factor: float, kernel: str | None = None
) -> None:
    """Write out = factor * (digit - offset).

    Args:
        out: float32, any length.
        packed: int32, ``words(out.numel(), width)``.
        width: bits of a field, 2 to 12.
        offset: the digit that means zero: 1 for one message, N for a sum of N, 7 for :func:`round_`.
        factor: what a step means, e.g. the scale over the number of messages for their mean.
        kernel: one of :func:`kernels`; the best by default.

    Raises:
        ShapeError, UsageError: other arguments.
    """
    if not 2 <= width <= WIDEST:
        raise UsageError("unpacking", got=f"width={width}", expected=f"2 to {WIDEST} bits")
    on = _kernel(kernel, out, packed)
    _require_words(packed, words(out.numel(), width))
    if twin := _twin(on):
        twin.decode(packed, width, offset, factor, out)
    else:
        _native.ternary_decode(on, packed.data_ptr(), out.numel(), width, offset, factor, out.data_ptr())


def mean_(out: Tensor, messages: Sequence[Tensor], factor: float, kernel: str | None = None) -> None:
    """Write factor * (sum of digits - N) of N messages of 2 bits; arguments and errors as in :func:`add_`."""
    width = _require_messages(messages)
    on = _kernel(kernel, out, *messages)
    _require_words(messages[0], words(out.numel()))
    if twin := _twin(on):
        total = messages[0].new_empty(messages[0].numel() // 2 * width)
        twin.add(messages, width, total)
        twin.decode(total, width, len(messages), factor, out)
    else:
        addresses = [message.data_ptr() for message in messages]
        _native.ternary_mean(on, addresses, out.numel(), factor, out.data_ptr())


def base3_words(size: int) -> int:
    """Words that :func:`to_base3_` makes of ``size`` words of 2 bits: 4 of 5, but for a last part.

    >>> base3_words(5 * 32), base3_words(7 * 32)
    (128, 192)
    """
    whole, rest = divmod(size, 10 * COLUMNS)
    return whole * 8 * COLUMNS + rest


def to_base3_(out: Tensor, packed: Tensor, kernel: str | None = None) -> None:
    """Write digits of 2 bits five to a byte (1.6 bits each), which loses nothing.

    Args:
        out: int32, ``base3_words(packed.numel())``.
        packed: int32, any number of blocks of 2 bits. A last part of less than five blocks is copied.
        kernel: one of :func:`kernels`; the best by default.

    Raises:
        ShapeError: other lengths.
    """
    _recode(out, packed, 8, 10, kernel)


def from_base3_(out: Tensor, packed: Tensor, kernel: str | None = None) -> None:
    """Write back what :func:`to_base3_` was given."""
    _recode(out, packed, 10, 8, kernel)


def _recode(out: Tensor, packed: Tensor, to: int, source: int, kernel: str | None) -> None:
    two_bits, other = (packed, out) if to == 8 else (out, packed)
    on = _kernel(kernel, out, packed)
    _require_words(two_bits, two_bits.numel() // (2 * COLUMNS) * 2 * COLUMNS)
    _require_words(other, base3_words(two_bits.numel()))
    fives = two_bits.numel() // (10 * COLUMNS)
    whole_out, whole_in = fives * to * COLUMNS, fives * source * COLUMNS
    twin = _twin(on)
    if fives and twin:
        (twin.to_base3 if to == 8 else twin.from_base3)(packed[:whole_in], out[:whole_out])
    elif fives:
        recode = _native.ternary_to_base3 if to == 8 else _native.ternary_from_base3
        recode(on, packed.data_ptr(), fives, out.data_ptr())
    out[whole_out:].copy_(packed[whole_in:])


def _kernel(kernel: str | None, *tensors: Tensor) -> str:
    """What computes: the best there is for the device."""
    for tensor in tensors:
        known = tensor.dtype in (torch.float32, torch.int32)
        if not known or tensor.dim() != 1 or not tensor.is_contiguous():
            raise ShapeError(
                "packing gradients",
                got=f"{tensor.dtype} of shape {tuple(tensor.shape)}, strides {tensor.stride()}",
                expected="contiguous float32 of one dimension",
                hint="x.float().flatten()",
            )
    (device, *others) = {t.device for t in tensors}
    if others:
        raise ShapeError(
            "packing gradients", got=f"tensors on {device} and {others[0]}", expected="one device"
        )
    found = kernels(device.type)
    if kernel is not None and kernel not in found:
        raise UsageError("packing gradients", got=f"kernel={kernel!r}", expected=f"one of {', '.join(found)}")
    return kernel or found[-1]


def _twin(on: str) -> Any:
    """The functions of what takes tensors; None for compiled kernels, which take addresses."""
    return _gpu() if on == TRITON else blocks if on == TORCH else None


@cache
def _gpu() -> Any:
    """Triton's kernels, imported when a tensor first needs them; None without Triton."""
    try:
        return import_module("gracile.wire.gpu")
    except ImportError:
        return None


def _random(on: str, x: Tensor, scale: float, random: Random, first: int) -> tuple[Any, ...]:
    stream = (random.seed, random.layer, random.step, random.lane)
    return on, x.data_ptr(), x.numel(), scale, *stream, first


def _require_scale(scale: float) -> None:
    if not 0 <= scale < float("inf"):
        raise UsageError("packing gradients", got=f"scale={scale}", expected="a finite number, 0 or more")


def _require_words(tensor: Tensor, size: int) -> None:
    if tensor.dtype != torch.int32 or tensor.shape != (size,) or not tensor.is_contiguous():
        raise ShapeError(
            "packed gradients",
            got=f"{tensor.dtype} of shape {tuple(tensor.shape)}",
            expected=f"contiguous int32 of shape ({size},)",
        )


def _require_messages(messages: Sequence[Tensor]) -> int:
    if not 1 <= len(messages) <= MOST:
        raise UsageError("summing messages", got=f"{len(messages)}", expected=f"1 to {MOST}")
    for message in messages:
        _require_words(message, messages[0].numel() // (2 * COLUMNS) * 2 * COLUMNS)
    return sum_bits(len(messages))
