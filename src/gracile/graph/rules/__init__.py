"""What every operator does to labels: one small function per kind, one file per family.

A new rule is a few lines in one of these files (or a file of its own, imported here)::

    @rule("flip")
    def flip(at, out, x, dims): ...
"""

from gracile.graph.rules import (
    attention,
    contract,
    conv,
    lookup,
    norm,
    pointwise,
    reduce,
    select,
    shape,
    spatial,
)
from gracile.graph.rules.registry import RULES, Rule, Site, rule

__all__ = [
    "RULES",
    "Rule",
    "Site",
    "attention",
    "contract",
    "conv",
    "lookup",
    "norm",
    "pointwise",
    "reduce",
    "rule",
    "select",
    "shape",
    "spatial",
]
