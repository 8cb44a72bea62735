"""Layers as torch computes them, called like the sparse kernels, so that the two can take each other's place.

Weights are copied, as the sparse kernels do: a program stays what it is when its model is trained further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor


@final
class Conv:
    """A convolution by torch. Its answer is new memory: torch cannot write it anywhere."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (0, 0),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        relu: bool = False,
    ) -> None:
        self._parameters = (weight.clone(), None if bias is None else bias.clone())
        self._slide = (stride, padding, dilation, groups)
        self._relu = relu
        self.nbytes = _nbytes(weight, bias)

    def __call__(self, x: Tensor, add: Tensor | None = None, threads: int = 1) -> Tensor:
        weight, bias = self._parameters
        y = torch.conv2d(x, weight, bias, *self._slide)
        if add is not None:
            y.add_(add)
        return y.relu_() if self._relu else y

    def weight(self) -> Tensor:
        """The weights."""
        return self._parameters[0]


@final
class Linear:
    """A linear layer by torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> None:
        self._weight, self._relu = weight.clone().t(), relu
        self._bias = None if bias is None else bias.clone()
        self.nbytes = _nbytes(weight, bias)

    def __call__(self, x: Tensor, add: Tensor | None = None, threads: int = 1) -> Tensor:
        out = x.new_empty((*x.shape[:-1], self._weight.shape[1]))
        self.bind(x, out, add, threads)()
        return out

    def bind(self, x: Tensor, out: Tensor, add: Tensor | None = None, threads: int = 1) -> Callable[[], None]:
        """A call that computes ``out`` from what ``x`` and ``add`` hold then, as for sparse kernels."""
        inputs, outputs = self._weight.shape
        flat, y = x.reshape(-1, inputs), out.view(-1, outputs)
        first = self._bias if add is None else add.reshape(-1, outputs)

        def call() -> None:
            if first is None:
                torch.mm(flat, self._weight, out=y)
            else:
                torch.addmm(first, flat, self._weight, out=y)
            if add is not None and self._bias is not None:
                y.add_(self._bias)
            if self._relu:
                y.relu_()

        return call

    def weight(self) -> Tensor:
        """The weights, ``(outputs, inputs)``."""
        return self._weight.t()


@final
class Lstm:
    """LSTM layers by torch, ``(x, h, c)`` to ``(y, h, c)``."""

    def __init__(
        self, parameters: Sequence[Tensor], biased: bool, layers: int, both: bool, batch_first: bool
    ) -> None:
        self._parameters = [p.clone() for p in parameters]
        self._form = (biased, layers, 0.0, False, both, batch_first)
        self.nbytes = _nbytes(*parameters)

    def __call__(self, x: Tensor, h: Any = None, c: Any = None, threads: int = 1) -> Any:
        return torch.lstm(x, (h, c), self._parameters, *self._form)

    def weights(self) -> list[Tensor]:
        """Matrices in torch's order."""
        return [p for p in self._parameters if p.dim() == 2]


@final
class Stack:
    """One-layer LSTM kernels on top of each other, with torch's order of dimensions."""

    def __init__(self, layers: Sequence[Any], batch_first: bool) -> None:
        self._layers, self._batch_first = layers, batch_first
        self.nbytes = sum(layer.nbytes for layer in layers)

    def __call__(self, x: Tensor, h: Any = None, c: Any = None, threads: int = 1) -> Any:
        y = x.transpose(0, 1) if self._batch_first else x
        after = []
        for layer, hidden, cell in zip(self._layers, h, c, strict=True):
            y, *state = layer(y.contiguous(), hidden, cell, threads=threads)
            after.append(state)
        hidden, cell = (torch.stack(part) for part in zip(*after, strict=True))
        return (y.transpose(0, 1) if self._batch_first else y), hidden, cell

    def weights(self) -> list[Tensor]:
        """Matrices in torch's order."""
        return [weight for layer in self._layers for weight in layer.weights()]


def _nbytes(*tensors: Tensor | None) -> int:
    return sum(t.nbytes for t in tensors if t is not None)
