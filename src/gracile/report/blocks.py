"""What a report consists of: a handful of blocks that a page and a terminal both know how to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

from gracile.errors import ShapeError
from gracile.report.quantities import number
from gracile.report.svg import checked

Cell = str | int | float


@final
@dataclass(frozen=True)
class KeyFigure:
    """One number that matters, before and after.

    Attributes:
        label: what it is.
        before, after: formatted values; ``before`` may be empty.
        change: formatted difference or ratio, e.g. ``"3.2x fewer"``.
        verdict: whether the change is good; shown by a sign as well as by color.
    """

    label: str
    before: str
    after: str
    change: str = ""
    verdict: Literal["better", "worse", "same"] = "same"


@final
@dataclass(frozen=True)
class KeyFigures:
    """A row of tiles that answers the reader's first question."""

    figures: tuple[KeyFigure, ...]
    kind: ClassVar[str] = "key figures"


@final
@dataclass(frozen=True)
class Table:
    """Rows of strings and numbers; columns of numbers are aligned to the right.

    Raises:
        ShapeError: a row is longer or shorter than the header.

    >>> Table(("layer", "width"), (("conv1", 20), ("conv2", 50))).numeric
    (False, True)
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise ShapeError(
                    f"table '{self.caption or ', '.join(self.header)}'",
                    got=f"a row of {len(row)} cells, {row}",
                    expected=f"{len(self.header)} cells",
                )

    @property
    def numeric(self) -> tuple[bool, ...]:
        """For each column, whether all its cells are numbers or begin like numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else ((),) * len(self.header)
        return tuple(bool(column) and all(map(_is_number, column)) for column in columns)

    @property
    def texts(self) -> tuple[tuple[str, ...], ...]:
        """The rows with every number formatted."""
        return tuple(
            tuple(cell if isinstance(cell, str) else number(cell) for cell in row) for row in self.rows
        )


@final
@dataclass(frozen=True)
class Figure:
    """A picture as SVG, made by :mod:`gracile.report.plots`.

    Attributes:
        svg: one ``<svg>`` element without scripts and references to other files.
        alt: what it shows, for readers who cannot see it and for terminals.
        caption: printed below.

    Raises:
        UsageError: the SVG is malformed or could load or run something.
    """

    svg: str
    alt: str
    caption: str = ""
    kind: ClassVar[str] = "figure"

    def __post_init__(self) -> None:
        checked(self.svg)


@final
@dataclass(frozen=True)
class Code:
    """Text to be shown letter for letter: a command, a configuration."""

    text: str
    caption: str = ""
    kind: ClassVar[str] = "code"


@final
@dataclass(frozen=True)
class Text:
    """One paragraph; a ``warning`` is set apart."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "text"


Block = KeyFigures | Table | Figure | Code | Text


@final
@dataclass(frozen=True)
class Section:
    """Blocks under one heading."""

    title: str
    blocks: tuple[Block, ...]


def facts(record: Any, caption: str = "") -> Table:
    """Show a dataclass instance as a table of its fields.

    >>> facts(KeyFigure("size", "2", "1")).rows[0]
    ('label', 'size')
    """
    return Table(
        ("", ""),
        tuple((field.name.replace("_", " "), _text(getattr(record, field.name))) for field in fields(record)),
        caption,
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_text, value)) or "none"
    return str(value) if value != "" else "none"


def _is_number(cell: Cell) -> bool:
    if not isinstance(cell, str):
        return True
    start = cell.lstrip("+-−±×~≈<>≤≥ ")
    return start[:1].isdigit() or cell in {"", "–", "unknown"}
