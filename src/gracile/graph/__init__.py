"""What a network is made of: watch one forward pass, and know which slices live and die together.

`watch` runs the model once under a dispatch mode and carries a label for every index of every dimension of
every tensor. Each operator has a small rule (`gracile.graph.rules`) for what happens to labels; an operator
without one pins what it touches. What stays free are the units, which `Graph.cut` turns into plain data.
"""

from gracile.graph.bypass import Detour, droppable
from gracile.graph.cut import Cut, CutRefusedError, Dropped
from gracile.graph.labels import Axis, Labels
from gracile.graph.network import Graph, Outputs, everything
from gracile.graph.records import Axes, Block, Call, Operand, Pin, Reason, Slice, Step, Unit
from gracile.graph.watch import watch

__all__ = [
    "Axes",
    "Axis",
    "Block",
    "Call",
    "Cut",
    "CutRefusedError",
    "Detour",
    "Dropped",
    "Graph",
    "Labels",
    "Operand",
    "Outputs",
    "Pin",
    "Reason",
    "Slice",
    "Step",
    "Unit",
    "droppable",
    "everything",
    "watch",
]
