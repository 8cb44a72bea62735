"""Tables of the README, made from the results and from nothing else."""

from __future__ import annotations

from pathlib import Path

from gracile.errors import FileError, UsageError
from gracile.files import write_bytes
from gracile.papers.ledger import Ledger, Line, ledger
from gracile.papers.registry import SCALES, works

BEGIN = "<!-- results: made by `gracile papers table`; do not edit -->"
END = "<!-- end of results -->"


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
    return "\n\n".join(tables) or "No results yet: `gracile papers run C6`."


def insert(document: Path, results: Path) -> None:
    """Replace what stands between the two markers of ``document`` by :func:`markdown`.

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
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not found or not ended:
        raise UsageError(f"writing tables into '{document}'", got="no markers", expected=f"{BEGIN} and {END}")
    write_bytes(document, f"{before}{BEGIN}\n\n{markdown(results)}\n\n{END}{after}".encode())


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
    published = "" if claim is None else claim.quantity
    if claim is not None and claim.value is not None:
        published = f"{claim.value:g} {claim.unit} ({claim.quantity}; {claim.where})"
    held = "" if line.held is None else f"{line.held[0]} of {line.held[1]}"
    spread = f"{min(line.values):.4g} to {max(line.values):.4g}"
    return (
        f"| {line.result.quantity} | {line.median:.4g} {line.result.unit} | {spread} | {held} | {published} |"
    )
