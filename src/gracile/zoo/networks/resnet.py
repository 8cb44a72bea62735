"""The residual networks that He et al. built for CIFAR (6n + 2 layers, 16-32-64 filters)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional


@final
class PaddedShortcut(nn.Module):
    """Option A: every second pixel, zeros for the channels that the input does not have.

    >>> PaddedShortcut(16, 32)(torch.ones(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, h, w)`` to ``(batch, out, h / stride, w / stride)``."""
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


@final
class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters.

    >>> BasicBlock(16, 16, stride=1)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 16, 8, 8])
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else PaddedShortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, h, w)`` to ``(batch, out, h / stride, w / stride)``."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return functional.relu(y + self.shortcut(x))


@final
class CifarResNet(nn.Module):
    """ResNet for small images with ``6 blocks + 2`` layers and option-A shortcuts.

    The names in its state dict are those of the widely used implementation by Y. Idelbayev, so
    that public checkpoints load as they are.

    Args:
        shape: one input image, ``(channels, height, width)``.
        classes: number of outputs.
        blocks: residual blocks in each of the three stages.
        widths: filters of the three stages.

    >>> model = CifarResNet((3, 32, 32), blocks=3)
    >>> model(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        shape: Sequence[int],
        classes: int = 10,
        blocks: int = 3,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.conv1 = nn.Conv2d(shape[0], first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.linear = nn.Linear(third, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = functional.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.mean(x, dim=(2, 3)))


def resnet20(shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> CifarResNet:
    """ResNet-20: 0.27 M parameters, 40.6 M MACs per 32x32 image.

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return CifarResNet(shape, classes, blocks=3)


def resnet32(shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> CifarResNet:
    """ResNet-32: 0.46 M parameters, 68.9 M MACs per 32x32 image.

    >>> sum(p.numel() for p in resnet32().parameters())
    464154
    """
    return CifarResNet(shape, classes, blocks=5)


def resnet56(shape: Sequence[int] = (3, 32, 32), classes: int = 10) -> CifarResNet:
    """ResNet-56: 0.85 M parameters, 125.5 M MACs per 32x32 image.

    >>> sum(p.numel() for p in resnet56().parameters())
    853018
    """
    return CifarResNet(shape, classes, blocks=9)


def _stage(in_channels: int, out_channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))
