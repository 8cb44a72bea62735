"""Choosing units: dead ones by brute force over slices, the smallest by norms."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from gracile.errors import UsageError
from gracile.graph import Graph, watch
from gracile.reduce import dead, magnitude, random_units, remove, smallest


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3)
        self.short, self.fc = nn.Conv2d(3, 6, 5), nn.Linear(6 * 4, 5)
        self.out = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.bn(self.conv1(x)).relu()) + self.short(x)
        return self.out(self.fc(h.flatten(1)).tanh())


@pytest.fixture
def watched() -> tuple[Graph, Net]:
    torch.manual_seed(0)
    model = Net()
    return watch(model, torch.randn(2, 3, 6, 6)), model


def by_hand(graph: Graph, model: nn.Module, threshold: float) -> list[int]:
    """The definition, slice by slice."""
    tensors = dict(model.named_parameters())
    found = []
    for unit in graph.units:
        zero: dict[str, list[bool]] = {"out": [], "in": []}
        for s in unit.slices:
            if s.tensor in tensors and (s.role == "in" or tensors[s.tensor].dim() >= 2):
                part = tensors[s.tensor].index_select(s.dim, torch.tensor(s.indices))
                zero[s.role].append(bool((part.abs() <= threshold).all()))
        if any(flags and all(flags) for flags in zero.values()):
            found.append(unit.id)
    return found


def test_dead_equals_its_definition(watched: tuple[Graph, Net]) -> None:
    graph, model = watched
    assert dead(graph, model) == by_hand(graph, model, 0.0) == []
    with torch.no_grad():
        model.conv1.weight[2] = 0  # dead: its only producer
        model.conv2.weight[:, 5] = 0  # dead: its only consumer
        model.conv2.weight[1] = 0  # alive: the shortcut still makes it
        model.short.weight[3], model.conv2.weight[3] = 0, 0  # dead: both producers
        model.fc.weight[:, 16:20] = 0  # dead: channel 4 after flattening
        model.fc.weight[:, 0:3] = 0  # alive: one pixel of channel 0 is left
        model.bn.bias[2] = 3  # a constant keeps nothing alive
    found = dead(graph, model)
    assert found == by_hand(graph, model, 0.0)
    assert len(found) == 4
    with torch.no_grad():
        model.out.weight[:, 2] = 1e-5
        model.conv1.weight[0] = -1e-5
    assert dead(graph, model) == found
    assert dead(graph, model, threshold=1e-4) == by_hand(graph, model, 1e-4)
    assert len(dead(graph, model, threshold=1e-4)) == 6
    with torch.no_grad():
        model.conv1.weight[2, 0, 0, 0] = float("nan")
    assert len(dead(graph, model)) == 3
    for threshold in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="threshold"):
            dead(graph, model, threshold)


def test_magnitude_is_the_norm_over_all_slices(watched: tuple[Graph, Net]) -> None:
    graph, model = watched
    tensors = dict(model.named_parameters())
    for unit in graph.units:
        parts = [
            tensors[s.tensor].index_select(s.dim, torch.tensor(s.indices)).flatten()
            for s in unit.slices
            if s.tensor in tensors
        ]
        torch.testing.assert_close(magnitude(graph, model)[unit.id].float(), torch.cat(parts).norm())


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("choose", [smallest, partial(random_units, seed=3)])
def test_same_share_of_every_block(watched: tuple[Graph, Net], fraction: float, choose: object) -> None:
    graph, model = watched
    chosen = choose(graph, model, fraction)  # type: ignore[operator]
    assert len(chosen) == len(set(chosen))
    for block in graph.blocks:
        gone = set(block.units) & set(chosen)
        assert len(gone) == min(int(fraction * len(block.units) + 1e-9), len(block.units) - 1)
        assert len(gone) < len(block.units)
        if choose is smallest and gone:
            norms = magnitude(graph, model)
            assert norms[sorted(gone)].max() <= norms[sorted(set(block.units) - gone)].min()


def test_other_importances_and_bad_arguments(watched: tuple[Graph, Net]) -> None:
    graph, model = watched
    last = smallest(graph, model, 0.5, importance=lambda g, _: -torch.arange(len(g.units)))
    # the least important, which are the last here, come first
    assert last == [u for block in graph.blocks for u in block.units[::-1][: len(block.units) // 2]]
    for fraction in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="fraction"):
            smallest(graph, model, fraction)
    with pytest.raises(UsageError, match="one number for every unit"):
        smallest(graph, model, 0.5, importance=lambda *_: torch.zeros(3))
    assert random_units(graph, model, 0.5, seed=1) == random_units(graph, model, 0.5, seed=1)
    assert random_units(graph, model, 0.5, seed=1) != random_units(graph, model, 0.5, seed=2)


def test_of_a_block_that_is_dead_altogether_one_unit_stays(watched: tuple[Graph, Net]) -> None:
    graph, model = watched
    with torch.no_grad():
        model.conv1.weight.zero_()
        model.out.weight.zero_()
    found = dead(graph, model)
    for block in graph.blocks:
        lost = set(block.units) & set(found)
        assert len(lost) == (len(block.units) - 1 if block.name in ("conv1", "fc") else 0)
    x = torch.randn(2, 3, 6, 6)
    reduction = remove(model.eval(), x)
    assert (reduction.model.conv1.out_channels, reduction.model.fc.out_features) == (1, 1)
    torch.testing.assert_close(reduction.model(x), model(x))


@pytest.mark.parametrize("unstructured", [False, True])
def test_masks_of_torch_pruning_count(unstructured: bool) -> None:
    """Two of eight channels masked; the mask multiplies whatever lies below it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    mask = torch.ones_like(model[0].weight)
    mask[[2, 5]] = 0
    if unstructured:
        mask[0, 1] = 0
    prune.custom_from_mask(model[0], "weight", mask)
    x = torch.randn(2, 3, 8, 8)
    graph = watch(model, x)
    assert dead(graph, model) == [2, 5]
    assert magnitude(graph, model)[1] > 0
    expected = torch.cat(
        [(model[0].weight_orig * mask)[0].flatten(), model[0].bias[0:1], model[2].weight[:, 0].flatten()]
    )
    torch.testing.assert_close(magnitude(graph, model)[0].float(), expected.detach().norm())
    reduction = remove(model, x)
    assert reduction.model[0].weight_mask.shape == (6, 3, 3, 3)
    assert reduction.verdict.kind == "exact"
    torch.testing.assert_close(reduction.model(x), model(x))
    prune.remove(reduction.model[0], "weight")
    torch.testing.assert_close(reduction.model(x), model(x))
