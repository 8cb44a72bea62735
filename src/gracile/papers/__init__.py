"""The works that gracile implements: each published claim, and our measurement beside it.

One folder for each work: ``claims.toml`` (what was published, where, how sure the source is),
``recipe.py`` (``run(scale, seed)`` composes public names only and returns results), ``card.md``
(what it is, when to use it, what it costs, what differs). Adding a work is adding a folder.
"""

from gracile.papers.ledger import Ledger, Line, Record, ledger, record
from gracile.papers.registry import SCALES, Claim, Result, Scale, Work, run, work, works
from gracile.papers.table import criteria, insert, markdown

__all__ = [
    "SCALES",
    "Claim",
    "Ledger",
    "Line",
    "Record",
    "Result",
    "Scale",
    "Work",
    "criteria",
    "insert",
    "ledger",
    "markdown",
    "record",
    "run",
    "work",
    "works",
]
