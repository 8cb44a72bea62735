"""LeNet as Caffe ships it: two convolutions, two fully connected layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.errors import ShapeError


@final
class LeNet(nn.Module):
    """Caffe's LeNet, 20-50-500 (the network of C6's first table).

    Images of 16 pixels and more meet 5x5 kernels without padding, as in the original; smaller
    ones (8x8 digits) would shrink to nothing, so they meet 3x3 kernels padded to keep their size.

    Args:
        shape: one input image, ``(channels, height, width)``.
        classes: number of outputs.
        widths: filters of the two convolutions and neurons of the hidden layer.

    Raises:
        ShapeError: nothing is left of so small an image.

    >>> model = LeNet((1, 28, 28))
    >>> sum(p.numel() for p in model.parameters())
    431080
    >>> model(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 10, widths: tuple[int, int, int] = (20, 50, 500)
    ) -> None:
        super().__init__()
        channels, height, width = shape
        kernel, padding = (5, 0) if min(height, width) >= 16 else (3, 1)
        first, second, hidden = widths

        def size_after(size: int) -> int:
            for _ in range(2):
                size = (size + 2 * padding - kernel + 1) // 2
            return size

        if min(size_after(height), size_after(width)) < 1:
            raise ShapeError("building LeNet", got=f"images of shape {tuple(shape)}", expected="4x4 or more")
        self.conv1 = nn.Conv2d(channels, first, kernel, padding=padding)
        self.conv2 = nn.Conv2d(first, second, kernel, padding=padding)
        self.fc1 = nn.Linear(second * size_after(height) * size_after(width), hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        x = functional.max_pool2d(self.conv1(images), 2)
        x = functional.max_pool2d(self.conv2(x), 2)
        x = functional.relu(self.fc1(torch.flatten(x, 1)))
        return self.fc2(x)
