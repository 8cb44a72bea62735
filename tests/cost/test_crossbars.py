"""Areas that C18 publishes, and wires against a brute-force count."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gracile.cost import cells, crossbars
from gracile.errors import UsageError
from gracile.reduce import factorize
from gracile.zoo import LeNet

# Matrices of C18's networks (inputs, outputs), and ranks that give the areas of its abstract.
NETWORKS = {
    "LeNet": ([(25, 20, 5), (500, 50, 12), (800, 500, 36), (500, 10, None)], 430_500, 13.62),
    "ConvNet": ([(75, 32, 12), (800, 32, 19), (800, 64, 22), (1024, 10, None)], 89_440, 51.81),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_crossbar_areas_of_the_publication(name):
    layers, dense, percent = NETWORKS[name]
    assert sum(cells(n, m) for n, m, _ in layers) == dense
    assert round(100 * sum(cells(*layer) for layer in layers) / dense, 2) == percent


def test_the_same_areas_are_read_off_networks():
    lenet = LeNet((1, 28, 28))
    clipped = factorize(lenet, {"conv1": 5, "conv2": 12, "fc1": 36})
    assert crossbars(lenet).cells == 430_500
    assert round(100 * crossbars(clipped).cells / crossbars(lenet).cells, 2) == 13.62
    convnet = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding=2), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip
    clipped = factorize(convnet, {"0": 12, "3": 19, "6": 22})
    assert round(100 * crossbars(clipped).cells / crossbars(convnet).cells, 2) == 51.81


def counted(matrix: np.ndarray, P: int, Q: int) -> tuple[int, int, int]:
    """Crossbars, wires and wires that carry something, of a matrix of inputs x outputs."""
    tiles, wires, kept = 0, 0, 0
    for top in range(0, matrix.shape[0], P):
        for left in range(0, matrix.shape[1], Q):
            block = matrix[top : top + P, left : left + Q]
            tiles += 1
            wires += sum(block.shape)
            kept += int((block != 0).any(0).sum() + (block != 0).any(1).sum())
    return tiles, wires, kept


@pytest.mark.parametrize("tile", [(64, 64), (16, 16), (7, 5), (1, 1)])
def test_wires_against_a_count_tile_by_tile(tile):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 10, 3, groups=2), nn.Conv1d(4, 70, 5), nn.Linear(90, 20))
    with torch.no_grad():
        for layer in model:
            layer.weight *= torch.rand_like(layer.weight) < 0.15
    cost = crossbars(model, tile)
    assert [layer.layer for layer in cost.layers] == ["0[0]", "0[1]", "1", "2"]
    matrices = [*model[0].weight.flatten(1).chunk(2), model[1].weight.flatten(1), model[2].weight]
    expected = [counted(matrix.detach().T.numpy(), *tile) for matrix in matrices]
    assert [(layer.crossbars, layer.wires, layer.kept) for layer in cost.layers] == expected
    tiled = [(wires, kept) for tiles, wires, kept in expected if tiles > 1]
    assert cost.wired == pytest.approx(sum(k for _, k in tiled) / sum(w for w, _ in tiled))
    assert cost.routing == pytest.approx(sum(k**2 for _, k in tiled) / sum(w**2 for w, _ in tiled))
    assert cost.cells == sum(p.numel() for p in model.parameters() if p.dim() > 1)


def test_wires_of_one_crossbar_are_no_routing():
    cost = crossbars(nn.Linear(60, 10))
    assert cost.tiled == ()
    assert math.isnan(cost.routing)
    assert math.isnan(cost.wired)


def test_what_is_not_known_is_not_a_number():
    cost = crossbars(
        nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4), nn.ConvTranspose2d(2, 2, 2), nn.BatchNorm2d(2))
    )
    assert cost.unmodeled == ("1", "2")
    assert math.isnan(cost.cells)
    assert len(cost.layers) == 1


def test_a_weight_that_is_not_a_number_needs_its_wires():
    model = nn.Linear(70, 2)
    nn.init.zeros_(model.weight)
    assert crossbars(model).layers[0].kept == 0
    model.weight.data[1, 3] = float("nan")
    assert crossbars(model).layers[0].kept == 2


def test_impossible_sizes_are_refused():
    for call in (lambda: cells(0, 3), lambda: cells(3, 3, 0), lambda: crossbars(nn.Linear(2, 2), (0, 64))):
        with pytest.raises(UsageError, match="1 or more"):
            call()
