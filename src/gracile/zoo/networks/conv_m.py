"""Conv-M: three kinds of convolution side by side, from which a small network for many domains is stacked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import ShapeError, UsageError

Block = Callable[[int, int], nn.Module]


@final
class ConvM(nn.Module):
    """The same input through an ordinary, a dilated and a transposed convolution; concatenated (C22).

    ::

        x -> [1x1 squeeze -> ReLU] -> conv 3x3
                                   -> conv 3x3, dilation 2 (a 5x5 field)
                                   -> transposed conv 4x4, stride 2 -> max 2x2
                                                              -> concatenate -> batch norm -> ReLU

    The transposed convolution doubles the image and the maximum over 2x2 pixels halves it again. It must be
    something of that kind: with stride 1 a transposed convolution *is* an ordinary one with its kernel turned
    round, and with stride 2 and a mean in place of the maximum it is one as well, since both are linear. As
    it is each output is the largest of four convolutions, whose 2x2 kernels look in four directions.

    The publication names the three branches. Its strides, widths and table of layers could not be consulted,
    so that this is a Conv-M-style layer: what becomes of the transposed branch is ours.

    Args:
        inputs: channels of the input.
        outputs: channels of the output, a third of them from each branch (the first takes what is left over).
        squeeze: channels of the 1x1 convolution in front; none if ``None``.

    Raises:
        UsageError: fewer than 3 outputs.

    >>> ConvM(8, 30, squeeze=4)(torch.zeros(2, 8, 5, 7)).shape
    torch.Size([2, 30, 5, 7])
    """

    def __init__(self, inputs: int, outputs: int, squeeze: int | None = None) -> None:
        super().__init__()
        if outputs < 3:
            raise UsageError("building ConvM", got=f"outputs={outputs}", expected="3 or more, one a branch")
        third = outputs // 3
        self.squeeze = nn.Conv2d(inputs, squeeze, 1) if squeeze else nn.Identity()
        width = squeeze or inputs
        self.near = nn.Conv2d(width, outputs - 2 * third, 3, padding=1, bias=False)
        self.far = nn.Conv2d(width, third, 3, padding=2, dilation=2, bias=False)
        self.up = nn.ConvTranspose2d(width, third, 4, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        if isinstance(self.squeeze, nn.Conv2d):
            x = functional.relu(self.squeeze(x))
        branches = self.near(x), self.far(x), functional.max_pool2d(self.up(x), 2)
        return functional.relu(self.bn(torch.cat(branches, 1)))


@final
class PlainConv(nn.Module):
    """A 3x3 convolution, batch norm, ReLU: what :class:`ConvM` is compared with.

    >>> PlainConv(8, 30)(torch.zeros(2, 8, 5, 7)).shape
    torch.Size([2, 30, 5, 7])
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, inputs, h, w)`` to ``(batch, outputs, h, w)``."""
        return functional.relu(self.bn(self.conv(x)))


@final
class ConvMNet(nn.Module):
    """Blocks in stages with a 2x2 max pool between stages, global average pooling, one linear layer.

    Args:
        shape: one input image, ``(channels, height, width)``; each side at least ``2 ** (stages - 1)``.
        classes: number of outputs.
        stages: output channels of the blocks of each stage.
        block: makes a block from its input and output channels.
        stem: channels of a 7x7 convolution of stride 2, with batch norm, ReLU and a pool, in front of it
            all, for large images; none if ``None``.

    Raises:
        ShapeError: the image is too small to be halved so often.

    >>> model = ConvMNet((1, 16, 16))
    >>> model(torch.zeros(2, 1, 16, 16)).shape, sum(p.numel() for p in model.parameters())
    (torch.Size([2, 10]), 66858)
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        stages: Sequence[Sequence[int]] = ((24,), (48,), (96,)),
        block: Block = ConvM,
        stem: int | None = None,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        halvings = len(stages) - 1 + (2 if stem else 0)
        if min(height, width) < 2**halvings:
            raise ShapeError(
                "building ConvMNet",
                got=f"images of shape {tuple(shape)}",
                expected=f"{2**halvings}x{2**halvings} or more",
            )
        self.stem = nn.Sequential(*_stem(channels, stem) if stem else ())
        widths = [stem or channels, *(outputs for stage in stages for outputs in stage)]
        blocks = [block(inputs, outputs) for inputs, outputs in pairwise(widths)]
        rest = iter(blocks)
        self.stages = nn.ModuleList(nn.Sequential(*(next(rest) for _ in stage)) for stage in stages)
        self.pool = nn.AdaptiveAvgPool2d(1)  # a module, so that its output, the feature, has a name
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = self.stem(images)
        for number, stage in enumerate(self.stages):
            x = stage(functional.max_pool2d(x, 2) if number else x)
        return self.classifier(torch.flatten(self.pool(x), 1))


def conv_m(classes: int = 1000, shape: Sequence[int] = (3, 224, 224)) -> ConvMNet:
    """The compact network for large images: 4.1 M parameters with 1000 classes, as published (C22).

    >>> round(sum(p.numel() for p in conv_m().parameters()) / 1e6, 2)
    4.07
    """
    stages = ((96, 96), (192, 192), (384, 384), (708, 708))
    return ConvMNet(shape, classes, stages, _squeezed, stem=64)


def conv_m_small(shape: Sequence[int], classes: int = 10) -> ConvMNet:
    """Conv-M for small images: three blocks of 24, 48 and 96 channels, 67 thousand parameters."""
    return ConvMNet(shape, classes)


def plain_small(shape: Sequence[int], classes: int = 10) -> ConvMNet:
    """The same network of 3x3 convolutions alone, a little wider, so that it has as many parameters."""
    return ConvMNet(shape, classes, ((27,), (54,), (108,)), PlainConv)


def _squeezed(inputs: int, outputs: int) -> ConvM:
    return ConvM(inputs, outputs, squeeze=outputs // 5)


def _stem(channels: int, outputs: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, outputs, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
