"""Dense networks in ONNX Runtime: exported once, proven equal, kept as two files without pickle."""

from __future__ import annotations

import hashlib
import importlib
import math
import re
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gracile.cost import Cost, LayerCost, count
from gracile.errors import FileError, ShapeError, UsageError
from gracile.files import read_json, write_bytes, write_json
from gracile.runtime.nest import Nest
from gracile.runtime.session import any_batch, arrays, compared, different, names, start

FORMAT = "gracile ONNX program"
VERSION = 1
HEADER = "program.json"

Row = tuple[str, str, int, float | None, int, int, tuple[str, ...]]
"""A :class:`gracile.cost.LayerCost` in a file, where nan is null."""


@final
@dataclass(frozen=True)
class Header:
    """The content of ``program.json``.

    Attributes:
        model: qualified name of the class, for people to read.
        sha256: of the ONNX file beside it.
        outputs: how they are nested.
        fixed: why the first dimension of the inputs cannot change; empty if it can.
        error: largest difference to the network on the example, over the largest output.
        layers: what the network costs for the example.
    """

    format: str
    version: int
    model: str
    sha256: str
    outputs: Nest
    fixed: str
    error: float
    layers: tuple[Row, ...]


@final
@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on a CPU.

    Args:
        threads: that one call may use.
        tolerance: a program is made only if max |y - y'| <= tolerance max |y| on the example.

    >>> import importlib.util
    >>> if importlib.util.find_spec("onnxruntime"):
    ...     program = OnnxRuntime().compile(nn.Linear(3, 5).eval(), torch.zeros(2, 3))
    ...     assert program(torch.zeros(7, 3)).shape == (7, 5)
    """

    threads: int = 1
    tolerance: float = 1e-5

    def compile(self, model: nn.Module, *example: Any) -> OnnxProgram:
        """Export, prove equal, and start a session; the first dimension of the inputs stays free if it can.

        Raises:
            UsageError: the extra ``onnx`` is not installed, or no thread is allowed.
            RefusedError: the model cannot be exported, or ONNX Runtime computes something else.
        """
        taken = pytree.tree_leaves(example)
        if not taken or not all(isinstance(leaf, Tensor) and leaf.device.type == "cpu" for leaf in taken):
            raise UsageError(
                "compiling for ONNX Runtime",
                got=f"the example {' '.join(map(_described, taken))}",
                expected="tensors on the CPU, and nothing else",
            )
        content, fixed = any_batch(model, example, self.tolerance)
        session = start(content, self.threads)
        want, error = compared(model, session, example)
        if not error <= self.tolerance:
            raise different(error, self.tolerance)
        header = Header(
            FORMAT,
            VERSION,
            f"{type(model).__module__}.{type(model).__qualname__}",
            hashlib.sha256(content).hexdigest(),
            Nest.of(want),
            fixed,
            error,
            tuple(_row(layer) for layer in count(model, *example).rows),
        )
        return OnnxProgram(session, header, content, self.threads)

    def load(self, folder: str | Path) -> OnnxProgram:
        """The program that :meth:`OnnxProgram.save` wrote, for this number of threads.

        Raises:
            FileError: a file is missing, damaged, or not what it claims to be.
            UsageError: ONNX Runtime is not installed.
        """
        path = Path(folder) / HEADER
        header = read_json(path, Header)
        if (header.format, header.version) != (FORMAT, VERSION):
            raise _wrong(path, f"{header.format[:80]!r}, version {header.version}", f"{FORMAT!r}, {VERSION}")
        if not re.fullmatch(r"[0-9a-f]{64}", header.sha256):
            raise _wrong(path, "a malformed digest", "SHA-256 in hexadecimal")
        file = _file(Path(folder), header.sha256)
        try:
            content = file.read_bytes()
        except OSError as error:
            raise _wrong(file, error.strerror or str(error), "a readable file") from error
        if hashlib.sha256(content).hexdigest() != header.sha256:
            raise _wrong(file, "other content than was written", f"SHA-256 {header.sha256}")
        session = start(content, self.threads)
        if header.outputs.size != len(session.get_outputs()):
            raise _wrong(
                path, f"{header.outputs.size} outputs", f"{len(session.get_outputs())}, as in {file.name}"
            )
        return OnnxProgram(session, header, content, self.threads)


@final
class OnnxProgram:
    """A network that ONNX Runtime runs; made by :class:`OnnxRuntime`.

    Inputs are read where they lie, if they are contiguous, and outputs are not copied.
    """

    def __init__(self, session: Any, header: Header, content: bytes, threads: int) -> None:
        self._session, self._header, self._content, self._threads = session, header, content, threads
        self._names = names(session)

    def __call__(self, *inputs: Any) -> Any:
        """Run; outputs are nested as the network's are.

        Raises:
            ShapeError: the inputs are not of the shapes and types that the network was compiled for.
        """
        given = inputs if all(isinstance(x, Tensor) for x in inputs) else pytree.tree_leaves(inputs)
        try:
            found = self._session.run(None, arrays(self._names, given))
        except Exception as error:  # ONNX Runtime has a class of its own for every kind of mistake
            raise ShapeError(
                f"running {self._header.model} in ONNX Runtime",
                got=f"{' '.join(map(_described, given))} ({' '.join(str(error).split())[:300]})",
                expected=" ".join(f"{i.name}: {i.type} {i.shape}" for i in self._session.get_inputs()),
                hint=f"the batch is fixed: {self._header.fixed}" if self._header.fixed else "",
            ) from error
        return self._header.outputs.fill(map(torch.as_tensor, found))

    def cost(self) -> Cost:
        """What the network costs for the example that it was compiled with."""
        rows = (
            LayerCost(layer, kind, parameters, math.nan if macs is None else macs, stored, written, unmodeled)
            for layer, kind, parameters, macs, stored, written, unmodeled in self._header.layers
        )
        return Cost(tuple(rows))

    def report(self) -> dict[str, str]:
        """Where it runs, and how exact it is."""
        return {
            "network": self._header.model,
            "runs in": f"ONNX Runtime {importlib.import_module('onnxruntime').__version__}, CPU",
            "threads": str(self._threads),
            "batch": f"fixed: {self._header.fixed}" if self._header.fixed else "any",
            "relative error": f"{self._header.error:.1e}",
            "bytes": str(len(self._content)),
        }

    def save(self, folder: str | Path) -> Path:
        """Write an ONNX file and a JSON file that names it; return the path of the latter.

        Raises:
            FileError: the folder cannot be written; an older version in it is still whole.
        """
        folder = Path(folder)
        # Named by its content, so that writing the header is the one step that makes it valid.
        kept = write_bytes(_file(folder, self._header.sha256), self._content)
        path = write_json(folder / HEADER, self._header)
        for old in folder.glob("network-*.onnx"):
            if old != kept and re.fullmatch(r"network-[0-9a-f]{16}", old.stem):
                old.unlink()
        return path


def _row(layer: LayerCost) -> Row:
    name, kind, parameters, macs, *others = astuple(layer)
    return (name, kind, parameters, None if math.isnan(macs) else macs, *others)


def _described(x: object) -> str:
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else f"{x!r:.40}"


def _file(folder: Path, sha256: str) -> Path:
    return folder / f"network-{sha256[:16]}.onnx"


def _wrong(path: Path, got: str, expected: str) -> FileError:
    return FileError(f"reading '{path}'", got=got, expected=expected, hint="the file may be damaged")
