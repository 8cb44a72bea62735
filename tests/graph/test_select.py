"""One index of a dimension is taken: only what gives it its number stays."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from gracile.graph import watch
from gracile.reduce import random_units, remove


class Picks(nn.Module):
    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        return self.b(h * h.select(-1, self.index).unsqueeze(-1))


@pytest.mark.parametrize(("index", "free"), [(0, 7), (2, 5), (7, 0), (-1, 7), (-3, 5), (-8, 0)])
def test_only_what_numbers_the_index_stays(index: int, free: int) -> None:
    torch.manual_seed(0)
    model = Picks(index).double()
    assert len(watch(model, torch.randn(4, 3).double()).units) == free
    if free > 1:
        reduction = remove(model, torch.randn(4, 3).double(), units=partial(random_units, fraction=0.5))
        assert reduction.model.a.out_features == 8 - free // 2
        assert reduction.verdict.kind == "exact"
        assert reduction.verdict.error < 1e-12
