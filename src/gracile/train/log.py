"""Where a run's numbers go while it works: a file of JSON lines, TensorBoard, or your own logger."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, final

from gracile import files
from gracile.errors import FileError, UsageError


class Logger(Protocol):
    """Receives rows of numbers; called on rank 0 only."""

    def start(self, step: int) -> None:
        """Open; forget every row later than ``step``, which the resumed run will write again."""

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Take one row: ``kind`` is 'step', 'epoch' or 'test'."""

    def close(self) -> None:
        """Flush and close."""


@final
class JsonLines:
    """One JSON object for each row, appended and flushed at once; null for what is not finite.

    A killed run may leave rows that are later than its last checkpoint, or half a row; ``start``
    drops them, so that a resumed run's file equals that of an uninterrupted one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = JsonLines(Path(folder) / "log.jsonl")
    ...     log.start(0); log.write("step", 1, {"loss": 0.5}); log.close()
    ...     print(log.path.read_text(), end="")
    {"kind": "step", "step": 1, "loss": 0.5}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stream: Any = None

    def start(self, step: int) -> None:
        try:
            kept = [line for line in self._lines() if _belongs(line, step)]
            files.write_bytes(self.path, "".join(f"{line}\n" for line in kept).encode())
            self._stream = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise FileError(
                f"opening the log '{self.path}'",
                got=error.strerror or str(error),
                expected="a file that can be written",
            ) from error

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._stream.write(json.dumps({"kind": kind, "step": step, **finite}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _lines(self) -> list[str]:
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8", errors="replace").splitlines()


@final
class TensorBoard:
    """Scalars for TensorBoard, named ``kind/value``; needs the extra ``tensorboard``.

    Args:
        folder: where the event files go.

    Raises:
        UsageError: TensorBoard is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ModuleNotFoundError as error:
            raise UsageError(
                "logging to TensorBoard",
                got="no package 'tensorboard'",
                expected="it to be installed",
                hint="pip install 'gracile[tensorboard]'",
            ) from error
        self._open = SummaryWriter
        self._folder = str(folder)
        self._writer: Any = None

    def start(self, step: int) -> None:
        self._writer = self._open(self._folder, purge_step=step + 1 if step else None)

    def write(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _belongs(line: str, step: int) -> bool:
    """Whether a row is whole and not later than ``step``; the test row always comes again."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    if not isinstance(row, dict) or row.get("kind") == "test":
        return False
    return isinstance(row.get("step"), int) and row["step"] <= step
