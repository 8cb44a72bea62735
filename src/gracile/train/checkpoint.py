"""A folder for each checkpoint: safetensors, JSON, and a list of their SHA-256 sums.

A checkpoint is written into a draft folder, flushed, renamed, and only then named by the file
``latest``: whoever reads sees a whole checkpoint or the one before. ``torch.distributed.checkpoint``
is not used because its metadata file is a pickle, which runs code when it is read.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

from torch import Tensor

import gracile
from gracile import files
from gracile.errors import FileError
from gracile.train.pack import pack, unpack

_NAME = re.compile(r"\d{6,}-step-\d+")
_FILE = re.compile(r"[a-z]+\.(json|safetensors)")


@final
@dataclass(frozen=True)
class Checkpoints:
    """Where checkpoints go, how often, and how many stay.

    Args:
        folder: made when missing.
        every: optimizer steps between checkpoints; 0 saves at the end of every epoch only.
        keep: how many of the newest stay.
    """

    folder: str | Path
    every: int = 0
    keep: int = 2


@dataclass(frozen=True)
class _Latest:
    name: str


@dataclass(frozen=True)
class _Manifest:
    format: Literal[1]
    gracile: str
    sha256: dict[str, str]


def save(folder: str | Path, state: Mapping[str, Any], step: int, keep: int = 2) -> Path:
    """Write ``state`` as the newest checkpoint of ``folder``; return the checkpoint's own folder.

    The tensors under each key of ``state`` become one file (``model.safetensors``, ...), the rest is
    ``state.json``. The ``keep`` newest checkpoints stay. Should anything fail, the checkpoints
    that were there remain as they were.

    Args:
        folder: of all checkpoints of one run.
        state: nested plain types and tensors by key, keys in lower-case letters.
        step: for the name only.
        keep: at least 1.

    Raises:
        FileError: the disk is full or the folder cannot be written.
        UsageError: ``state`` holds what cannot be saved.
    """
    folder = Path(folder)
    skeleton, tensors = {}, {}
    for key, value in state.items():
        skeleton[key], tensors[key] = pack(value)
    draft = folder / f".draft-{secrets.token_hex(4)}"
    try:
        name = f"{_number(folder) + 1:06d}-step-{step}"
        draft.mkdir(parents=True)
        written = [
            files.write_tensors(draft / f"{key}.safetensors", named)
            for key, named in tensors.items()
            if named
        ]
        written.append(files.write_json(draft / "state.json", skeleton))
        sums = {path.name: _sha256(path.read_bytes()) for path in written}
        files.write_json(draft / "manifest.json", _Manifest(1, gracile.__version__, sums))
        draft.rename(folder / name)
        _flush(folder)
        files.write_json(folder / "latest", _Latest(name))
        _prune(folder, keep)
    except OSError as error:
        raise FileError(
            f"saving a checkpoint in '{folder}'",
            got=error.strerror or str(error),
            expected="a folder that can be written, on a disk with room",
            hint="checkpoints saved earlier are intact",
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder / name


def exists(folder: str | Path) -> bool:
    """Whether ``folder`` names a latest checkpoint."""
    return (Path(folder) / "latest").exists()


def load(folder: str | Path) -> dict[str, Any]:
    """Read the newest checkpoint of ``folder``: what :func:`save` was given, tensors on the CPU.

    Every file's SHA-256 is checked before anything is decoded. An older checkpoint is never taken
    silently instead of a damaged one.

    Raises:
        FileError: there is no checkpoint, or a part of it is missing, damaged or of another version.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, {"progress": {"step": 7}}, step=7)
    ...     path.name, load(folder)
    ('000001-step-7', {'progress': {'step': 7}})
    """
    folder = Path(folder)
    name = files.read_json(folder / "latest", _Latest).name
    if not _NAME.fullmatch(name):
        raise _damaged(folder / "latest", f"the name {name!r}")
    path = folder / name
    manifest = files.read_json(path / "manifest.json", _Manifest)
    for file, expected in manifest.sha256.items():
        if not _FILE.fullmatch(file):
            raise _damaged(path / "manifest.json", f"a file called {file!r}")
        try:
            content = (path / file).read_bytes()
        except OSError as error:
            raise _damaged(path / file, error.strerror or str(error)) from error
        if _sha256(content) != expected:
            raise _damaged(path / file, "content that differs from what was saved")
    if "state.json" not in manifest.sha256:
        raise _damaged(path / "manifest.json", "no 'state.json'")
    skeleton = files.read_json(path / "state.json", dict[str, Any])
    return {key: unpack(part, _tensors(path, key, manifest)) for key, part in skeleton.items()}


def _tensors(path: Path, key: str, manifest: _Manifest) -> dict[str, Tensor]:
    file = f"{key}.safetensors"
    return files.read_tensors(path / file) if file in manifest.sha256 else {}


def _number(folder: Path) -> int:
    """The number of the newest checkpoint. Numbers only grow, so a folder is never written twice."""
    return max((int(path.name.split("-")[0]) for path in _finished(folder)), default=0)


def _finished(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.exists() else []


def _prune(folder: Path, keep: int) -> None:
    newest_first = sorted(_finished(folder), key=lambda path: int(path.name.split("-")[0]), reverse=True)
    drafts = [path for path in folder.iterdir() if path.name.startswith(".draft-")]  # left by a killed run
    for path in newest_first[max(1, keep) :] + drafts:
        shutil.rmtree(path, ignore_errors=True)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _damaged(path: Path, got: str) -> FileError:
    return FileError(
        f"reading '{path}'",
        got=got,
        expected="a checkpoint as gracile saved it",
        hint="an older checkpoint can be chosen by writing its folder's name into 'latest'",
    )
