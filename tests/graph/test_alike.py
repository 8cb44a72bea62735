"""Experts that no token of the example chose go on fitting their network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from gracile.graph import watch
from gracile.reduce import apply_


def expert(width: int, inner: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))


class Routed(nn.Module):
    """The sign of the first number says which expert works."""

    def __init__(self, *experts: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.experts[int(x[0, 0] > 0)](h))


def test_an_expert_that_was_not_called_is_cut_like_the_others() -> None:
    torch.manual_seed(0)
    model = Routed(expert(8, 6), expert(8, 6)).double()
    graph = watch(model, -torch.rand(3, 4, dtype=torch.float64))
    assert [len(block.units) for block in graph.blocks] == [8, 6]
    cut = graph.cut([unit for block in graph.blocks for unit in block.units[1::2]])
    reduced, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply_(reduced, cut)
    parameters = dict(masked.named_parameters())
    for name, dims in cut.tensors.items():
        for dim, kept in dims.items():
            gone = torch.tensor(sorted(set(range(parameters[name].shape[dim])) - set(kept)))
            parameters[name].data.index_fill_(dim, gone, 0)
    assert reduced.experts[1][0].weight.shape == (3, 4)
    for x in (-torch.rand(5, 4), torch.rand(5, 4)):
        torch.testing.assert_close(reduced(x.double()), masked(x.double()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("other", [expert(8, 5), nn.Sequential(nn.Linear(8, 8)), nn.ReLU()])
def test_what_is_not_alike_is_left_alone(other: nn.Module) -> None:
    graph = watch(Routed(expert(8, 6), other), -torch.rand(3, 4))
    assert {
        s.tensor for unit in graph.units for s in unit.slices if s.tensor.startswith("experts.1")
    } == set()
