"""Strict readers of the archive formats; a file may not make us allocate what it does not hold.

Each reader compares what a header declares with what the file holds before it believes the
header, and stops unpacking at a limit, so that neither a truncated file nor a decompression
bomb does harm.
"""

from __future__ import annotations

import io
import lzma
import zipfile
import zlib
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from gracile.errors import FileError

Array = np.ndarray[Any, np.dtype[Any]]

LIMIT = 1 << 30  # bytes: four times the largest known set


def gunzip(data: bytes, name: str, limit: int = LIMIT) -> bytes:
    """Unpack one gzip member of at most ``limit`` bytes.

    Raises:
        FileError: damaged, truncated, trailed by other bytes, or larger than ``limit``.

    >>> import gzip
    >>> gunzip(gzip.compress(b"digits"), "a.gz")
    b'digits'
    """
    reader = zlib.decompressobj(wbits=31)
    try:
        unpacked = reader.decompress(data, limit)
    except zlib.error as error:
        raise _damaged(name, str(error), "gzip data") from error
    return _whole(unpacked, reader.eof, reader.unused_data, name, limit)


def unxz(data: bytes, name: str, limit: int = LIMIT) -> bytes:
    """Unpack one xz stream of at most ``limit`` bytes. Raises as :func:`gunzip` does.

    >>> unxz(lzma.compress(b"words"), "a.xz")
    b'words'
    """
    reader = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=LIMIT)
    try:
        unpacked = reader.decompress(data, limit)
    except lzma.LZMAError as error:
        raise _damaged(name, str(error), "xz data") from error
    return _whole(unpacked, reader.eof, reader.unused_data, name, limit)


def read_idx(data: bytes, name: str, dimensions: int) -> Array:
    """Read an IDX file of unsigned bytes: magic ``00 00 08 dimensions``, sizes, values.

    Raises:
        FileError: wrong magic number, or the sizes do not multiply to the bytes that follow.

    >>> read_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 5, 6, 7]), "labels", dimensions=1)
    array([5, 6, 7], dtype=uint8)
    """
    start = 4 + 4 * dimensions
    magic = bytes([0, 0, 8, dimensions])
    if len(data) < start or data[:4] != magic:
        raise _damaged(name, f"the first bytes {data[:4].hex(' ')}", f"the IDX magic {magic.hex(' ')}")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", dimensions, offset=4))
    if prod(shape) != len(data) - start:
        declared = " x ".join(map(str, shape))
        raise _damaged(name, f"{len(data) - start} values", f"the declared {declared} = {prod(shape)}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def read_npz(
    data: bytes,
    name: str,
    columns: Mapping[str, str],
    limit: int | None = None,
    dimensions: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Read arrays from an npz archive.

    Args:
        data: the archive.
        name: the file's name, for messages.
        columns: array name -> dtype string it must have, e.g. ``{"labels": "|u1"}``.
        limit: most bytes of one unpacked array; by default the size of the archive, which suits one
            without compression.
        dimensions: array name -> how many it must have; 1 where nothing is said.

    Raises:
        FileError: no zip archive, an array is missing or of another type, or its header declares
            more than the archive holds.
    """
    arrays = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for column, dtype in columns.items():
                axes = (dimensions or {}).get(column, 1)
                most = len(data) if limit is None else limit
                if (size := archive.getinfo(f"{column}.npy").file_size) > most:
                    raise _damaged(name, f"'{column}' of {size} bytes", f"at most {most} unpacked bytes")
                arrays[column] = _read_npy(archive.read(f"{column}.npy"), f"{name}:{column}", dtype, axes)
    except (zipfile.BadZipFile, KeyError, OSError, EOFError, NotImplementedError, zlib.error) as error:
        raise _damaged(name, str(error), f"an npz archive of {', '.join(columns)}") from error
    return arrays


def _read_npy(data: bytes, name: str, dtype: str, axes: int) -> Array:
    stream = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("an unknown version of the npy format")
        shape, transposed, found = np.lib.format.read_array_header_1_0(stream)
    except (ValueError, EOFError) as error:
        raise _damaged(name, str(error), "an npy header") from error
    if found.hasobject or found.str != dtype or len(shape) != axes:
        expected = "one dimension" if axes == 1 else f"{axes} dimensions"
        raise _damaged(name, f"{found} of shape {shape}", f"{expected} of {np.dtype(dtype)}")
    values = data[stream.tell() :]
    if prod(shape) * found.itemsize != len(values):
        raise _damaged(name, f"{len(values)} bytes of values", f"{prod(shape)} times {found.itemsize}")
    return np.frombuffer(values, found).reshape(shape, order="F" if transposed else "C")


def _whole(unpacked: bytes, ended: bool, rest: bytes, name: str, limit: int) -> bytes:
    if len(unpacked) >= limit and not ended:
        raise _damaged(name, f"more than {limit} bytes", f"at most {limit} unpacked bytes")
    if not ended:
        raise _damaged(name, f"an end after {len(unpacked)} unpacked bytes", "a complete stream")
    if rest:
        raise _damaged(name, f"{len(rest)} bytes after the end of the stream", "one stream only")
    return unpacked


def _damaged(name: str, got: str, expected: str) -> FileError:
    return FileError(f"unpacking '{name}'", got=got, expected=expected, hint="restore the original file")
