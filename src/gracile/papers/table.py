"""Tables of the README and the docs, made from the results and from nothing else.

The README shows what every work is judged by, ``docs/results.md`` everything that was measured.
"""

from __future__ import annotations

from pathlib import Path

from gracile.errors import FileError, UsageError
from gracile.files import write_bytes
from gracile.papers.ledger import Ledger, Line, ledger
from gracile.papers.registry import SCALES, works

BEGIN = "<!-- results: made by `gracile papers table`; do not edit -->"
JUDGED = "<!-- criteria: made by `gracile papers table`; do not edit -->"
END = "<!-- end of results -->"
_NONE = "No results yet: `gracile papers run C6`."


def markdown(results: Path) -> str:
    """One table for each work and scale that was run."""
    tables = []
    for id, work in works().items():
        for scale in SCALES:
            measured = ledger(results, id, scale)
            if measured.seeds:
                tables.append(
                    _table(f"{work.header.title} ({work.header.venue} {work.header.year})", measured)
                )
    return "\n\n".join(tables) or _NONE


def criteria(results: Path) -> str:
    """One table of what has a criterion, over all works and scales that were run."""
    rows = []
    for id in works():
        for scale in SCALES:
            measured = ledger(results, id, scale)
            seeds = len(measured.seeds)
            rows += [
                f"| {id} | `{scale}`, {seeds} | {_measured(line)} | {_published(line)} |"
                for line in measured.lines
                if line.held is not None
            ]
    heading = "| work | scale, seeds | measured | median | lowest to highest | holds | published |"
    return "\n".join([heading, "|---|---|---|---:|---:|---|---|", *rows]) if rows else _NONE


def insert(document: Path, results: Path) -> None:
    """Replace what stands between two markers of ``document``, by :func:`markdown` or :func:`criteria`.

    The first marker says by which of the two.

    Raises:
        UsageError: the markers are missing.
        FileError: the document cannot be read or written.
    """
    try:
        text = document.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(
            f"reading '{document}'",
            got=str(error),
            expected="a Markdown file in UTF-8",
            hint="check the path",
        ) from error
    begin, made = (JUDGED, criteria) if JUDGED in text else (BEGIN, markdown)
    before, found, rest = text.partition(begin)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        expected = f"{BEGIN} (or {JUDGED}) and {END}"
        raise UsageError(f"writing tables into '{document}'", got="no markers", expected=expected)
    write_bytes(document, f"{before}{begin}\n\n{made(results)}\n\n{END}{after}".encode())


def _table(title: str, measured: Ledger) -> str:
    seeds = ", ".join(map(str, measured.seeds))
    rows = [
        f"**{measured.work} · {title}**, scale `{measured.scale}`, seeds {seeds}:",
        "",
        "| measured | median | lowest to highest | criterion holds | published |",
        "|---|---:|---:|---|---|",
    ]
    return "\n".join(rows + [_row(line) for line in measured.lines])


def _row(line: Line) -> str:
    claim = line.claim
    where = f" ({claim.where})" if claim is not None and claim.value is not None else ""
    return f"| {_measured(line)} | {_published(line)}{where} |"


def _measured(line: Line) -> str:
    held = "" if line.held is None else f"{line.held[0]} of {line.held[1]}"
    spread = f"{min(line.values):.4g} to {max(line.values):.4g}"
    return f"{line.result.quantity} | {line.median:.4g} {line.result.unit} | {spread} | {held}"


def _published(line: Line) -> str:
    claim = line.claim
    if claim is None:
        return ""
    return claim.quantity if claim.value is None else f"{claim.value:g} {claim.unit}: {claim.quantity}"
