"""What is known of a value before it exists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Value:
    """Shape and dtype of a tensor; sizes are integers, or formulas of the sizes of the inputs.

    The tracer's own tensors say the same, and hold on to everything that was traced, weights included.

    >>> print(Value.of(torch.zeros(2, 3)))
    float32 (2, 3)
    """

    shape: tuple[Any, ...]
    dtype: torch.dtype

    @staticmethod
    def of(value: Any) -> Any:
        """Tensors become values, symbolic numbers formulas; lists and tuples are gone through."""
        if isinstance(value, Tensor):
            return Value(tuple(map(Value.of, value.shape)), value.dtype)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            formula = value.node.expr
            return int(formula) if formula.is_Integer else formula
        if isinstance(value, list | tuple):
            return [Value.of(item) for item in value]
        return value

    def dim(self) -> int:
        """How many dimensions it has."""
        return len(self.shape)

    def symbols(self) -> Iterator[Any]:
        """That its sizes are made of."""
        for size in self.shape:
            if isinstance(size, sympy.Basic):
                yield from size.free_symbols

    def __str__(self) -> str:
        sizes = ", ".join(str(size) if isinstance(size, int) else "*" for size in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')} ({sizes}{',' if self.dim() == 1 else ''})"
