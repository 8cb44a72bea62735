"""The ledger: results as append-only JSON files, and claims beside measurements.

One file for each run of a recipe; a file is never changed after it was written.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import final

from gracile.cost import Environment, environment
from gracile.errors import UsageError
from gracile.files import read_json, write_json
from gracile.papers.registry import Claim, Result, Scale, work


@final
@dataclass(frozen=True)
class Record:
    """One run of one recipe with one seed."""

    work: str
    scale: Scale
    seed: int
    command: str
    finished: str  # UTC, ISO 8601
    seconds: float
    environment: Environment
    results: list[Result]


@final
@dataclass(frozen=True)
class Line:
    """A quantity over all seeds of its newest runs, beside the claim."""

    result: Result  # of the first seed: its words and unit
    values: tuple[float, ...]
    held: tuple[int, int] | None  # seeds for which the criterion holds, of how many
    claim: Claim | None

    @property
    def median(self) -> float:
        """Median over seeds."""
        return statistics.median(self.values)


@final
@dataclass(frozen=True)
class Ledger:
    """All lines of one work at one scale."""

    work: str
    scale: Scale
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]
    records: tuple[Record, ...]


def record(
    folder: Path, id: str, scale: Scale, seed: int, results: list[Result], seconds: float, command: str
) -> Path:
    """Write the results of one run as a new file below ``folder``; return its path.

    Raises:
        UsageError: a result is not a finite number.
    """
    for result in results:
        if not math.isfinite(result.value):
            raise UsageError(
                f"recording results of {id}",
                got=f"{result.value} for '{result.quantity}'",
                expected="a finite number",
                hint="a recipe leaves out what it could not measure",
            )
    now = datetime.now(UTC)
    name = f"{scale}-seed{seed}-{now:%Y%m%dT%H%M%S%f}.json"
    entry = Record(
        work(id).header.id,
        scale,
        seed,
        command,
        now.isoformat(timespec="seconds"),
        seconds,
        environment(),
        results,
    )
    return write_json(folder / entry.work / name, entry)


def ledger(folder: Path, id: str, scale: Scale) -> Ledger:
    """Claims beside the newest record of every seed.

    Raises:
        FileError: a record is damaged.
    """
    header = work(id).header
    newest: dict[int, Record] = {}
    for path in sorted((folder / header.id).glob(f"{scale}-seed*.json")):
        entry = read_json(path, Record)
        if entry.seed not in newest or entry.finished >= newest[entry.seed].finished:
            newest[entry.seed] = entry
    records = tuple(newest[seed] for seed in sorted(newest))
    return Ledger(header.id, scale, tuple(sorted(newest)), tuple(_lines(id, records)), records)


def _lines(id: str, records: Iterable[Record]) -> Iterable[Line]:
    claims = {claim.id: claim for claim in work(id).claims}
    by_quantity: dict[str, list[Result]] = {}
    for entry in records:
        for result in entry.results:
            by_quantity.setdefault(result.id, []).append(result)
    for results in by_quantity.values():
        judged = [r.holds for r in results if r.holds is not None]
        yield Line(
            results[0],
            tuple(r.value for r in results),
            (sum(judged), len(judged)) if judged else None,
            claims.get(results[0].claim or ""),
        )
