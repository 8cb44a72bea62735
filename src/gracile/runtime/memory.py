"""Buffers that are used again and again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor


@final
class Memory:
    """Takes the smallest free buffer that is large enough; makes one if there is none.

    >>> memory = Memory()
    >>> first = memory.take((4, 4), torch.float32)
    >>> memory.give(first)
    >>> memory.take((2, 3), torch.float32).data_ptr() == first.data_ptr(), memory.nbytes
    (True, 64)
    """

    def __init__(self) -> None:
        self._all: list[Tensor] = []
        self._free: list[Tensor] = []
        self._taken: dict[int, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.nbytes for buffer in self._all)

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A contiguous tensor whose content is whatever was there."""
        count = torch.Size(shape).numel()
        need = count * dtype.itemsize
        fitting = [buffer for buffer in self._free if buffer.nbytes >= need]
        if fitting:
            buffer = min(fitting, key=lambda buffer: buffer.nbytes)
            self._free = [other for other in self._free if other is not buffer]
        else:
            buffer = torch.empty(max(need, 1), dtype=torch.uint8)
            self._all.append(buffer)
        self._taken[buffer.data_ptr()] = buffer
        return buffer[:need].view(dtype).view(tuple(shape))

    def give(self, tensor: Tensor) -> None:
        """Hand back what :meth:`take` gave."""
        self._free.append(self._taken.pop(tensor.untyped_storage().data_ptr()))

    def free_all(self) -> None:
        """Everything may be used anew."""
        self._free, self._taken = list(self._all), {}

    def clear(self) -> None:
        """Forget all buffers."""
        self._all, self._free, self._taken = [], [], {}
