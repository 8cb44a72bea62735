"""Pieces for rows, (steps, width), and for vectors, (width,)."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from reducible.pieces import (
    Cat,
    Grouped,
    Made,
    Parts,
    ScaledBy,
    Sum,
    across,
    act,
    divisor,
    net,
    piece,
    proper,
    weight,
    width,
)


def linear(random: Random, n: int, o: int) -> nn.Module:
    layer: nn.Module = nn.Linear(n, o, bias=random.random() < 0.7)
    chance = random.random()
    return weight_norm(layer) if chance < 0.08 else spectral_norm(layer) if chance < 0.12 else layer


def mlp(random: Random, n: int, o: int) -> nn.Module:
    inner = width(random)
    return nn.Sequential(linear(random, n, inner), act(random), linear(random, inner, o))


@piece("vector")
@piece("vector")
@piece("rows")
@piece("rows")
def dense_layer(random: Random, *shape: int) -> Made:
    o = width(random)
    return nn.Sequential(linear(random, shape[-1], o), act(random)), (*shape[:-1], o)


@piece("vector")
@piece("rows")
def norm(random: Random, *shape: int) -> Made:
    n = shape[-1]
    made = random.choice(
        (lambda: nn.LayerNorm(n), lambda: nn.RMSNorm(n), lambda: nn.LayerNorm(n, elementwise_affine=False))
    )
    if len(shape) == 1 and random.random() < 0.5:
        return nn.BatchNorm1d(n), shape
    return made(), shape


@piece("vector")
@piece("rows")
def residual(random: Random, *shape: int) -> Made:
    n = shape[-1]
    branches = [mlp(random, n, n) for _ in range(random.choice((1, 2)))]
    return Sum(branches, random.random() < 0.8), shape


@piece("vector")
@piece("rows")
def side_by_side(random: Random, *shape: int) -> Made:
    o, shortcut = width(random), random.random() < 0.6
    return Cat([mlp(random, shape[-1], o)], -1, shortcut), (*shape[:-1], o + shape[-1] * shortcut)


@piece("vector")
@piece("rows")
def parted(random: Random, *shape: int) -> Made:
    n = shape[-1]
    if n < 3:
        return None
    cuts = sorted(random.sample(range(1, n), 2))
    sizes = [cuts[0], cuts[1] - cuts[0], n - cuts[1]]
    outs = [width(random) if random.random() < 0.5 else s for s in sizes]
    ways = [linear(random, s, o) if o != s else random.choice((nn.Identity(), act(random), ScaledBy(s, 0)))
            for s, o in zip(sizes, outs, strict=True)]  # fmt: skip
    return Parts(sizes, ways, random.sample(range(3), 3), -1), (*shape[:-1], sum(outs))


@piece("vector")
@piece("rows")
def gates(random: Random, *shape: int) -> Made:
    n, o = shape[-1], width(random)
    how = random.choice((_chunked, _glu, _sliced, _two))
    return net(how, a=nn.Linear(n, 2 * o), b=nn.Linear(n, o), half=o), (*shape[:-1], o)


def _chunked(m: Any, x: Tensor) -> Tensor:
    gate, up = m.a(x).chunk(2, -1)
    return functional.silu(gate) * up


def _glu(m: Any, x: Tensor) -> Tensor:
    return functional.glu(m.a(x), -1)


def _sliced(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return h[..., : m.half] * h[..., m.half :].tanh()


def _two(m: Any, x: Tensor) -> Tensor:
    return m.b(x) * m.a(x).split(m.half, -1)[1]


@piece("vector")
@piece("rows")
def whole(random: Random, *shape: int) -> Made:
    if shape[-1] < 2:
        return None
    found, n = across(random, shape[-1], -1)
    return found, (*shape[:-1], n)


@piece("vector")
@piece("rows")
def grouped(random: Random, *shape: int) -> Made:
    groups = proper(random, shape[-1])
    return None if groups is None else (Grouped(random, shape[-1], groups, -1), shape)


@piece("vector")
@piece("rows")
def tied(random: Random, *shape: int) -> Made:
    n, inner = shape[-1], width(random)
    return net(_tied, a=nn.Linear(n, inner), bias=weight(n)), shape


def _tied(m: Any, x: Tensor) -> Tensor:
    return functional.linear(m.a(x).relu(), m.a.weight.t(), m.bias)


@piece("vector")
def bilinear(random: Random, n: int) -> Made:
    o, one, two = width(random), width(random), width(random)
    if random.random() < 0.5:
        return net(lambda m, x: m.f(m.a(x), m.b(x)), f=nn.Bilinear(one, two, o), a=nn.Linear(n, one),
                   b=nn.Linear(n, two)), (o,)  # fmt: skip
    run = lambda m, x: torch.einsum("bi,bj->bij", m.a(x), m.b(x)).flatten(1)  # noqa: E731
    one, two = random.randint(2, 4), random.randint(2, 4)
    return net(run, a=nn.Linear(n, one), b=nn.Linear(n, two)), (one * two,)


@piece("vector")
def to_rows(random: Random, n: int) -> Made:
    steps = proper(random, n)
    if steps is None or n // steps < 2:
        return None
    if random.random() < 0.5:
        return net(lambda m, x: x.view(x.shape[0], m.steps, -1), steps=steps), (steps, n // steps)
    return net(lambda m, x: x.unflatten(1, (-1, x.shape[1] // m.steps)), steps=steps), (steps, n // steps)


class Heads(nn.Module):
    """Attention with sizes in attributes or taken from shapes, heads shared or not."""

    def __init__(self, random: Random, n: int) -> None:
        super().__init__()
        self.how = random.choice(("fused", "separate", "shared", "width by heads", "einsum"))
        self.num_heads, self.head_dim = random.choice((1, 2, 3, 4)), random.choice((2, 3, 4))
        self.groups = random.choice([g for g in (1, 2) if self.num_heads % g == 0])
        self.kv_heads = self.num_heads // self.groups
        self.causal, self.scale = random.random() < 0.3, random.choice((None, 0.4))
        inner = self.num_heads * self.head_dim
        if self.how == "fused":
            self.qkv = nn.Linear(n, 3 * inner)
        else:
            self.q = nn.Linear(n, inner)
            size = self.kv_heads * self.head_dim if self.how == "shared" else inner
            self.k, self.v = nn.Linear(n, size), nn.Linear(n, size)
        self.proj = nn.Linear(inner, n)

    def split(self, x: Tensor, heads: int) -> Tensor:
        if self.how == "width by heads":
            return x.view(*x.shape[:2], heads, x.shape[-1] // heads).transpose(1, 2)
        return x.view(*x.shape[:2], heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        if self.how == "fused":
            q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            heads = self.kv_heads if self.how == "shared" else self.num_heads
            q, k, v = (
                self.split(self.q(x), self.num_heads),
                self.split(self.k(x), heads),
                self.split(self.v(x), heads),
            )
            if self.how == "shared":
                k, v = (y.repeat_interleave(self.groups, dim=1) for y in (k, v))
        if self.how == "einsum":
            weights = torch.einsum("bhqd,bhkd->bhqk", q, k).mul(0.5).softmax(-1)
            y = torch.einsum("bhqk,bhkd->bqhd", weights, v).flatten(2)
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)
            y = y.transpose(1, 2).reshape(b, t, -1)
        return self.proj(y)


@piece("rows")
@piece("rows")
def attention(random: Random, t: int, n: int) -> Made:
    if random.random() < 0.2 and (heads := proper(random, n)):
        return net(_torch_attention, inner=nn.MultiheadAttention(n, heads, batch_first=True)), (t, n)
    return Sum([Heads(random, n)], random.random() < 0.8), (t, n)


def _torch_attention(m: Any, x: Tensor) -> Tensor:
    return x + m.inner(x, x, x, need_weights=False)[0]


@piece("rows")
@piece("rows")
def recurrent(random: Random, t: int, n: int) -> Made:
    if t > 9:
        return None
    hidden, both = random.choice((4, 6)), random.random() < 0.4
    kind = random.choice((nn.LSTM, nn.GRU, nn.RNN))
    more: dict[str, Any] = {"proj_size": 3} if kind is nn.LSTM and random.random() < 0.3 else {}
    layer = kind(n, hidden, random.choice((1, 2)), bidirectional=both, batch_first=True, **more)
    return net(lambda m, x: m.layer(x)[0], layer=layer), (t, more.get("proj_size", hidden) * (1 + both))


@piece("rows")
def cells(random: Random, t: int, n: int) -> Made:
    hidden = random.choice((4, 6))
    if t > 9:
        return None
    return net(_cells, cell=nn.GRUCell(n, hidden), hidden=hidden), (t, hidden)


def _cells(m: Any, x: Tensor) -> Tensor:
    h, outputs = x.new_zeros(x.shape[0], m.hidden), []
    for step in x.unbind(1):
        h = m.cell(step, h)
        outputs.append(h)
    return torch.stack(outputs, 1)


@piece("rows")
def scan(random: Random, t: int, n: int) -> Made:
    inner = width(random)
    return net(_scan, a=nn.Linear(n, 2 * inner)), (t, inner)


def _scan(m: Any, x: Tensor) -> Tensor:
    value, forget = m.a(x).chunk(2, -1)
    state, outputs = torch.zeros_like(value[:, 0]), []
    for i in range(x.shape[1]):
        f = forget[:, i].sigmoid()
        state = f * state + (1 - f) * value[:, i]
        outputs.append(state)
    return torch.stack(outputs, 1)


@piece("rows")
def over_time(random: Random, t: int, n: int) -> Made:
    if random.random() < 0.5:
        o = width(random)
        layer = nn.Conv1d(n, o, 3, padding=1, groups=divisor(random, n, o))
        return net(lambda m, x: m.layer(x.transpose(1, 2)).transpose(1, 2), layer=layer), (t, o)
    return net(lambda m, x: x + m.layer(x.transpose(1, 2)).transpose(1, 2), layer=nn.Linear(t, t)), (t, n)


@piece("rows")
def moved_in_time(random: Random, t: int, n: int) -> Made:
    run = random.choice(
        (
            lambda m, x: x.flip(1),
            lambda m, x: x.roll(1, 1),
            lambda m, x: x.cumsum(1) * 0.3,
            lambda m, x: x + x.mean(1, keepdim=True),
            lambda m, x: x * x.softmax(1),
            lambda m, x: x.sort(1).values,
            lambda m, x: torch.fft.fft(x, dim=1).real,
        )
    )
    return net(run), (t, n)


@piece("rows")
def positions(random: Random, t: int, n: int) -> Made:
    return net(lambda m, x: x + m.table[: x.shape[1]], table=weight(t + 2, n)), (t, n)


@piece("rows")
def experts(random: Random, t: int, n: int) -> Made:
    count, inner = random.choice((2, 3)), width(random)
    if random.random() < 0.5:
        return net(_dense_experts, router=nn.Linear(n, count), up=weight(count, n, inner),
                   down=weight(count, inner, n)), (t, n)  # fmt: skip
    return net(_chosen_experts, router=nn.Linear(n, count),
               experts=nn.ModuleList(mlp(random, n, n) for _ in range(count))), (t, n)  # fmt: skip


def _dense_experts(m: Any, x: Tensor) -> Tensor:
    inner = torch.einsum("btn,eni->btei", x, m.up).relu()
    return x + torch.einsum("btei,ein,bte->btn", inner, m.down, m.router(x).softmax(-1))


def _chosen_experts(m: Any, x: Tensor) -> Tensor:
    """Every expert works on rows of its own, weighted by the router."""
    flat = x.flatten(0, 1)
    weights = m.router(flat).softmax(-1)
    out = torch.zeros_like(flat)
    for i, expert in enumerate(m.experts):
        rows = torch.arange(i, len(flat), len(m.experts))
        out = out.index_add(0, rows, expert(flat[rows]) * weights[rows, i : i + 1])
    return x + out.view_as(x)


@piece("rows")
def memory(random: Random, t: int, n: int) -> Made:
    slots, o = width(random), width(random)
    distances = random.random() < 0.3
    return net(_distances if distances else _memory, keys=weight(slots, n), values=weight(slots, o)), (t, o)


def _memory(m: Any, x: Tensor) -> Tensor:
    return (x @ m.keys.t()).softmax(-1) @ m.values


def _distances(m: Any, x: Tensor) -> Tensor:
    return (-torch.cdist(x, m.keys)).exp() @ m.values


@piece("rows")
def to_vector(random: Random, t: int, n: int) -> Made:
    run, size = random.choice(
        (
            (lambda m, x: x.mean(1), n),
            (lambda m, x: x[:, -1], n),
            (lambda m, x: x.amax(1), n),
            (lambda m, x: x.flatten(1), t * n),
            (lambda m, x: x.transpose(1, 2).reshape(x.shape[0], -1), t * n),
        )
    )
    return net(run), (size,)


@piece("rows")
def to_image(random: Random, t: int, n: int) -> Made:
    high = proper(random, t)
    if high is None:
        return None
    return net(lambda m, x: x.transpose(1, 2).unflatten(2, (m.high, -1)), high=high), (n, high, t // high)
