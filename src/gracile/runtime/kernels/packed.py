"""What packed layers have in common: checks, the call, and torch for what is not finite."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from torch import Tensor

from gracile.errors import ShapeError, UsageError
from gracile.runtime.kernels.native import finite, instruction_sets, pack

Block = Literal[1, 16]
"""Zeros that are left out: single ones, or runs of 16 consecutive output channels."""
Call = Callable[[], None]


class Packed(ABC):
    """A layer whose weights were laid out once: y = relu(W x + b + add).

    Attributes:
        nonzeros: weights that are not zero.
        kernel: the compiled layer, or None.
        instruction_set: that it was packed for; ``torch`` where compiled kernels are missing.
    """

    nonzeros: int
    instruction_set: str

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        form: str,
        block: Block,
        instruction_set: str | None,
        *description: Any,
    ) -> None:
        known = instruction_sets()
        if instruction_set is not None and instruction_set not in known:
            raise UsageError(
                "packing a sparse layer",
                got=f"instruction set {instruction_set!r}",
                expected=f"one of {', '.join(known) or 'none: gracile was installed without a compiler'}",
            )
        if block not in (1, 16):
            raise UsageError("packing a sparse layer", got=f"block={block!r}", expected="1 or 16")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ShapeError(
                "packing a sparse layer",
                got=f"bias of shape {tuple(bias.shape)}",
                expected=f"({weight.shape[0]},)",
            )
        self.shape, self.block = tuple(weight.shape), block
        self.nonzeros = int(weight.count_nonzero())
        self._bias = None if bias is None else bias.clone()
        four = weight if weight.dim() == 4 else weight[:, :, None, None]
        arrays = (four.numpy(), None if bias is None else bias.numpy())
        self.kernel = pack(instruction_set, form, *arrays, *description)
        self._dense = weight.clone() if self.kernel is None else None
        self.instruction_set = (instruction_set or known[-1]) if self.kernel else "torch"

    @final
    def __call__(
        self, x: Tensor, add: Tensor | None = None, out: Tensor | None = None, threads: int = 1
    ) -> Tensor:
        """The result for ``x``, any batch; contiguous float32 on the CPU.

        Args:
            x: inputs.
            add: as large as the result; added before ReLU.
            out: where the result goes; by default a new tensor. May be ``add``, not ``x``.
            threads: that share the work; the result has the same bits for any number.

        Raises:
            ShapeError: another shape, dtype, device or layout.
        """
        if out is None:
            out = torch.empty(self._result(x), dtype=torch.float32)
        self.bind(x, out, add, threads)()
        return out

    @final
    def bind(self, x: Tensor, out: Tensor, add: Tensor | None = None, threads: int = 1) -> Call:
        """Check everything once; what is returned computes ``out`` from what ``x`` and ``add`` hold then.

        For programs that use the same buffers again and again. Arguments and errors as in a call.
        """
        name = f"{type(self).__name__.lower()}, {self.nonzeros} nonzeros"
        expected = self._result(x)
        for what, tensor, shape in (("input", x, None), ("output", out, expected), ("sum", add, expected)):
            if tensor is not None:
                _require(f"{what} of a sparse {name}", tensor, shape)
        if threads < 1:
            raise UsageError(f"running a sparse {name}", got=f"threads={threads}", expected="1 or more")
        if self.kernel is None:
            return lambda: _copy(out, self._on_torch(self.weight(), x, add))
        addresses = (x.data_ptr(), 0 if add is None else add.data_ptr(), out.data_ptr())
        if addresses[0] == addresses[2] and x.numel():
            raise UsageError(f"running a sparse {name}", got="out that is x", expected="another tensor")
        run, batch = self.kernel.run, self._rows(x)
        # Where the sum is overwritten, it has to be known beforehand whether it is needed again.
        careful = addresses[1] == addresses[2]

        def call() -> None:
            if (careful and not finite(x)) or run(*addresses, batch, threads):
                _copy(out, self._on_torch(self.weight(), x, add))

        return call

    def weight(self) -> Tensor:
        """The weights with their zeros, of the shape they were given in; made anew."""
        if self._dense is not None:
            return self._dense
        dense = torch.empty(self.shape)
        self.kernel.unpack(dense.data_ptr())
        return dense

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their positions."""
        return self._dense.nbytes if self._dense is not None else int(self.kernel.bytes)

    @property
    def tiling(self) -> str:
        """How the work is cut, in words."""
        return str(self.kernel.tiling) if self.kernel else "torch"

    @abstractmethod
    def _result(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the result; ShapeError if ``x`` has another than expected."""

    @abstractmethod
    def _rows(self, x: Tensor) -> int:
        """How many results there are."""

    @abstractmethod
    def _on_torch(self, weight: Tensor, x: Tensor, add: Tensor | None) -> Tensor:
        """The same with torch's own functions."""


def plain(what: str, tensor: Tensor, dims: int) -> Tensor:
    """A detached contiguous copy-free view of what can be packed.

    Raises:
        ShapeError: another number of dimensions.
        UsageError: not float32 on the CPU, or numbers that are not finite.
    """
    if tensor.dim() != dims:
        raise ShapeError(
            "packing a sparse layer",
            got=f"{what} of shape {tuple(tensor.shape)}",
            expected=f"{dims} dimensions",
        )
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or tensor.layout != torch.strided:
        raise UsageError(
            "packing a sparse layer",
            got=f"{what}, {tensor.dtype} on {tensor.device}, {tensor.layout}",
            expected="float32 on the CPU, strided",
            hint=f"{what}.to('cpu', torch.float32)",
        )
    tensor = tensor.detach().contiguous()
    if not finite(tensor):
        raise UsageError(
            "packing a sparse layer", got=f"{what} with NaN or infinity", expected="finite numbers"
        )
    return tensor


def _require(what: str, tensor: Tensor, shape: tuple[int, ...] | None) -> None:
    if shape is not None and tuple(tensor.shape) != shape:
        raise ShapeError(what, got=f"shape {tuple(tensor.shape)}", expected=f"{shape}")
    if tensor.dtype != torch.float32 or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise ShapeError(
            what,
            got=f"{tensor.dtype} on {tensor.device}, strides {tuple(tensor.stride())}",
            expected="contiguous float32 on the CPU",
            hint="x.contiguous()",
        )


def _copy(out: Tensor, result: Tensor) -> None:
    with torch.no_grad():
        out.copy_(result)
