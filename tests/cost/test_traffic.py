import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gracile.cost import stored_bytes, traffic


def by_hand(matrix: torch.Tensor, bits: float) -> tuple[float, float]:
    """Count bit by bit: every nonzero and its column, every row's beginning."""
    number = index = 0.0
    wide = math.ceil(math.log2(matrix.shape[1])) if matrix.shape[1] > 1 else 0
    for row in matrix.tolist():
        index += 32 if wide else 0
        for entry in row:
            if entry != 0:
                number += bits
                index += wide
    dense = matrix.numel() * bits / 8
    return (number / 8, index / 8) if (number + index) / 8 < dense else (dense, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 40),
    density=st.floats(0, 1),
    bits=st.sampled_from([2, 4, 8, 32]),
    seed=st.integers(0, 9),
)
def test_the_cheaper_of_two_forms(rows, columns, density, bits, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(rows, columns, generator=generator)
    matrix *= torch.rand(rows, columns, generator=generator) < density
    assert stored_bytes(matrix, bits) == pytest.approx(by_hand(matrix, bits))


def test_of_a_small_network_by_hand():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 5)).eval()
    rows = {row.layer: row for row in traffic(model, torch.randn(1, 1, 4, 4), bits={"0.weight": 8})}
    conv, relu, linear = rows["0"], rows["1"], rows["3"]
    assert (conv.weights, conv.indices) == (18 + 2 * 4, 0)
    assert conv.activations == 4 * (16 + 8)
    assert relu.activations == 4 * (8 + 8)
    assert linear.weights == 4 * (40 + 5)
    assert linear.activations == 4 * (8 + 5)
    assert "2" not in rows  # a view moves nothing
    assert conv.macs == 2 * 9 * 4
    assert conv.bytes == 26 + 96


def test_more_zeros_never_move_more():
    layer = nn.Linear(64, 32, bias=False)
    order = torch.randperm(64 * 32, generator=torch.Generator().manual_seed(0))
    sums = []
    for share in (0.0, 0.3, 0.6, 0.9, 0.99):
        with torch.no_grad():
            layer.weight.view(-1)[order[: int(share * 64 * 32)]] = 0
        sums.append(sum(row.bytes for row in traffic(layer, torch.randn(1, 64), bits={"weight": 8})))
    assert sums == sorted(sums, reverse=True)
    assert sums[0] == sums[1]  # a third of zeros does not pay for the indices
    assert sums[-1] < 0.3 * sums[0]
