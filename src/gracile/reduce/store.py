"""A reduced model as two files: what was cut (JSON) and the numbers that are left (safetensors).

``structure.json`` replays the cuts on a freshly built object of the original class; nothing in it is ever
imported or executed. The weights lie beside it in ``weights-<digest>.safetensors``, named by their content:
writing the structure is the single step that makes a new version valid, so a crash while saving over an
older version loses neither.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gracile.errors import FileError, GracileError, UsageError
from gracile.files import read_json, read_tensors, sha256_of, write_json, write_tensors
from gracile.graph.cut import Cut
from gracile.reduce.apply import apply_, named_tensors, owner_of, plain_of, refresh_
from gracile.reduce.attention import Attention, make_attention_explicit_
from gracile.reduce.copies import duplicate
from gracile.reduce.factorize import split_

FORMAT = "gracile reduced model"
VERSION = 1
STRUCTURE = "structure.json"


@dataclass(frozen=True)
class Entry:
    """Shape and dtype (``"float32"``) of one tensor."""

    shape: list[int]
    dtype: str


@dataclass(frozen=True)
class Factored:
    """Layers that became two of low rank, after so many of the cuts."""

    after: int
    ranks: dict[str, int]


@dataclass(frozen=True)
class Structure:
    """The content of ``structure.json``.

    ``model`` is the qualified name of the class, for people to read; ``attention`` lists where
    ``nn.MultiheadAttention`` was made explicit, dropped later or not; ``cuts`` are replayed in order, and
    ``factored`` between them.
    """

    format: str
    version: int
    model: str
    attention: list[str]
    cuts: list[Cut]
    tensors: dict[str, Entry]
    sha256: str
    factored: list[Factored] = field(default_factory=list)

    @staticmethod
    def of(
        model: nn.Module, steps: tuple[Cut | Mapping[str, int], ...], tensors: dict[str, Tensor], digest: str
    ) -> Structure:
        cuts = [step for step in steps if isinstance(step, Cut)]
        before = [sum(isinstance(step, Cut) for step in steps[:n]) for n in range(len(steps))]
        return Structure(
            format=FORMAT,
            version=VERSION,
            model=f"{type(model).__module__}.{type(model).__qualname__}",
            attention=[
                *(n for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, Attention)),
                *(name for cut in cuts for dropped in cut.dropped.values() for name in dropped.attention),
            ],
            cuts=cuts,
            tensors={name: _entry(tensor) for name, tensor in tensors.items()},
            sha256=digest,
            factored=[
                Factored(after, dict(step))
                for after, step in zip(before, steps, strict=True)
                if not isinstance(step, Cut)
            ],
        )

    def steps(self) -> Iterator[Cut | dict[str, int]]:
        """Cuts and ranks in the order in which they were made."""
        for number, cut in enumerate([None, *self.cuts]):
            if cut is not None:
                yield cut
            yield from (factored.ranks for factored in self.factored if factored.after == number)


def save(folder: str | Path, model: nn.Module, *cuts: Cut | Mapping[str, int]) -> Path:
    """Write a reduced model to ``folder``; return the path of its structure file.

    Args:
        folder: made if it is missing; an older version in it is replaced atomically.
        model: the model after all ``cuts``.
        cuts: everything that was done since the model was built, the first one first: cuts, and the ranks
            that were given to :func:`gracile.reduce.factorize`.

    Raises:
        UsageError: the model keeps state that is no tensor (``get_extra_state``), or a tensor of a dtype that
            safetensors cannot hold.

    >>> import tempfile, torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> cut = Cut({"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}, "1.weight": {1: [0, 2]}})
    >>> apply_(model, cut)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(folder, model, cut)
    ...     again = load(folder, nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    >>> torch.equal(again[0].weight, model[0].weight)
    True
    """
    folder = Path(folder)
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise UsageError(
                f"saving to '{folder}'", got=f"extra state in module {name!r}", expected="tensors only"
            )
    tensors = dict(named_tensors(model, once=True)) | plain_of(
        model, [cut for cut in cuts if isinstance(cut, Cut)]
    )
    try:
        draft = write_tensors(folder / "weights.safetensors", tensors)
    except (KeyError, ValueError) as error:
        raise UsageError(
            f"saving to '{folder}'",
            got=f"a tensor that safetensors cannot hold ({error})",
            expected="plain tensors",
        ) from error
    digest = sha256_of(draft)
    draft.replace(_weights(folder, digest))
    path = write_json(folder / STRUCTURE, Structure.of(model, cuts, tensors, digest))
    for old in folder.glob("weights-*.safetensors"):
        if old != _weights(folder, digest) and re.fullmatch(r"weights-[0-9a-f]{16}", old.stem):
            old.unlink()
    return path


def load(folder: str | Path, fresh: nn.Module) -> nn.Module:
    """The reduced model in ``folder``, bit for bit, built from a fresh object of the original class.

    Args:
        folder: where :func:`save` wrote.
        fresh: an object of the class that was reduced, built with the same arguments; it is copied, not
            changed. The result lies on its device.

    Raises:
        FileError: a file is missing, damaged, truncated, hostile, or made for another model.
    """
    folder = Path(folder)
    path = folder / STRUCTURE
    structure = read_json(path, Structure)
    if structure.format != FORMAT or structure.version != VERSION:
        raise _wrong(
            path, f"format {structure.format[:80]!r}, version {structure.version}", f"{FORMAT!r}, {VERSION}"
        )
    if not re.fullmatch(r"[0-9a-f]{64}", structure.sha256):
        raise _wrong(path, "a malformed digest", "SHA-256 in hexadecimal")
    weights = _weights(folder, structure.sha256)
    tensors = read_tensors(weights)
    if sha256_of(weights) != structure.sha256:
        raise _wrong(weights, "other content than was written", f"SHA-256 {structure.sha256}")
    _compare(weights, tensors, structure)
    if any(not 0 <= factored.after <= len(structure.cuts) for factored in structure.factored):
        raise _wrong(path, "layers factored after cuts that are not there", f"0 to {len(structure.cuts)}")
    model = duplicate(fresh)
    try:
        make_attention_explicit_(model, structure.attention)
        for step in structure.steps():
            if isinstance(step, Cut):
                _own_attributes(model, fresh, step)
                apply_(model, step)
            else:
                split_(model, step)
    except GracileError as error:
        raise FileError(
            f"reading '{path}'",
            got=f"what does not fit the model ({error})",
            expected="a record of this model",
        ) from error
    own = dict(named_tensors(model, once=True)) | plain_of(model, structure.cuts)
    if own.keys() != tensors.keys():
        differ = sorted(own.keys() ^ tensors.keys())
        raise _wrong(path, f"tensors that only one side has: {', '.join(differ[:4])}", "the same names")
    for name, tensor in tensors.items():
        alike = own[name].dtype == tensor.dtype or (
            own[name].is_floating_point() and tensor.is_floating_point()
        )
        if own[name].shape != tensor.shape or not alike:
            raise _wrong(
                path,
                f"{name!r} of shape {tuple(tensor.shape)} and {tensor.dtype}",
                f"shape {tuple(own[name].shape)}, {own[name].dtype} as in the model",
            )
    for name, tensor in tensors.items():
        own[name].data = torch.empty_like(own[name], dtype=tensor.dtype).copy_(tensor)
    refresh_(model)
    return model


def _own_attributes(model: nn.Module, fresh: nn.Module, cut: Cut) -> None:
    """Refuse to change what the copy shares with the rest of the program, such as a logger."""
    for path in cut.attributes:
        try:
            original = owner_of(fresh, path)[0]
        except UsageError:
            continue  # of a module that was swapped in; it is the copy's own
        if owner_of(model, path)[0] is original:
            raise UsageError(
                "applying a cut", got=f"attribute {path[:200]!r}", expected="one that is the model's own"
            )


def _compare(path: Path, tensors: dict[str, Tensor], structure: Structure) -> None:
    found = {name: _entry(tensor) for name, tensor in tensors.items()}
    if found != structure.tensors:
        differ = sorted(
            n for n in found.keys() | structure.tensors.keys() if found.get(n) != structure.tensors.get(n)
        )
        raise _wrong(
            path, f"other names, shapes or dtypes at {', '.join(differ[:4])}", "those of the structure file"
        )


def _entry(tensor: Tensor) -> Entry:
    return Entry(list(tensor.shape), str(tensor.dtype).removeprefix("torch."))


def _weights(folder: Path, digest: str) -> Path:
    return folder / f"weights-{digest[:16]}.safetensors"


def _wrong(path: Path, got: str, expected: str) -> FileError:
    return FileError(
        f"reading '{path}'",
        got=got,
        expected=expected,
        hint="the file may be damaged, or the model built with other arguments than the one saved",
    )
