"""Labeled images, kept as bytes and normalized when they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gracile.train import Splits
from gracile.zoo.data.unpack import Array


@final
@dataclass(frozen=True, eq=False)
class Images(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (normalized image, class), ``(pixel / top - mean) / std`` per channel.

    Attributes:
        pixels: bytes of shape ``(count, channels, height, width)``.
        targets: class of each image, int64 of shape ``(count,)``.
        classes: number of classes.
        mean, std: per channel, of pixels scaled to 0..1.
        top: the value of a full pixel.

    >>> pixels = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    >>> images = Images(pixels, torch.tensor([7]), 10, (0.5,), (0.5,))
    >>> image, target = images[0]
    >>> image.tolist(), int(target)
    ([[[1.0, 1.0], [1.0, 1.0]]], 7)
    """

    pixels: Tensor
    targets: Tensor
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    top: int = 255

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, ``(channels, height, width)``."""
        return tuple(self.pixels.shape[1:])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._normalized(self.pixels[index]), self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Read many at once, which data loaders do when they can."""
        chosen = torch.as_tensor(indices)
        images, targets = self._normalized(self.pixels[chosen]), self.targets[chosen]
        return list(zip(images, targets, strict=True))

    def take(self, indices: Array) -> Images:
        """The images at ``indices``, in that order."""
        chosen = torch.from_numpy(indices)
        return Images(self.pixels[chosen], self.targets[chosen], self.classes, self.mean, self.std, self.top)

    def _normalized(self, pixels: Tensor) -> Tensor:
        mean = torch.tensor(self.mean).view(-1, 1, 1)
        std = torch.tensor(self.std).view(-1, 1, 1)
        return pixels.to(torch.float32).div_(self.top).sub_(mean).div_(std)


def split(targets: Array, fraction: float, seed: int) -> tuple[Array, Array]:
    """Split positions in two, every class in the same proportion, both parts shuffled.

    Args:
        targets: class of each example, ``(count,)``.
        fraction: share of each class that goes to the second part.
        seed: of the shuffle.

    >>> rest, part = split(np.array([0, 0, 0, 0, 1, 1, 1, 1]), fraction=0.25, seed=0)
    >>> len(rest), sorted(np.array([0, 0, 0, 0, 1, 1, 1, 1])[part].tolist())
    (6, [0, 1])
    """
    generator = np.random.default_rng(seed)
    rests, parts = [], []
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        count = round(fraction * len(members))
        parts.append(members[:count])
        rests.append(members[count:])
    return generator.permutation(np.concatenate(rests)), generator.permutation(np.concatenate(parts))


def splits(learning: Images, test: Images, fraction: float, seed: int) -> Splits:
    """Carve ``fraction`` of the learning set out for validation; ``test`` stays as it is."""
    train, validation = split(learning.targets.numpy(), fraction, seed)
    return Splits(learning.take(train), learning.take(validation), test)
