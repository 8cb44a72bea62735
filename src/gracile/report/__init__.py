"""Results that a person reads at once: blocks, pictures, one HTML page, one terminal screen.

A report is a list of :class:`Section` of blocks. :func:`page` writes them as one file that needs
nothing else, :func:`console` prints them; whatever a name contains, it is shown as text.
"""

from gracile.report.blocks import (
    Block,
    Code,
    Figure,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    facts,
)
from gracile.report.console import console
from gracile.report.page import page, render
from gracile.report.plots import grouped_bars, latency_bars, scaling, training_curve, widths
from gracile.report.quantities import factor, number, percent, si

__all__ = [
    "Block",
    "Code",
    "Figure",
    "KeyFigure",
    "KeyFigures",
    "Section",
    "Table",
    "Text",
    "console",
    "factor",
    "facts",
    "grouped_bars",
    "latency_bars",
    "number",
    "page",
    "percent",
    "render",
    "scaling",
    "si",
    "training_curve",
    "widths",
]
