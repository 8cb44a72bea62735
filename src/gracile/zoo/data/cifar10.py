"""CIFAR-10 from an archive of JPEG files, decoded once and kept in a cache."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gracile.errors import FileError
from gracile.files import read_tensors, write_tensors
from gracile.train import Splits
from gracile.zoo.data.images import Images, splits
from gracile.zoo.data.source import CHECKSUMS, content
from gracile.zoo.data.unpack import Array, read_npz

_FILE = "cifar10/cifar10_jpeg.npz"
_VALIDATION = 0.1
_COUNTS = {"train": 50_000, "test": 10_000}
# The statistics of ImageNet, with which the public CIFAR ResNets were trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def cifar10(folder: str | Path | None = None, seed: int = 0) -> Splits:
    """Photographs, 3x32x32, 10 classes: 45000 to train, 5000 to validate, 10000 to test.

    **Lossy**: the archive holds JPEG files of quality 75 (4:2:0), not the original pixels; a
    network trained on the originals loses some ten points of accuracy on them. The archive is
    ordered class by class, so both parts are shuffled by a fixed permutation. Decoding takes
    tens of seconds once; the pixels are then kept, with a checksum, below ``XDG_CACHE_HOME``.

    Args:
        folder: holds ``cifar10/cifar10_jpeg.npz``; ``GRACILE_DATA`` by default.
        seed: of the validation part, stratified and taken from training images.

    Raises:
        FileError: the file is missing or is not the known archive.
    """
    cache = cache_folder() / f"cifar10-{CHECKSUMS[_FILE][:16]}.safetensors"
    archive = content(folder, _FILE)
    arrays = _recall(cache)
    if arrays is None:
        arrays = decode(archive)
        with suppress(OSError):  # a cache that cannot be written is only a slower next start
            write_tensors(cache, {**arrays, "sha256": _digest(arrays)})
    learning, test = (
        Images(arrays[f"{part}_pixels"], arrays[f"{part}_targets"].long(), 10, _MEAN, _STD)
        for part in ("train", "test")
    )
    return splits(learning, test, _VALIDATION, seed)


def cache_folder() -> Path:
    """``gracile`` below ``XDG_CACHE_HOME``, or below ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gracile"


def decode(archive: bytes) -> dict[str, Tensor]:
    """Decode the npz archive of JPEG files into shuffled pixels and targets.

    Returns:
        ``{train,test}_pixels``, uint8 of shape ``(count, 3, 32, 32)``, and ``{train,test}_targets``.

    Raises:
        FileError: an array is missing or inconsistent, or a picture is no 32x32 RGB JPEG.
    """
    types = {"jpeg": "|u1", "offsets": "<i8", "labels": "|u1"}
    columns = {f"{part}_{column}": dtype for part in _COUNTS for column, dtype in types.items()}
    arrays = read_npz(archive, _FILE, columns)
    result = {}
    for part in _COUNTS:
        jpeg, offsets, labels = (arrays[f"{part}_{column}"] for column in types)
        _check(part, jpeg, offsets, labels)
        order = np.random.default_rng(0).permutation(len(labels))
        pixels = np.empty((len(labels), 32, 32, 3), np.uint8)
        for place, index in enumerate(order):
            picture = jpeg[offsets[index] : offsets[index + 1]].tobytes()
            pixels[place] = _picture(picture, f"{part} image {index}")
        result[f"{part}_pixels"] = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        result[f"{part}_targets"] = torch.from_numpy(labels[order])
    return result


def _check(part: str, jpeg: Array, offsets: Array, labels: Array) -> None:
    rising = len(offsets) == len(labels) + 1 and bool((np.diff(offsets) > 0).all())
    fitting = rising and offsets[0] == 0 and offsets[-1] == len(jpeg) and labels.max() <= 9
    if not fitting:
        raise FileError(
            f"unpacking '{_FILE}'",
            got=f"{len(labels)} {part} labels, {len(offsets)} offsets into {len(jpeg)} bytes",
            expected="rising offsets that tile the bytes, and one label from 0 to 9 for each picture",
            hint="restore the original file",
        )


def _picture(jpeg: bytes, name: str) -> Array:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as picture:
                if picture.size == (32, 32) and picture.mode == "RGB":  # known before decoding
                    return np.asarray(picture)
                found = f"{picture.mode} of {picture.width}x{picture.height}"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Warning) as error:
        found = str(error)
    raise FileError(f"decoding {name} of '{_FILE}'", got=found, expected="a JPEG of 32x32 RGB pixels")


def _recall(cache: Path) -> dict[str, Tensor] | None:
    try:
        arrays = read_tensors(cache)
    except FileError:
        return None
    digest = arrays.pop("sha256", None)
    intact = digest is not None and torch.equal(digest, _digest(arrays))
    return arrays if intact else None


def _digest(arrays: Mapping[str, Tensor]) -> Tensor:
    state = hashlib.sha256()
    for name in sorted(arrays):
        state.update(f"{name} {tuple(arrays[name].shape)}".encode())
        state.update(arrays[name].numpy().data)
    return torch.from_numpy(np.frombuffer(state.digest(), np.uint8).copy())
