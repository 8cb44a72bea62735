"""A layer of LSTM cells whose matrices have zeros: all steps in one call."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from gracile.errors import ShapeError
from gracile.runtime.kernels.linear import Linear
from gracile.runtime.kernels.native import cells
from gracile.runtime.kernels.packed import Block, plain


@final
class Lstm:
    """One layer in one direction, packed: gates i f g o as in :class:`torch.nn.LSTM`.

    W_ih x of all steps is one product; then each step adds W_hh h and moves the cells. Sigmoid and tanh are
    polynomials good to a few 1e-7.

    Args:
        weight_ih: (4 hidden, in), float32, finite, with its zeros; copied.
        weight_hh: (4 hidden, hidden).
        bias_ih, bias_hh: (4 hidden,), or None.
        block: see :class:`gracile.runtime.kernels.Linear`.
        instruction_set: one of :func:`instruction_sets`, by default the last.

    Raises:
        ShapeError: the four do not fit each other.
        UsageError: another dtype, numbers that are not finite, an unknown instruction set.

    >>> layer = Lstm(torch.zeros(8, 3), torch.zeros(8, 2))
    >>> y, h, c = layer(torch.ones(5, 1, 3), torch.zeros(1, 2), torch.ones(1, 2))
    >>> y.shape, c
    (torch.Size([5, 1, 2]), tensor([[0.0312, 0.0312]]))
    """

    def __init__(
        self,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None = None,
        bias_hh: Tensor | None = None,
        *,
        block: Block = 1,
        instruction_set: str | None = None,
    ) -> None:
        weight_hh = plain("weight_hh", weight_hh, 2)
        rows, self.hidden = weight_hh.shape
        if rows != 4 * self.hidden or len(weight_ih) != rows:
            raise ShapeError(
                "packing a sparse LSTM",
                got=f"weight_ih {tuple(weight_ih.shape)}, weight_hh {tuple(weight_hh.shape)}",
                expected="(4 hidden, in) and (4 hidden, hidden)",
            )
        biases = [plain("bias", bias, 1) for bias in (bias_ih, bias_hh) if bias is not None]
        bias = torch.stack(biases).sum(0) if biases else None
        self._inputs = Linear(weight_ih, bias, block=block, instruction_set=instruction_set)
        self._states = Linear(weight_hh, block=block, instruction_set=instruction_set)

    @property
    def nbytes(self) -> int:
        """Bytes of the packed weights and their positions."""
        return self._inputs.nbytes + self._states.nbytes

    @property
    def nonzeros(self) -> int:
        """Weights that are not zero."""
        return self._inputs.nonzeros + self._states.nonzeros

    def weights(self) -> tuple[Tensor, Tensor]:
        """``weight_ih`` and ``weight_hh`` with their zeros, made anew."""
        return self._inputs.weight(), self._states.weight()

    def __call__(
        self, x: Tensor, h: Tensor, c: Tensor, out: Tensor | None = None, threads: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of all steps (steps, batch, hidden) and the last states h and c (batch, hidden).

        Args:
            x: (steps, batch, in), contiguous float32 on the CPU.
            h, c: states before the first step, (batch, hidden); left as they are.
            out: where the outputs go; by default a new tensor.
            threads: that share the work.

        Raises:
            ShapeError: another shape, dtype, device or layout.
        """
        if x.dim() != 3 or h.shape != (x.shape[1], self.hidden) or c.shape != h.shape:
            raise ShapeError(
                "running a sparse LSTM",
                got=f"x {tuple(x.shape)}, h {tuple(h.shape)}, c {tuple(c.shape)}",
                expected=f"(steps, batch, {self._inputs.shape[1]}) and twice (batch, {self.hidden})",
            )
        steps, batch = x.shape[:2]
        y = torch.empty(steps, batch, self.hidden) if out is None else out
        wanted = (steps, batch, self.hidden)
        if tuple(y.shape) != wanted or y.dtype != torch.float32 or not y.is_contiguous():
            raise ShapeError(
                "output of a sparse LSTM",
                got=f"{y.dtype} {tuple(y.shape)}",
                expected=f"contiguous float32 {wanted}",
            )
        gates = self._inputs(x, threads=threads)
        state, cell = (plain_state(s) for s in (h, c))
        if not cells(self._states, gates, state, cell, y, threads):  # none compiled, or not finite
            return self._on_torch(x, h, c, y)
        return y, state, cell

    def _on_torch(self, x: Tensor, h: Tensor, c: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gates, hidden = self._inputs(x), self._states.weight()
        for step, gate in enumerate(gates):
            i, f, g, o = (gate + h @ hidden.T).chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            y[step] = h
        return y, h, c


def plain_state(state: Tensor) -> Tensor:
    """A contiguous float32 copy on the CPU, which the steps may overwrite."""
    if state.dtype != torch.float32 or state.device.type != "cpu":
        raise ShapeError(
            "states of a sparse LSTM", got=f"{state.dtype} on {state.device}", expected="float32 on the CPU"
        )
    return state.detach().contiguous().clone()
