"""What a network costs: counted by layer, and measured on the machine at hand.

Counting and measuring are kept apart, because they disagree: fewer multiply-accumulates are
not yet less time. What is not known is ``nan``, never 0.
"""

from gracile.cost.count import Cost, LayerCost, count, tally
from gracile.cost.environment import Environment, environment
from gracile.cost.layers import layer_times
from gracile.cost.left import macs_left
from gracile.cost.macs import macs
from gracile.cost.measure import Timing, measure, time_on_thread
from gracile.cost.table import Table, tabulate

__all__ = [
    "Cost",
    "Environment",
    "LayerCost",
    "Table",
    "Timing",
    "count",
    "environment",
    "layer_times",
    "macs",
    "macs_left",
    "measure",
    "tabulate",
    "tally",
    "time_on_thread",
]
