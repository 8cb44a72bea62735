"""What every operator does to labels: one small function per kind, one file per family.

A new rule is a few lines in one of these files, or in a file of its own that is imported here::

    @rule("flip")
    def flip(at: Site, out: Tensor, x: Tensor, dims: Sequence[int]) -> Axes: ...
"""

from gracile.graph.rules import (  # noqa: F401 (importing a family registers its rules)
    attention,
    contract,
    conv,
    lookup,
    norm,
    pointwise,
    recurrent,
    reduce,
    select,
    shape,
    spatial,
)
from gracile.graph.rules.registry import RULES, Rule, Site, rule

__all__ = ["RULES", "Rule", "Site", "rule"]
