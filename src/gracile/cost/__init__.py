"""What a network costs: counted by layer, and measured on the machine at hand.

Counting and measuring are kept apart, because they disagree: fewer multiply-accumulates are
not yet less time. What is not known is ``nan``, never 0.
"""

from gracile.cost.calibrate import Convolution, Engine, calibrate, scipy_csr, torch_csr
from gracile.cost.count import Cost, LayerCost, count, tally
from gracile.cost.crossbars import CrossbarCost, CrossbarLayer, cells, crossbars
from gracile.cost.environment import Environment, environment
from gracile.cost.forecast import FORMULA, Forecast, Way, advise, forecast
from gracile.cost.layers import layer_times
from gracile.cost.left import macs_left
from gracile.cost.links import Link, probe
from gracile.cost.macs import macs
from gracile.cost.measure import Timing, against, measure, time_on_thread
from gracile.cost.roofline import Machine, Roof, Roofline, densities, machines, prefers_groups, roofline
from gracile.cost.sparse import SparseCost, SparseLayer, sparse_macs
from gracile.cost.table import Table, tabulate
from gracile.cost.target import Program, Target
from gracile.cost.traffic import Traffic, stored_bytes, traffic

__all__ = [
    "FORMULA",
    "Convolution",
    "Cost",
    "CrossbarCost",
    "CrossbarLayer",
    "Engine",
    "Environment",
    "Forecast",
    "LayerCost",
    "Link",
    "Machine",
    "Program",
    "Roof",
    "Roofline",
    "SparseCost",
    "SparseLayer",
    "Table",
    "Target",
    "Timing",
    "Traffic",
    "Way",
    "advise",
    "against",
    "calibrate",
    "cells",
    "count",
    "crossbars",
    "densities",
    "environment",
    "forecast",
    "layer_times",
    "machines",
    "macs",
    "macs_left",
    "measure",
    "prefers_groups",
    "probe",
    "roofline",
    "scipy_csr",
    "sparse_macs",
    "stored_bytes",
    "tabulate",
    "tally",
    "time_on_thread",
    "torch_csr",
    "traffic",
]
