"""Products with a matrix that has zeros."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional

from gracile.errors import ShapeError
from gracile.runtime.kernels.packed import Block, Packed, plain


@final
class Linear(Packed):
    """A matrix packed without its zeros: y = x W^T + b, then + add, then ReLU.

    Rows with about as many nonzeros go together in sixteens. One or two inputs gather what each row needs;
    more are transposed, and each nonzero multiplies a vector of them.

    Args:
        weight: (out, in), float32, finite, with its zeros; copied.
        bias: (out,), or None.
        relu: whether negative results become 0.
        block: 1 leaves out single zeros; 16 leaves out runs of 16 consecutive outputs that are zero for an
            input.
        instruction_set: one of :func:`instruction_sets`, by default the last.

    Raises:
        ShapeError: weight and bias do not fit each other.
        UsageError: another dtype, numbers that are not finite, an unknown instruction set.

    >>> import torch
    >>> Linear(torch.tensor([[0.0, 2.0], [0.0, 0.0]]))(torch.tensor([[1.0, 3.0]]))
    tensor([[6., 0.]])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        relu: bool = False,
        block: Block = 1,
        instruction_set: str | None = None,
    ) -> None:
        weight = plain("weight", weight, 2)
        if 0 in weight.shape:
            raise ShapeError(
                "packing a sparse matrix", got=f"shape {tuple(weight.shape)}", expected="rows and columns"
            )
        self.relu = relu
        super().__init__(
            weight,
            None if bias is None else plain("bias", bias, 1),
            "matrix" if block == 1 else "matrix_block",
            block,
            instruction_set,
            *(1, (1, 1), (1, 1), (0, 0), (1, 1), relu, 0, 0),  # a convolution with a kernel of 1x1
        )

    def _result(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() < 1 or x.shape[-1] != self.shape[1]:
            raise ShapeError(
                "input of a sparse matrix",
                got=f"shape {tuple(x.shape)}",
                expected=f"(..., {self.shape[1]})",
            )
        return (*x.shape[:-1], self.shape[0])

    def _rows(self, x: Tensor) -> int:
        return x.numel() // self.shape[1]

    def _on_torch(self, weight: Tensor, x: Tensor, add: Tensor | None) -> Tensor:
        y = functional.linear(x, weight, self._bias)
        y = y if add is None else y + add
        return y.relu() if self.relu else y
