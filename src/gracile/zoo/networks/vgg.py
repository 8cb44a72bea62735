"""A small VGG with batch normalization: pairs of 3x3 convolutions, each pair halves the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn

from gracile.errors import ShapeError


@final
class VGGSmall(nn.Module):
    """Pairs of (convolution, batch norm, ReLU), a max pool after each pair, one linear layer.

    ``widths=(128, 256, 512)`` is the VGG-Small of the quantization literature (4.66 M
    parameters); the default is its quarter, which trains on a CPU.

    Args:
        shape: one input image, ``(channels, height, width)``; each side at least ``2 ** len(widths)``.
        classes: number of outputs.
        widths: filters of each pair of convolutions.

    Raises:
        ShapeError: the image is too small to be halved so often.

    >>> VGGSmall((1, 8, 8))(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self, shape: Sequence[int], classes: int = 10, widths: Sequence[int] = (32, 64, 128)
    ) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        for filters in widths:
            for inputs in (channels, filters):
                layers += [
                    nn.Conv2d(inputs, filters, 3, padding=1, bias=False),
                    nn.BatchNorm2d(filters),
                    nn.ReLU(),
                ]
            layers.append(nn.MaxPool2d(2))
            channels, height, width = filters, height // 2, width // 2
        if min(height, width) < 1:
            least = 2 ** len(widths)
            raise ShapeError(
                "building VGGSmall",
                got=f"images of shape {tuple(shape)}",
                expected=f"{least}x{least} or more",
            )
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * height * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(batch, channels, height, width)`` to logits ``(batch, classes)``."""
        return self.classifier(torch.flatten(self.features(images), 1))
