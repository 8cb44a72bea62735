"""A progress bar on standard error; silent where that is not a terminal."""

from __future__ import annotations

from types import TracebackType
from typing import final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@final
class Bar:
    """Shows steps done, time left, and a note.

    Args:
        total: steps of the run.
        done: steps done before.
        shown: False for silence on a terminal too.

    >>> with Bar(total=3) as bar:
    ...     bar.advance(); bar.note("loss 0.5")
    """

    def __init__(self, total: int, done: int = 0, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
            disable=not (shown and console.is_terminal),
        )
        self._task = self._progress.add_task("", total=total, completed=done, note="")

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self) -> None:
        """One step is done."""
        self._progress.advance(self._task)

    def note(self, text: str) -> None:
        """Show ``text`` behind the bar."""
        self._progress.update(self._task, note=text)
