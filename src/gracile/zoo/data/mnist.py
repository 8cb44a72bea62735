"""MNIST and Fashion-MNIST from their original IDX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gracile.errors import FileError
from gracile.train import Splits
from gracile.zoo.data.images import Images, splits
from gracile.zoo.data.source import content
from gracile.zoo.data.unpack import gunzip, read_idx

_VALIDATION = 0.1


def mnist(folder: str | Path | None = None, seed: int = 0) -> Splits:
    """Handwritten digits, 28x28, 10 classes: 54001 to train, 5999 to validate, 10000 to test.

    Args:
        folder: holds ``mnist/*-ubyte.gz``; ``GRACILE_DATA`` by default.
        seed: of the shuffle and of the validation part, stratified and taken from training images.

    Raises:
        FileError: a file is missing or is not the original.
    """
    return _load(folder, seed, "mnist", mean=0.1307, std=0.3081)


def fashion_mnist(folder: str | Path | None = None, seed: int = 0) -> Splits:
    """Articles of clothing, 28x28, 10 classes: 54000 to train, 6000 to validate, 10000 to test.

    Args:
        folder: holds ``fashion-mnist/*-ubyte.gz``; ``GRACILE_DATA`` by default.
        seed: as in :func:`mnist`.

    Raises:
        FileError: a file is missing or is not the original.
    """
    return _load(folder, seed, "fashion-mnist", mean=0.2860, std=0.3530)


def _load(folder: str | Path | None, seed: int, name: str, mean: float, std: float) -> Splits:
    learning, test = (
        labeled(
            gunzip(content(folder, f"{name}/{part}-images-idx3-ubyte.gz"), f"{part}-images"),
            gunzip(content(folder, f"{name}/{part}-labels-idx1-ubyte.gz"), f"{part}-labels"),
            part,
            mean,
            std,
        )
        for part in ("train", "t10k")
    )
    return splits(learning, test, _VALIDATION, seed)


def labeled(images: bytes, labels: bytes, name: str, mean: float, std: float) -> Images:
    """Join an IDX file of images with one of labels.

    Raises:
        FileError: either is damaged, their counts differ, or a label is above 9.
    """
    pixels = read_idx(images, f"{name} images", dimensions=3)
    targets = read_idx(labels, f"{name} labels", dimensions=1)
    if len(pixels) != len(targets) or not len(targets) or targets.max() > 9:
        raise FileError(
            f"joining {name} images and labels",
            got=f"{len(pixels)} images and {len(targets)} labels up to {targets.max(initial=0)}",
            expected="one label from 0 to 9 for each image",
            hint="the two files belong to different sets",
        )
    return Images(
        torch.from_numpy(pixels[:, None].copy()),
        torch.from_numpy(targets.astype(np.int64)),
        classes=10,
        mean=(mean,),
        std=(std,),
    )
