"""The compiled kernels, where they are; without them the same functions run on torch alone."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from gracile.runtime.kernels.packed import Packed

Pair = tuple[int, int]

try:
    from gracile import _native
except ImportError:  # installed without a compiler
    _native = None  # type: ignore[assignment]


def instruction_sets() -> tuple[str, ...]:
    """Those that kernels were compiled for and this processor has, ascending; empty without compiled kernels.

    >>> set(instruction_sets()) <= {"portable", "avx2", "avx512"}
    True
    """
    return tuple(_native.kernel_sets()) if _native else ()


def pack(instruction_set: str | None, form: str, *description: Any) -> Any:
    """A packed layer; None where none can be had: without compiled kernels, or for a kernel too wide."""
    if not _native:
        _tell()
        return None
    try:
        return _native.pack(instruction_set or instruction_sets()[-1], form, *description)
    except ValueError:
        return None


def finite(x: Tensor) -> bool:
    """Whether contiguous float32 numbers hold neither NaN nor infinity."""
    return bool(_native.finite(x.data_ptr(), x.numel())) if _native else bool(x.isfinite().all())


def cells(product: Packed, gates: Tensor, h: Tensor, c: Tensor, y: Tensor, threads: int) -> bool:
    """Move LSTM cells through all steps of ``gates``; False if that cannot be, ``y`` is then unknown."""
    if product.kernel is None:
        return False
    steps, batch, hidden = y.shape
    addresses = (tensor.data_ptr() for tensor in (gates, h, c, y))
    return not _native.lstm(
        product.instruction_set, product.kernel, *addresses, steps, batch, hidden, threads
    )


def pooling(
    size: Pair, kernel: Pair, stride: Pair, padding: Pair, out: Pair, instruction_set: str | None = None
) -> Any:
    """The largest number of each window of planes of this size; None without compiled kernels.

    Its ``run(x, y, planes, threads)`` takes addresses of contiguous float32 numbers. NaN is larger than any.
    """
    if not _native:
        return None
    return _native.Pooling(instruction_set or instruction_sets()[-1], size, kernel, stride, padding, out)


def mean(x: Tensor, out: Tensor, instruction_set: str | None = None) -> Callable[[], None] | None:
    """A call that puts the mean of each plane of ``x`` into ``out``; None without compiled kernels.

    Planes are the last two dimensions. Both are contiguous float32 on the CPU and stay where they are.
    """
    if not _native:
        return None
    name, pixels = instruction_set or instruction_sets()[-1], math.prod(x.shape[-2:])

    def call() -> None:  # which keeps the tensors that the addresses are of
        _native.mean(name, x.data_ptr(), out.data_ptr(), out.numel(), pixels)

    return call


def peak(instruction_set: str, steps: int) -> float:
    """Make ``steps`` fused multiply-adds on each of 12 accumulators; how many operations that was."""
    return float(_native.peak(instruction_set, steps))


@cache
def _tell() -> None:
    warnings.warn(
        "gracile was installed without a compiler: sparse layers run as dense ones, not faster; "
        "with a C++17 compiler, install it again",
        stacklevel=4,
    )
