"""What a network costs: counted by layer, and measured on the machine at hand.

Counting and measuring are kept apart, because they disagree: fewer multiply-accumulates are
not yet less time. What is not known is ``nan``, never 0.
"""

from gracile.cost.count import Cost, LayerCost, count, tally
from gracile.cost.environment import Environment, environment
from gracile.cost.left import macs_left
from gracile.cost.macs import macs
from gracile.cost.measure import Timing, measure

__all__ = [
    "Cost",
    "Environment",
    "LayerCost",
    "Timing",
    "count",
    "environment",
    "macs",
    "macs_left",
    "measure",
    "tally",
]
