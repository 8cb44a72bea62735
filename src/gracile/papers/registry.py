"""Works, their claims, and how to run them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, final

from gracile.errors import UsageError
from gracile.files import read_toml

Scale = Literal["tiny", "cpu"]
SCALES: tuple[Scale, ...] = ("tiny", "cpu")


@final
@dataclass(frozen=True)
class Claim:
    """A published number.

    Args:
        id: short name, unique within the work.
        quantity: what is claimed, in words.
        value: the number; ``None`` for a claim without one ("beats L1").
        unit: its unit.
        where: data set, network and conditions of the publication.
        source: where the number was read: the publication, its slides or poster, or its code.
        scope: what must be rebuilt to check it: a formula, its shape at small scale, a scaled
            version, or the full experiment.
    """

    id: str
    quantity: str
    where: str
    source: Literal["publication", "slides", "poster", "code"]
    scope: Literal["formula", "shape", "scaled", "full"]
    value: float | None = None
    unit: str = ""


@final
@dataclass(frozen=True)
class Result:
    """Our measurement of one quantity, for one seed.

    Args:
        id: short name; results with one id form a line of the ledger over seeds.
        quantity: what was measured, in words.
        value: the number.
        unit: its unit.
        claim: id of the claim it stands beside, if there is one.
        holds: whether the criterion that the card states is met; ``None`` if there is none.
    """

    id: str
    quantity: str
    value: float
    unit: str = ""
    claim: str | None = None
    holds: bool | None = None


@final
@dataclass(frozen=True)
class Header:
    """What ``claims.toml`` says of the work itself."""

    id: str
    title: str
    authors: str
    venue: str
    year: int


@final
@dataclass(frozen=True)
class Sheet:
    """All of ``claims.toml``."""

    work: Header
    claims: list[Claim]


@final
@dataclass(frozen=True)
class Work:
    """One of the works, as read from its folder."""

    header: Header
    claims: tuple[Claim, ...]
    card: str
    package: str


@cache
def works() -> dict[str, Work]:
    """All works by id, in the order of their ids.

    >>> works()["C6"].header.venue
    'NeurIPS'
    """
    found = {}
    here = Path(__file__).parent
    for sheet in sorted(here.glob("*/claims.toml")):
        read = read_toml(sheet, Sheet)
        found[read.work.id] = Work(
            read.work,
            tuple(read.claims),
            (sheet.parent / "card.md").read_text(encoding="utf-8"),
            f"{__package__}.{sheet.parent.name}",
        )
    return dict(sorted(found.items(), key=lambda item: _order(item[0])))


def work(id: str) -> Work:
    """The work called ``id``; upper and lower case are the same.

    Raises:
        UsageError: there is no such work.
    """
    found = works().get(id.upper())
    if found is None:
        raise UsageError(
            "looking up a work",
            got=f"'{id}'",
            expected=f"one of {', '.join(works())}",
            hint="gracile papers list",
        )
    return found


def run(id: str, scale: Scale, seed: int) -> list[Result]:
    """Run a work's recipe once.

    Args:
        id: the work.
        scale: ``tiny`` (bundled digits, minutes) or ``cpu`` (real data, tens of minutes).
        seed: every random choice follows from it.
    """
    recipe: Callable[[Scale, int], list[Result]] = importlib.import_module(f"{work(id).package}.recipe").run
    return recipe(scale, seed)


def _order(id: str) -> tuple[str, int]:
    letters, digits = re.fullmatch(r"([A-Z]+)(\d+)", id).groups()  # type: ignore[union-attr]
    return letters, int(digits)
