"""The same blocks on one terminal screen."""

from __future__ import annotations

from collections.abc import Sequence

import rich.table
from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.text import Text as Line

from gracile.report.blocks import Block, Code, Figure, KeyFigures, Section, Table
from gracile.report.quantities import printable

_MARKS = {"better": ("▲ ", "green"), "worse": ("▼ ", "red"), "same": ("", "")}


def console(title: str, sections: Sequence[Section], to: Console | None = None) -> None:
    """Print sections to a terminal; pictures become their one-line descriptions.

    Args:
        title: of the rule on top.
        sections: what to show, in order.
        to: the terminal; standard output by default.

    >>> from gracile.report import Text
    >>> console("Demo", [Section("", (Text("It works."),))], Console(width=30))
    ──────────── Demo ────────────
    It works.
    """
    to = to or Console()
    to.print(Rule(_line(title, "bold")))
    for section in sections:
        if section.title:
            to.print(_line(section.title, "bold"))
        to.print(Group(*map(_drawn, section.blocks)))


def _drawn(block: Block) -> RenderableType:
    if isinstance(block, KeyFigures):
        return _key_figures(block)
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Figure):
        return _line(block.alt, "dim")
    if isinstance(block, Code):
        return Padding(_line(block.text, "cyan"), (0, 0, 0, 2))
    return _line(block.text, "yellow" if block.warning else "")


def _key_figures(block: KeyFigures) -> RenderableType:
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right")
    for figure in block.figures:
        mark, color = _MARKS[figure.verdict]
        change = _line(f"{mark}{figure.change}" if figure.change else "", color)
        table.add_row(_line(figure.label), _line(figure.before, "dim"), _line(figure.after, "bold"), change)
    return table


def _table(block: Table) -> RenderableType:
    caption = _line(block.caption, "dim") if block.caption else None
    table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False, title=caption, title_justify="left")
    table.show_header = any(block.header)
    for heading, numeric in zip(block.header, block.numeric, strict=True):
        table.add_column(_line(heading), justify="right" if numeric else "left")
    for row in block.texts:
        table.add_row(*map(_line, row))
    return table


def _line(text: str, style: str = "") -> Line:
    return Line(printable(text), style=style)  # never parsed as markup
