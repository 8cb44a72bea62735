"""Counted costs equal closed forms, and torch's own FLOP counter wherever that counts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gracile.cost import count, macs
from gracile.graph import Operand, Step
from gracile.zoo import LeNet, LSTMLanguageModel, VGGSmall, resnet20, resnet56

# Switching oneDNN off, so that recurrent layers show their products, makes torch talk about other hardware.
pytestmark = pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN:UserWarning")


def independent(model: nn.Module, *inputs: torch.Tensor) -> float:
    """MACs as torch's flop counter has them: two operations each."""
    plain = torch.backends.mkldnn.flags(enabled=False)
    with torch.no_grad(), plain, sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(*inputs)  # in training mode: the fused layers of eval mode hide their products
    return counter.get_total_flops() / 2


def test_lenet_by_formula() -> None:
    cost = count(LeNet((1, 28, 28)), torch.zeros(1, 1, 28, 28))
    rows = {row.layer: row for row in cost.rows}
    assert rows["conv1"].macs == 24 * 24 * 20 * 25
    assert rows["conv2"].macs == 8 * 8 * 50 * 20 * 25
    assert rows["fc1"].macs == 800 * 500
    assert rows["fc2"].macs == 500 * 10
    assert cost.macs == 2_293_000
    assert cost.parameters == 431_080
    assert cost.bytes == 4 * 431_080
    assert rows["conv1"].activations == 4 * 24 * 24 * 20
    assert rows["conv1"].kind == "Conv2d"


@pytest.mark.parametrize(("factory", "blocks", "published"), [(resnet20, 3, 40.8e6), (resnet56, 9, 125.5e6)])
def test_residual_networks_by_formula(factory, blocks: int, published: float) -> None:
    # Each stage halves the image and doubles the filters: its square convolutions cost the same.
    square = 9 * 16**2 * 32**2
    expected = 27 * 16 * 32**2 + (6 * blocks - 2) * square + 2 * (square // 2) + 640
    cost = count(factory(), torch.zeros(1, 3, 32, 32))
    assert cost.macs == expected
    assert cost.macs == pytest.approx(published, rel=0.01)
    assert cost.unmodeled == ()


def test_macs_grow_with_the_batch_and_parameters_do_not() -> None:
    one, four = (count(VGGSmall((3, 32, 32)), torch.zeros(n, 3, 32, 32)) for n in (1, 4))
    assert four.macs == 4 * one.macs
    assert four.activations == 4 * one.activations
    assert (four.parameters, four.bytes) == (one.parameters, one.bytes)


@pytest.mark.parametrize("width", [5, 8])
def test_lstm_by_formula(width: int) -> None:
    batch, steps, vocabulary = 2, 3, 11
    model = LSTMLanguageModel(vocabulary, widths=(width, 4), embedding=6)
    cost = count(model, torch.zeros(batch, steps, dtype=torch.long))
    gates = 4 * width * (6 + width) + 4 * 4 * (width + 4)
    assert cost.macs == batch * steps * (gates + 4 * vocabulary)


CONVOLUTIONS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False),
    nn.Conv2d(4, 4, 3, groups=4, dilation=2),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1),
    nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2),
]


@pytest.mark.parametrize("layer", CONVOLUTIONS, ids=str)
def test_convolutions_equal_the_flop_counter(layer: nn.Module) -> None:
    image = torch.randn(2, 4, 9, 9)
    assert count(layer, image).macs == independent(layer, image) > 0


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 6).permute(2, 0, 3, 1, 4)
        return functional.scaled_dot_product_attention(q, k, v)


class Products(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        c = torch.einsum("bij,bjk->bik", a, b)
        d = torch.baddbmm(c, a, b)
        return (a[0] @ b[0]) + d.softmax(-1) + torch.addmm(c[0], a[0], b[0])


@pytest.mark.parametrize(
    ("model", "shapes"),
    [
        (Attention(), [(2, 5, 12)]),
        (Products(), [(2, 3, 4), (2, 4, 3)]),
        (nn.LSTM(5, 7, num_layers=2, bidirectional=True), [(4, 2, 5)]),
        (nn.GRU(5, 7), [(4, 2, 5)]),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), [(2, 5, 8)]),
        (nn.Conv1d(3, 4, 5), [(2, 3, 9)]),
        (nn.Conv3d(3, 4, 2), [(2, 3, 5, 5, 5)]),
        (resnet20(), [(2, 3, 32, 32)]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_networks_equal_the_flop_counter(model: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(shape) for shape in shapes]
    assert count(model, *inputs).macs == independent(model, *inputs) > 0


def test_tied_parameters_are_counted_once() -> None:
    tokens = torch.zeros(1, 2, dtype=torch.long)
    tied, free = (
        count(LSTMLanguageModel(20, widths=(6, 4), embedding=4, tied=tied), tokens) for tied in (True, False)
    )
    assert free.parameters - tied.parameters == 20 * 4
    assert free.macs == tied.macs
    assert next(row for row in tied.rows if row.layer == "decoder").parameters == 20


def test_buffers_are_bytes_but_no_parameters() -> None:
    cost = count(nn.BatchNorm1d(5), torch.randn(3, 5))
    assert cost.parameters == 10
    assert cost.bytes == 4 * 20 + 8
    assert cost.macs == 0


def test_half_precision_takes_half_the_bytes() -> None:
    whole = count(nn.Linear(4, 3), torch.zeros(2, 4))
    half = count(nn.Linear(4, 3).bfloat16(), torch.zeros(2, 4, dtype=torch.bfloat16))
    assert (half.bytes, half.activations) == (whole.bytes // 2, whole.activations // 2)


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(self.fc(x)).real


def test_what_is_not_modeled_is_nan_and_named() -> None:
    cost = count(Spectrum(), torch.randn(2, 4))
    assert math.isnan(cost.macs)
    assert next(row for row in cost.rows if row.layer == "fc").macs == 2 * 4 * 4
    assert len(cost.unmodeled) == 1
    assert cost.unmodeled[0].startswith("aten._fft_r2c.default (")
    assert cost.parameters == 20


def test_attention_kernels_by_formula() -> None:
    def operand(*shape: int) -> Operand:
        return Operand(shape, torch.float32, (None,) * len(shape))

    query, key, value = operand(2, 8, 5, 16), operand(2, 4, 7, 16), operand(2, 4, 7, 12)
    result = (operand(2, 8, 5, 12),)
    for kernel in ("flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        step = Step(f"aten._scaled_dot_product_{kernel}.default", "", "", (query, key, value), {}, result)
        assert macs(step) == 2 * 8 * 5 * 7 * (16 + 12)


def test_an_operator_from_elsewhere_is_unknown() -> None:
    operand = Operand((2,), torch.float32, (None,))
    assert math.isnan(macs(Step("mine.mystery.default", "", "", (operand,), {}, (operand,))))
    assert math.isnan(macs(Step("mystery", "", "", (operand,), {}, (operand,))))
    assert macs(Step("aten.arange.default", "", "", (5,), {}, (operand,))) == 0
