"""What is left of the products when zeros are skipped, against loops over every product."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from gracile.cost import count, sparse_macs
from gracile.errors import UsageError
from gracile.zoo import LeNet

# Switching oneDNN off, so that recurrent layers show their products, makes torch talk about other hardware.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")


def with_zeros(tensor: Tensor, seed: int) -> Tensor:
    kept = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(seed)) < 0.4
    return torch.where(kept, tensor, 0.0)


def sparse(layer: nn.Module, seed: int = 1) -> nn.Module:
    layer.weight.data = with_zeros(layer.weight.data, seed)
    return layer.eval()


def one(model: nn.Module, *batches: Tensor):
    (row,) = sparse_macs(model, batches).rows
    return row


def products_of_convolution(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int, groups: int):
    """All products, and those of two nonzeros, one by one."""
    x = functional.pad(x, (padding,) * 4)
    outputs, inputs, kh, kw = weight.shape
    samples, _, height, width = x.shape
    rows = (height - dilation * (kh - 1) - 1) // stride + 1
    columns = (width - dilation * (kw - 1) - 1) // stride + 1
    every = both = 0
    places = itertools.product(range(samples), range(outputs), range(rows), range(columns))
    for n, o, r, c in places:
        first = o // (outputs // groups) * inputs
        for i, a, b in itertools.product(range(inputs), range(kh), range(kw)):
            value = x[n, first + i, r * stride + a * dilation, c * stride + b * dilation]
            every += 1
            both += bool(value != 0) and bool(weight[o, i, a, b] != 0)
    return every, both


@settings(max_examples=25)
@given(
    stride=st.integers(1, 2),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
    kernel=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 99),
)
def test_convolutions_equal_a_loop_over_every_product(stride, padding, dilation, groups, kernel, seed):
    torch.manual_seed(seed)
    layer = sparse(nn.Conv2d(4, 6, kernel, stride, padding, dilation, groups), seed)
    x = with_zeros(torch.randn(2, 4, 7, 6), seed + 1)
    every, both = products_of_convolution(x, layer.weight, stride, padding, dilation, groups)
    row = one(layer, x)
    assert row.macs == every / 2
    assert row.exact == both / 2
    assert row.weights == (layer.weight != 0).double().mean().item()
    assert row.inputs == (x != 0).double().mean().item()
    assert row.expected == pytest.approx(row.macs * row.weights * row.inputs)


def test_linear_layers_equal_a_loop_over_every_product():
    torch.manual_seed(0)
    layer = sparse(nn.Linear(5, 3))
    x = with_zeros(torch.randn(2, 4, 5), 2)
    both = sum(
        bool(x[n, t, i] != 0) and bool(layer.weight[o, i] != 0)
        for n, t, i, o in itertools.product(range(2), range(4), range(5), range(3))
    )
    row = one(layer, x)
    assert (row.macs, row.exact) == (4 * 5 * 3, both / 2)


@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.ConvTranspose2d(4, 2, 2, dilation=2),
        nn.ConvTranspose1d(4, 6, 3, stride=3),
        nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(4, 4, 3, padding="same", groups=4),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(4, 2, 2, padding=1),
    ],
    ids=str,
)
def test_other_convolutions_equal_the_layer_itself_on_ones(layer):
    """With every number 1 or 0 and no bias, the sum of a layer's outputs is its count of products."""
    torch.manual_seed(0)
    layer = sparse(layer).double()
    x = with_zeros(torch.randn(3, 4, *(5,) * (layer.weight.dim() - 2), dtype=torch.float64), 3)
    row = one(layer, x)
    ones = sparse(layer)
    ones.weight.data = (layer.weight != 0).double()
    ones.bias.data.zero_()
    assert row.exact == pytest.approx(ones((x != 0).double()).sum().item() / 3)
    assert row.macs == count(layer, x).macs / 3


def test_shares_of_independent_zeros_multiply():
    torch.manual_seed(0)
    row = one(sparse(nn.Linear(400, 300)), with_zeros(torch.randn(64, 400), 5))
    assert row.exact == pytest.approx(row.expected, rel=0.01)
    assert row.expected == pytest.approx(0.16 * 400 * 300, rel=0.05)


def test_a_network_is_averaged_over_batches_of_different_sizes():
    torch.manual_seed(0)
    model = LeNet((1, 8, 8)).eval()
    batches = [torch.randn(n, 1, 8, 8) for n in (3, 5)]
    together, apart = sparse_macs(model, [torch.cat(batches)]), sparse_macs(model, batches)
    assert [row.layer for row in apart.rows] == ["conv1", "conv2", "fc1", "fc2"]
    for a, b in zip(together.rows, apart.rows, strict=True):
        assert (a.layer, a.macs, a.weights) == (b.layer, b.macs, b.weights)
        assert a.exact == pytest.approx(b.exact)
    assert apart.macs == count(model, batches[0]).macs / 3
    # Only the input of the last layer has passed a ReLU.
    assert [row.inputs for row in apart.rows[:3]] == [1, 1, 1]
    assert apart.rows[3].inputs < 0.9
    assert apart.left == apart.exact / apart.macs < 1


def test_a_layer_that_runs_twice_is_counted_twice():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared).eval()
    assert one(model, torch.randn(2, 4)).macs == 32


def test_what_is_not_modeled_is_nan():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known = nn.Linear(4, 4)
            self.recurrent = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.known(self.recurrent(x)[0]) @ x.transpose(1, 2)

    cost = sparse_macs(Mixed().eval(), [torch.randn(2, 3, 4)])
    by_layer = {row.layer: row for row in cost.rows}
    assert by_layer["known"].exact <= 48
    assert by_layer["known"].macs == 48
    assert by_layer[""].macs == 3 * 3 * 4
    assert math.isnan(by_layer[""].exact)
    assert math.isnan(by_layer["recurrent"].expected)
    assert math.isnan(cost.exact)
    assert math.isnan(cost.left)
    assert cost.macs == 48 + 36 + by_layer["recurrent"].macs


def test_a_layer_that_multiplies_more_than_its_kind_is_nan():
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x @ self.weight.T

    assert math.isnan(one(Twice(4, 4).eval(), torch.randn(2, 4)).exact)


def test_bad_input_is_told():
    with pytest.raises(UsageError, match="no batches"):
        sparse_macs(nn.Linear(2, 2).eval(), [])
    with pytest.raises(UsageError, match="training mode"):
        sparse_macs(nn.Linear(2, 2), [torch.ones(1, 2)])


def test_hooks_are_gone_afterwards():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    sparse_macs(model, [torch.ones(1, 2)])
    with pytest.raises(RuntimeError):
        sparse_macs(model, [torch.ones(1, 2), torch.ones(1, 3)])
    assert not model[0]._forward_pre_hooks
