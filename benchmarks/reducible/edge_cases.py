"""Hand-written networks that do what real ones do, and what a careless graph gets wrong."""

from __future__ import annotations

from reducible import (
    edge_attention,
    edge_blocks,
    edge_conv,
    edge_kernels,
    edge_modules,
    edge_operators,
    edge_recurrent,
    edge_routing,
    edge_sizes,
)
from reducible.architecture import Architecture

ARCHITECTURES: tuple[Architecture, ...] = (
    *edge_recurrent.CASES,
    *edge_attention.CASES,
    *edge_blocks.CASES,
    *edge_conv.CASES,
    *edge_kernels.CASES,
    *edge_modules.CASES,
    *edge_routing.CASES,
    *edge_sizes.CASES,
    *edge_operators.CASES,
)
