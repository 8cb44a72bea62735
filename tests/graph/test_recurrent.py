"""Recurrent layers watched on a single step, where the state never goes back in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gracile.graph import CutRefusedError, watch


class Read(nn.Module):
    def __init__(self, layer: nn.RNNBase, width: int) -> None:
        super().__init__()
        self.layer, self.out = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(
    ("layer", "width"),
    [
        (nn.LSTM(4, 6, 2), 6),
        (nn.GRU(4, 6, 2), 6),
        (nn.RNN(4, 6, bidirectional=True), 12),
        (nn.LSTM(4, 6, proj_size=3), 3),
    ],
    ids=["lstm", "gru", "rnn", "projected"],
)
def test_one_step_shows_the_same_units_as_many(layer: nn.RNNBase, width: int) -> None:
    model = Read(layer, width)
    one, many = (watch(model, torch.zeros(n, 2, 4)) for n in (1, 5))
    assert len(one.blocks) == len(many.blocks) > 0

    def units(graph: object) -> set[frozenset[tuple[str, int, tuple[int, ...]]]]:
        return {frozenset((s.tensor, s.dim, s.indices) for s in unit.slices) for unit in graph.units}

    assert units(one) == units(many)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_a_projection_may_not_become_as_wide_as_the_state() -> None:
    """torch's kernel tells a projected LSTM from another by the widths of its states."""
    graph = watch(Read(nn.LSTM(4, 6, proj_size=3), 3), torch.zeros(5, 2, 4))
    states = next(block.units for block in graph.blocks if len(block.units) == 6)
    graph.cut(states[:2])
    with pytest.raises(CutRefusedError, match="the same outcome as before"):
        graph.cut(states[:3])
