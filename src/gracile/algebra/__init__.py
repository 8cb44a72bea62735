"""Tensors only: which numbers share one fate, and what having them costs.

A :class:`Grouping` says which numbers live and die together, a :class:`Penalty` puts a price on
the groups, and a :class:`Term` joins the two with a strength. Nothing here knows a module.
"""

from gracile.algebra.crossbars import CROSSBAR, crossbar_columns, crossbar_rows, largest_divisor
from gracile.algebra.discrepancy import coral, mean_entropy, mmd, reverse_gradient
from gracile.algebra.force import Attraction, add_force_, mean_cosine
from gracile.algebra.format import Codes, Format, OneLevel, Ternary, Uniform
from gracile.algebra.grouping import Grouping, Groups, View
from gracile.algebra.lowrank import (
    Factoring,
    clip_rank_,
    factor,
    live_rank,
    rank_within,
    spectrum,
    truncate_rank_,
)
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
from gracile.algebra.noise import Noise, add_noise_
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
from gracile.algebra.philox import Random, philox
from gracile.algebra.samples import mean_loss_of
from gracile.algebra.stochastic import Stochastic, stochastic
from gracile.algebra.surgery import GradientThreshold, Hysteresis, Rule, Threshold, prune_
from gracile.algebra.terms import Term, add_gradient_, loss_of, proximal_, threshold_
from gracile.algebra.winners import keep_winners, winner_threshold

__all__ = [
    "CROSSBAR",
    "L1",
    "Attraction",
    "Codes",
    "Factoring",
    "Format",
    "GradientThreshold",
    "GroupHoyer",
    "Grouping",
    "Groups",
    "HoyerSquare",
    "Hysteresis",
    "Lasso",
    "Layout",
    "Noise",
    "NormPenalty",
    "OneLevel",
    "Penalty",
    "Proximal",
    "Random",
    "Ridge",
    "Rule",
    "Stochastic",
    "Term",
    "Ternary",
    "Threshold",
    "Trimmed",
    "Uniform",
    "View",
    "add_force_",
    "add_gradient_",
    "add_noise_",
    "blocks",
    "channels",
    "clip_rank_",
    "columns",
    "coral",
    "crossbar_columns",
    "crossbar_rows",
    "elements",
    "factor",
    "filters",
    "keep_winners",
    "kernels",
    "largest_divisor",
    "layer",
    "layout",
    "live_rank",
    "loss_of",
    "mean_cosine",
    "mean_entropy",
    "mean_loss_of",
    "mmd",
    "philox",
    "proximal_",
    "prune_",
    "rank_within",
    "reverse_gradient",
    "rows",
    "shapes",
    "spectrum",
    "stochastic",
    "threshold_",
    "truncate_rank_",
    "winner_threshold",
]
