"""The same classes from different worlds, to adapt from one to another: digits, and photographed objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from gracile.errors import FileError, UsageError
from gracile.train import Splits
from gracile.zoo.data.images import Images, split, splits
from gracile.zoo.data.mnist import mnist
from gracile.zoo.data.source import CHECKSUMS, content, data_folder
from gracile.zoo.data.unpack import Array, read_npz

_USPS = "domain-adaptation/usps_16x16.npz"
_OFFICE = "domain-adaptation/office_caltech10_surf_l10.npz"
_OFFICE_DOMAINS = ("amazon", "caltech", "dslr", "webcam")

DOMAINS = ("mnist16", "usps", *_OFFICE_DOMAINS)
"""Two worlds of digits (16x16 images) and four of objects (800 visual words), 10 classes each."""

_LIMIT = 1 << 24  # bytes of one unpacked array; the largest has 7.5 MB
_VALIDATION, _TEST = 0.1, 0.25
_OBJECTS_VALIDATION = 0.2
_SIDE, _MEAN, _STD = 16, 0.5, 0.5  # the same in both worlds of digits: their difference is the subject


@final
@dataclass(frozen=True, eq=False)
class Vectors(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (vector of features, class), ``(features - mean) / std``.

    Attributes:
        features: shape ``(count, length)``.
        targets: class of each vector, int64 of shape ``(count,)``.
        mean, std: shape ``(length,)``.
        classes: number of classes.

    >>> vectors = Vectors(torch.ones(1, 2), torch.tensor([3]), torch.zeros(2), torch.full((2,), 0.5), 10)
    >>> vectors[0], vectors.shape
    ((tensor([2., 2.]), tensor(3)), (2,))
    """

    features: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one vector, ``(length,)``."""
        return tuple(self.features.shape[1:])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.features[index] - self.mean) / self.std, self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Read many at once, which data loaders do when they can."""
        chosen = torch.as_tensor(indices)
        features = (self.features[chosen] - self.mean) / self.std
        return list(zip(features, self.targets[chosen], strict=True))


def domain(name: str, folder: str | Path | None = None, seed: int = 0) -> Splits:
    """Load one domain, a name in :data:`DOMAINS`.

    ``mnist16`` is MNIST, the whole 28x28 image brought to 16x16 with antialiasing: 54001 to train, 5999 to
    validate, 10000 to test. ``usps`` is the postal digits, 16x16, in their published parts: 6564, 727, 2007.
    Their digits fill the frame, MNIST's do not. Both are normalized by the same (pixel - 0.5) / 0.5.

    ``amazon``, ``caltech``, ``dslr`` and ``webcam`` are Office-Caltech10: 958, 1123, 157 and 295 photographs
    as counts of 800 visual words (SURF). As is usual, each sample's counts are divided by their sum, and each
    word has mean 0 and deviation 1 over the domain's training samples. A quarter of each class is the test
    part, whatever the ``seed``; a fifth of the rest validates.

    Args:
        name: which one.
        folder: the data folder; ``GRACILE_DATA`` by default.
        seed: of the border between training and validation.

    Raises:
        UsageError: there is no such domain.
        FileError: a file is missing or is not the known one.
    """
    _require_known(name)
    if name == "mnist16":
        parts = mnist(folder, seed)
        return Splits(*(small(part) for part in (parts.train, parts.validation, parts.test)))
    if name == "usps":
        return _usps(folder, seed)
    return _objects(name, folder, seed)


def domain_available(name: str, folder: str | Path | None = None) -> bool:
    """Whether the files of a domain are there (their contents are checked on loading).

    Raises:
        UsageError: there is no such domain.
    """
    _require_known(name)
    try:
        root = data_folder(folder)
    except FileError:
        return False
    files = {"usps": _USPS, "mnist16": "mnist/"}.get(name, _OFFICE)
    return all((root / file).is_file() for file in CHECKSUMS if file.startswith(files))


