"""Whole networks: half of every block goes, and the network still equals the masked one on fresh input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.graph import Graph, watch
from gracile.reduce import apply_


class Residual(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.bn1(self.conv1(x)), inplace=True)
        return functional.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Residual(8, 8), Residual(8, 12), nn.MaxPool2d(2),
        Residual(12, 12), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5),
    )  # fmt: skip


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * i, 4, 3, padding=1) for i in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * i) for i in range(3))
        self.squeeze = nn.Conv2d(18, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for conv, norm in zip(self.layers, self.norms, strict=True):
            features.append(conv(norm(torch.cat(features, 1)).relu()))
        return self.head(self.squeeze(torch.cat(features, 1)).mean((2, 3)))


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = 2
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.grouped(self.first(x).relu())
        n, c, height, width = h.shape
        h = (
            h.view(n, self.groups, c // self.groups, height, width)
            .transpose(1, 2)
            .reshape(n, c, height, width)
        )
        return self.last(self.depthwise(h))


def upsampler() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.ConvTranspose2d(8, 6, 2, stride=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 3, groups=3), nn.Conv2d(6, 16, 1), nn.PixelShuffle(2), nn.Conv2d(4, 5, 1),
    )  # fmt: skip


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool, kernel: bool) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.fused, self.kernel = fused, kernel
        self.scale = self.head_width**-0.5
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.fused:
            parts = self.qkv(x).reshape(n, t, 3, self.heads, self.head_width)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).view(n, t, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.kernel:
            y = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        else:
            y = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    def __init__(self, fused: bool, kernel: bool) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 2, stride=2)
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.position = nn.Parameter(torch.zeros(1, 10, 12))
        self.norm1, self.norm2 = nn.LayerNorm(12), nn.LayerNorm(12)
        self.attention = Attention(12, 4, fused, kernel)
        self.mlp = nn.Sequential(nn.Linear(12, 24), nn.GELU(), nn.Linear(24, 12))
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(len(h), -1, -1), h], 1) + self.position
        h = h + self.attention(self.norm1(h))
        h = h + self.mlp(self.norm2(h))
        return self.head(h[:, 0])


class LanguageModel(nn.Module):
    def __init__(self, cell: Callable[..., nn.Module], tied: bool = False, **more: object) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.rnn = cell(8, 8, **more)
        self.decoder = nn.Linear(16 if more.get("bidirectional") else 8, 11)
        if tied:
            self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.rnn(self.embedding(tokens))[0])


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.last = nn.Linear(5, 8), nn.GRU(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.first(x), torch.tensor([4, 3]))
        return self.last(nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0])[0])


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(0):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


def image() -> Tensor:
    return torch.randn(2, 3, 6, 6, dtype=torch.float64)


def tokens() -> Tensor:
    return torch.randint(0, 11, (4, 3))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "residual": (resnet, lambda: torch.randn(2, 3, 8, 8, dtype=torch.float64)),
    "dense": (Dense, image),
    "channel shuffle": (Shuffle, image),
    "upsampler": (upsampler, image),
    "fused attention": (lambda: Transformer(fused=True, kernel=False), image),
    "fused attention, kernel": (lambda: Transformer(fused=True, kernel=True), image),
    "separate attention": (lambda: Transformer(fused=False, kernel=False), image),
    "separate attention, kernel": (lambda: Transformer(fused=False, kernel=True), image),
    "LSTM": (lambda: LanguageModel(nn.LSTM, num_layers=2), tokens),
    "LSTM, both ways": (lambda: LanguageModel(nn.LSTM, bidirectional=True), tokens),
    "LSTM, projected": (lambda: LanguageModel(lambda n, m: nn.LSTM(n, 12, proj_size=m)), tokens),
    "GRU": (lambda: LanguageModel(nn.GRU, num_layers=2), tokens),
    "RNN": (lambda: LanguageModel(nn.RNN), tokens),
    "LSTM, tied": (lambda: LanguageModel(nn.LSTM, tied=True), tokens),
    "GRU, packed": (Packed, lambda: torch.randn(4, 2, 5, dtype=torch.float64)),
    "LSTM cells": (Cells, lambda: torch.randn(3, 2, 5, dtype=torch.float64)),
}


def prepared(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    build, example = NETWORKS[name]
    model = build().double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor.copy_(
                    torch.rand_like(tensor) + 0.3 if tensor.dim() == 1 else torch.randn_like(tensor) * 0.4
                )
    return model, example()


def masked(model: nn.Module, graph: Graph, units: Iterable[int]) -> nn.Module:
    model = copy.deepcopy(model)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    for unit in units:
        for part in graph.units[unit].slices:
            tensors[part.tensor].data.index_fill_(part.dim, torch.tensor(part.indices), 0)
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reduced_network_equals_the_masked_one(name: str) -> None:
    model, x = prepared(name)
    graph = watch(model, x, norms="keep")
    units = [unit for block in graph.blocks for unit in block.units[1::2]]
    assert units
    reference, reduced = masked(model, graph, units), copy.deepcopy(model)
    apply_(reduced, graph.cut(units))
    fresh = torch.randn_like(x) if x.is_floating_point() else tokens()
    with torch.no_grad():
        expected, found = reference(fresh), reduced(fresh)
        assert not torch.allclose(expected, model(fresh))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, reduced))
    assert after < 0.8 * before
    watch(reduced, x, norms="keep")


def blocks(name: str) -> dict[str, int]:
    model, x = prepared(name)
    return {block.name: len(block.units) for block in watch(model, x).blocks}


def test_the_units_of_a_residual_network() -> None:
    found = blocks("residual")
    assert found == {"0": 8, "3.conv1": 8, "4.conv1": 12, "4.conv2": 12, "6.conv1": 12}


def test_the_units_of_an_lstm_are_its_hidden_units() -> None:
    """One hidden unit is its rows in all four gates and its column in everything that reads it (ISS)."""
    model, x = prepared("LSTM")
    graph = watch(model, x)
    unit = next(graph.units[b.units[2]] for b in graph.blocks if b.name == "rnn" and len(b.units) == 8)
    rows = {part.tensor: part.indices for part in unit.slices if part.role == "out"}
    columns = {part.tensor: part.indices for part in unit.slices if part.role == "in"}
    assert rows["rnn.weight_ih_l0"] == rows["rnn.weight_hh_l0"] == rows["rnn.bias_ih_l0"] == (2, 10, 18, 26)
    assert columns["rnn.weight_hh_l0"] == (2,)
    assert columns["rnn.weight_ih_l1"] == (2,)


def test_heads_come_before_their_width() -> None:
    model, x = prepared("fused attention")
    graph = watch(model, x, norms="keep")
    sizes = {block.name: len(block.units) for block in graph.blocks}
    assert sizes["attention.qkv"] == 4
    heads = next(block for block in graph.blocks if block.name == "attention.qkv")
    cut = graph.cut(heads.units[:2])
    assert cut.attributes["attention.heads"] == 2
    assert "attention.head_width" not in cut.attributes
    # when the heads must stay, their width is offered
    inner = {b.name: len(b.units) for b in graph.pin(heads.units, "a test").blocks}
    assert inner["attention.qkv"] == 3


def test_a_free_norm_is_counted() -> None:
    model, x = prepared("fused attention")
    graph = watch(model, x)
    counted = {step.op for step in graph.steps if step.counted}
    assert "aten.native_layer_norm.default" in counted
    stream = next(block for block in graph.blocks if block.name in ("patch", "token"))
    cut = graph.cut(stream.units[:6])
    assert cut.attributes["norm1.normalized_shape"] == [6]
    assert not [step for step in watch(model, x, norms="keep").steps if step.counted]
