"""Layers of a network that leave out zeros wherever the network runs: in torch, exported, or compiled."""

from __future__ import annotations

from typing import Any, TypeVar, final

from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.runtime.kernels.packed import Block
from gracile.runtime.operators import sparse_conv2d, sparse_linear

Model = TypeVar("Model", bound=nn.Module)


@final
class SparseConv2d(nn.Module):
    """An :class:`torch.nn.Conv2d` by sparse kernels; the weight keeps its zeros and is a buffer.

    Args:
        conv: whose numbers it takes over; its state loads here, too.
        block: 1 leaves out single zeros; 16 leaves out runs of 16 output channels.

    Raises:
        UsageError: padding with anything but zeros, or of an uneven width.

    >>> import torch
    >>> conv = nn.Conv2d(3, 8, 3, padding=1)
    >>> SparseConv2d(conv)(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, block: Block = 1) -> None:
        super().__init__()
        _take(self, conv)
        self.stride, self.dilation, self.groups = list(conv.stride), list(conv.dilation), conv.groups
        self.padding, self.block = _padding(conv), block

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, channels, height, width)`` as the convolution does."""
        settings: Any = (self.stride, self.padding, self.dilation, self.groups, self.block)
        y: Tensor = sparse_conv2d(x, self.weight, self.bias, *settings)
        return y

    def extra_repr(self) -> str:
        return _shown(self.weight, self.block)


@final
class SparseLinear(nn.Module):
    """An :class:`torch.nn.Linear` by sparse kernels; see :class:`SparseConv2d`.

    >>> import torch
    >>> SparseLinear(nn.Linear(4, 2))
    SparseLinear((2, 4), density 100.0%, block 1)
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, block: Block = 1) -> None:
        super().__init__()
        _take(self, linear)
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., inputs)`` to ``(..., outputs)``."""
        y: Tensor = sparse_linear(x, self.weight, self.bias, self.block)
        return y

    def extra_repr(self) -> str:
        return _shown(self.weight, self.block)


def sparse_modules_(model: Model, density: float = 0.4, block: Block = 1) -> Model:
    """Put sparse layers in the place of convolutions and linear layers, and return the model.

    For networks that go on to :func:`torch.export.export` or :func:`torch.compile`. Nothing is measured; a
    program of :class:`gracile.runtime.SparseCPU` is faster, as it measures, and fuses what follows a layer.

    Args:
        model: changed in place; a layer that is used twice stays one.
        density: layers with a larger share of nonzeros stay as they are.
        block: see :class:`SparseConv2d`.

    >>> model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    >>> _ = model[0].weight.data.zero_()
    >>> [type(layer).__name__ for layer in sparse_modules_(model)]
    ['SparseLinear', 'Linear']
    """
    made: dict[nn.Module, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is None or type(child) not in (nn.Conv2d, nn.Linear) or _density(child) > density:
                continue
            if child not in made:
                try:
                    made[child] = _sparse(child, block)
                except UsageError:  # padding that there is no kernel for
                    continue
            setattr(parent, name, made[child])
    return model


def _take(module: nn.Module, layer: nn.Conv2d | nn.Linear) -> None:
    module.register_buffer("weight", layer.weight.detach())
    module.register_buffer("bias", None if layer.bias is None else layer.bias.detach())
    module.train(layer.training)


def _density(layer: Any) -> float:
    return int(layer.weight.count_nonzero()) / max(int(layer.weight.numel()), 1)


def _sparse(layer: nn.Module, block: Block) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return SparseConv2d(layer, block)
    return SparseLinear(layer, block) if isinstance(layer, nn.Linear) else layer


def _padding(conv: nn.Conv2d) -> list[int]:
    if conv.padding_mode != "zeros":
        raise UsageError(
            "making a convolution sparse", got=f"padding {conv.padding_mode!r}", expected="zeros"
        )
    if isinstance(conv.padding, tuple):
        return list(conv.padding)
    if conv.padding == "valid":
        return [0, 0]
    total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    if any(t % 2 for t in total):
        raise UsageError(
            "making a convolution sparse",
            got=f"padding 'same' for a kernel of {conv.kernel_size}",
            expected="as much on both sides",
        )
    return [t // 2 for t in total]


def _shown(weight: Tensor, block: int) -> str:
    share = float(weight.count_nonzero()) / max(weight.numel(), 1)
    return f"{tuple(weight.shape)}, density {share:.1%}, block {block}"
