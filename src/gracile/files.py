"""Reading and writing files so that neither a crash nor a hostile file does harm.

Everything is written to a sibling file, flushed to disk, and renamed over the target: a reader
sees the old content or the new, never a half. Only two formats are ever read back: safetensors
for tensors and JSON or TOML (decoded straight into typed dataclasses) for the rest. Neither can
execute anything.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import safetensors
from safetensors.torch import load, load_file, save
from torch import Tensor

from gracile.errors import FileError

T = TypeVar("T")


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` atomically and durably; return the path.

    Raises:
        FileError: the folder cannot be written or the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_bytes(Path(folder) / "new" / "a.txt", b"hello").read_text()
    'hello'
    """
    path = Path(path)
    try:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte, or without a name
        raise FileError(
            f"writing '{path}'",
            got=getattr(error, "strerror", None) or str(error),
            expected="a writable folder with enough space",
            hint="what was there before is unchanged",
        ) from error
    return path


def sha256_of(path: str | Path) -> str:
    """Digest of a file's content in hexadecimal, by which files are named and damage is found."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: str | Path, value: Any) -> Path:
    """Write a dataclass (or dicts, lists, numbers, strings) as indented JSON, atomically."""
    return write_bytes(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")


def read_json(path: str | Path, type: type[T]) -> T:
    """Read a JSON file into ``type``; a wrong field is named by its path in the file.

    Raises:
        FileError: the file is missing, is not JSON, or does not fit ``type``.
    """
    return _decode(path, msgspec.json.decode, type, "JSON")


def read_toml(path: str | Path, type: type[T]) -> T:
    """Read a TOML file into ``type``. Raises as :func:`read_json` does."""
    return _decode(path, msgspec.toml.decode, type, "TOML")


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write named tensors as a safetensors file, atomically.

    Tensors that share memory are written once each: sharing is a fact of the model's class, not
    of its numbers.
    """
    ready = {name: t.detach().to("cpu").contiguous().clone() for name, t in tensors.items()}
    return write_bytes(path, save(ready))


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file into CPU tensors.

    Raises:
        FileError: the file is missing, truncated, or not safetensors.
    """
    return _tensors(path, lambda: load(_content(path)))


def map_tensors(path: str | Path) -> dict[str, Tensor]:
    """The same, but numbers come from the file when they are touched, which takes memory once, not twice.

    For files that are replaced (as all functions here do) and never written to while they are in use.

    Raises:
        FileError: as :func:`read_tensors` does.
    """
    try:
        Path(path).open("rb").close()  # safetensors says little about what cannot be opened
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return _tensors(path, lambda: load_file(path))


def _tensors(path: str | Path, read: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    try:
        return read()
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, OverflowError) as error:
        raise FileError(
            f"reading '{path}'",
            got=f"a damaged file ({error})",
            expected="safetensors",
            hint="the file may be truncated; write it again or restore a backup",
        ) from error


def _content(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL byte
        raise _unreadable(path, error) from error


def _unreadable(path: str | Path, error: OSError | ValueError) -> FileError:
    return FileError(
        f"reading '{path}'",
        got=getattr(error, "strerror", None) or str(error),
        expected="a readable file",
        hint="check the path",
    )


def _decode(path: str | Path, decode: Any, type: type[T], language: str) -> T:
    content = _content(path)
    try:
        return decode(content, type=type)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FileError(
            f"reading '{path}'",
            got=str(error),
            expected=f"{language} describing {getattr(type, '__name__', type)}",
            hint="the file may be damaged or written by another version",
        ) from error