def small(images: Images) -> Images:
    """The same images with 16x16 pixels, each a weighted mean of those that it covers.

    >>> pixels = torch.full((1, 1, 28, 28), 200, dtype=torch.uint8)
    >>> small(Images(pixels, torch.tensor([7]), 10, (0.1,), (0.3,))).pixels.unique()
    tensor([200], dtype=torch.uint8)
    """
    parts = [
        functional.interpolate(some.float(), (_SIDE, _SIDE), mode="bilinear", antialias=True).round()
        for some in images.pixels.split(4096)
    ]
    pixels = torch.cat(parts).clamp(0, 255).to(torch.uint8)
    return Images(pixels, images.targets, images.classes, (_MEAN,), (_STD,))


def _usps(folder: str | Path | None, seed: int) -> Splits:
    columns = {"train_images": "<f4", "train_labels": "|u1", "test_images": "<f4", "test_labels": "|u1"}
    dimensions = {"train_images": 3, "test_images": 3}
    arrays = read_npz(content(folder, _USPS), _USPS, columns, _LIMIT, dimensions)
    learning, test = (
        postal(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")
    )
    return splits(learning, test, _VALIDATION, seed)


def postal(images: Array, labels: Array) -> Images:
    """Images of floats in [0, 1] as bytes, rounded.

    Raises:
        FileError: counts or sizes do not fit, values are out of range, or a label is above 9.
    """
    fits = len(images) == len(labels) > 0 and images.shape[1:] == (_SIDE, _SIDE) and labels.max() <= 9
    if not fits or not (images.min() >= 0 and images.max() <= 1):  # also true for NaN
        raise _damaged(
            _USPS,
            f"{len(labels)} labels and images of shape {images.shape}",
            "16x16 images in [0, 1] with one label from 0 to 9 each",
        )
    pixels = torch.from_numpy(np.rint(images[:, None] * 255).astype(np.uint8))
    return Images(pixels, torch.from_numpy(labels.astype(np.int64)), 10, (_MEAN,), (_STD,))


def _objects(name: str, folder: str | Path | None, seed: int) -> Splits:
    columns = {f"{name}_features": "|u1", f"{name}_labels": "|u1"}
    arrays = read_npz(content(folder, _OFFICE), _OFFICE, columns, _LIMIT, {f"{name}_features": 2})
    counts, labels = arrays[f"{name}_features"], arrays[f"{name}_labels"]
    features = shares(counts, labels)
    targets = labels.astype(np.int64) - 1
    learning, test = split(targets, _TEST, seed=0)
    train, validation = split(targets[learning], _OBJECTS_VALIDATION, seed)
    known = features[learning[train]]
    mean, std = known.mean(0), known.std(0)
    std[std == 0] = 1.0  # a word that no training sample has
    return Splits(
        *(
            Vectors(features[part], torch.from_numpy(targets[part]), mean, std, classes=10)
            for part in (learning[train], learning[validation], test)
        )
    )


def shares(counts: Array, labels: Array) -> Tensor:
    """Counts of words as shares of each sample's words.

    Raises:
        FileError: counts of samples differ, a sample has no word, or a label is none of 1 to 10.
    """
    if not len(counts) == len(labels) > 0 or labels.min() < 1 or labels.max() > 10 or not counts.any(1).all():
        raise _damaged(
            _OFFICE,
            f"{len(labels)} labels and counts of shape {counts.shape}",
            "samples that have words, with one label from 1 to 10 each",
        )
    features = torch.from_numpy(counts.astype(np.float32))
    return features / features.sum(1, keepdim=True)


def _damaged(file: str, got: str, expected: str) -> FileError:
    return FileError(f"unpacking '{file}'", got=got, expected=expected, hint="restore the original file")


def _require_known(name: str) -> None:
    if name not in DOMAINS:
        raise UsageError("finding a domain", got=f"'{name}'", expected=f"one of {', '.join(DOMAINS)}")
