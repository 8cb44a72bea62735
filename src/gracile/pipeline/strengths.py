"""Who pays how much: a unit's share of the penalty follows what its removal would save."""

from __future__ import annotations

from torch import Tensor, nn

from gracile.algebra import Lasso, Term
from gracile.cost import Cost
from gracile.graph import Graph


def guided(graph: Graph, model: nn.Module, cost: Cost, strength: float, guidance: float) -> list[Term]:
    """Group Lasso on every unit, stronger where more multiply-accumulates would go.

    A unit of block b pays strength * (m_b / m)^guidance, where m_b is the number of MACs that go with
    one of its units (its share of every weight it is part of) and m the mean over all units. With equal
    strengths the many cheap neurons of a fully connected layer go first and save little time.

    Args:
        graph: of ``model``.
        model: whose weights the graph names.
        cost: of ``model`` on one example.
        strength: of the average unit.
        guidance: 0 makes all units pay the same, 1 makes them pay in proportion.
    """
    macs = {row.layer: row.macs for row in cost.rows if row.macs > 0}
    weights = dict(model.named_parameters())
    saved = [_saved(graph, block.units[0], weights, macs) for block in graph.blocks]
    total = sum(m * len(block.units) for m, block in zip(saved, graph.blocks, strict=True))
    mean = total / max(len(graph.units), 1)
    return [
        Term(
            graph.grouping([block.id]), Lasso(), strength * (m / mean) ** guidance if m and mean else strength
        )
        for block, m in zip(graph.blocks, saved, strict=True)
    ]


def _saved(graph: Graph, unit: int, weights: dict[str, Tensor], macs: dict[str, float]) -> float:
    """MACs that go with one unit, to first order."""
    total = 0.0
    for piece in graph.units[unit].slices:
        weight = weights.get(piece.tensor)
        if weight is not None and weight.dim() > 1:
            share = len(piece.indices) / weight.shape[piece.dim]
            total += share * macs.get(piece.tensor.rpartition(".")[0], 0.0)
    return total
