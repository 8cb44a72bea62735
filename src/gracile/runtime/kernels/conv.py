"""Convolution that multiplies only what is not zero."""

from __future__ import annotations

from typing import final

from torch import Tensor
from torch.nn import functional

from gracile.errors import ShapeError
from gracile.runtime.kernels.packed import Block, Packed, plain

Pair = int | tuple[int, int]


@final
class Conv(Packed):
    """A convolution packed for one size of map: y = conv2d(x, W) + b, then + add, then ReLU.

    Nonzeros with the same column of the kernel are summed with aligned loads, and the sums move on by one
    pixel (shifted accumulators); blocks of channels stay in the first cache. Sums are in another order than
    torch's: results agree to a few 1e-7 of the largest. Where x has NaN or infinities the result is torch's,
    since a zero that is left out makes no NaN of them.

    Args:
        weight: (out, in / groups, kh, kw), float32, finite, with its zeros; copied.
        bias: (out,), or None.
        size: height and width of the inputs.
        stride, padding, dilation: of height and width, or one number for both.
        groups: as in :func:`torch.nn.functional.conv2d`.
        relu: whether negative results become 0.
        block: 1 leaves out single zeros; 16 leaves out runs of 16 consecutive output channels (of one group)
            that are zero at one (in, kh, kw), and computes all others.
        instruction_set: one of :func:`instruction_sets`, by default the last.
        tiling: rows in registers and channels in cache; 0 for what a model of the loop takes for fastest.

    Raises:
        ShapeError: weight, bias, groups and size do not fit each other.
        UsageError: another dtype, numbers that are not finite, an unknown instruction set.

    Source: C23 (direct sparse convolution); shifts instead of unaligned loads are ours.

    >>> import torch
    >>> weight = torch.tensor([[[[0.0, 2.0]]]])
    >>> Conv(weight, size=(1, 3))(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[4., 6.]]]])
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        size: tuple[int, int],
        stride: Pair = 1,
        padding: Pair = 0,
        dilation: Pair = 1,
        groups: int = 1,
        relu: bool = False,
        block: Block = 1,
        instruction_set: str | None = None,
        tiling: tuple[int, int] = (0, 0),
    ) -> None:
        weight = plain("weight", weight, 4)
        self.size, self.groups, self.relu = (int(size[0]), int(size[1])), groups, relu
        self.stride, self.padding, self.dilation = _two(stride), _two(padding), _two(dilation)
        self._channels = weight.shape[1] * groups
        self._map = (weight.shape[0], *self._sizes(weight))
        super().__init__(
            weight,
            None if bias is None else plain("bias", bias, 1),
            "sparse" if block == 1 else "block",
            block,
            instruction_set,
            groups,
            self.size,
            self.stride,
            self.padding,
            self.dilation,
            relu,
            *tiling,
        )

    def _sizes(self, weight: Tensor) -> tuple[int, int]:
        """Height and width of the results."""
        reach = [d * (k - 1) + 1 for d, k in zip(self.dilation, weight.shape[2:], strict=True)]
        room = [s + 2 * p - r for s, p, r in zip(self.size, self.padding, reach, strict=True)]
        fits = weight.shape[0] and weight.shape[1] and self.groups > 0 and weight.shape[0] % self.groups == 0
        positive = min(*self.stride, *self.dilation) > 0 and min(self.padding) >= 0
        if not (fits and positive and min(reach) > 0 and min(room) >= 0):
            raise ShapeError(
                "packing a sparse convolution",
                got=f"weight {tuple(weight.shape)}, map {self.size}, stride {self.stride}, padding "
                f"{self.padding}, dilation {self.dilation}, {self.groups} groups",
                expected="a kernel that fits the padded map, and groups that divide the outputs",
            )
        down, across = (r // s + 1 for r, s in zip(room, self.stride, strict=True))
        return down, across

    def _result(self, x: Tensor) -> tuple[int, ...]:
        if x.dim() != 4 or tuple(x.shape[1:]) != (self._channels, *self.size):
            raise ShapeError(
                "input of a sparse convolution",
                got=f"shape {tuple(x.shape)}",
                expected=f"(batch, {self._channels}, {self.size[0]}, {self.size[1]})",
                hint="it was packed for one size of map; pack again for another",
            )
        return (x.shape[0], *self._map)

    def _rows(self, x: Tensor) -> int:
        return x.shape[0]

    def _on_torch(self, weight: Tensor, x: Tensor, add: Tensor | None) -> Tensor:
        y = functional.conv2d(x, weight, self._bias, self.stride, self.padding, self.dilation, self.groups)
        y = y if add is None else y + add
        return y.relu() if self.relu else y


def _two(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))
