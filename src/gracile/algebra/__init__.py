"""Tensors only: which numbers share one fate, and what having them costs.

A :class:`Grouping` says which numbers live and die together, a :class:`Penalty` puts a price on
the groups, and a :class:`Term` joins the two with a strength. Nothing here knows a module.
"""

from gracile.algebra.grouping import Grouping, Groups, View
from gracile.algebra.named import (
    blocks,
    channels,
    columns,
    elements,
    filters,
    kernels,
    layer,
    rows,
    shapes,
)
from gracile.algebra.patterns import Layout, layout
from gracile.algebra.penalty import (
    L1,
    GroupHoyer,
    HoyerSquare,
    Lasso,
    NormPenalty,
    Penalty,
    Proximal,
    Ridge,
    Trimmed,
)
from gracile.algebra.terms import Term, add_gradient_, loss_of, proximal_, threshold_

__all__ = [
    "L1",
    "GroupHoyer",
    "Grouping",
    "Groups",
    "HoyerSquare",
    "Lasso",
    "Layout",
    "NormPenalty",
    "Penalty",
    "Proximal",
    "Ridge",
    "Term",
    "Trimmed",
    "View",
    "add_gradient_",
    "blocks",
    "channels",
    "columns",
    "elements",
    "filters",
    "kernels",
    "layer",
    "layout",
    "loss_of",
    "proximal_",
    "rows",
    "shapes",
    "threshold_",
]
