"""Attention in its spellings: one matrix or three, shared keys, windows, positions, heads in attributes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.hand import Net, buffered, case, normal, parameter

DIM, HEADS = 16, 4


def _self(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(h + m.attend(h, h, h, need_weights=False)[0])


def _self_with_weights(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x)
    out, weights = m.attend(h, h, h)
    return m.b(h + out), weights


def _cross(m: Any, x: Tensor, y: Tensor) -> Tensor:
    k, v = m.k(y), m.v(y)
    return m.b(m.attend(m.a(x), k, v, need_weights=False)[0])


def _masked(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    padding = torch.zeros(x.shape[:2], dtype=torch.bool)
    return m.b(m.attend(h, h, h, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0])


def mha(**named: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(DIM, HEADS, **named)


class Separate(nn.Module):
    """Three projections, heads in an attribute, torch's fused attention."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.causal = HEADS, DIM // HEADS, causal
        self.embed = nn.Linear(6, DIM)
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.proj, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)

    def split(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, self.num_heads, self.head_dim).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = self.split(self.q(h)), self.split(self.k(h)), self.split(self.v(h))
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(
            h + self.proj(y.transpose(1, 2).reshape(x.size(0), -1, self.num_heads * self.head_dim))
        )


class Fused(nn.Module):
    """One projection for queries, keys and values, reshaped to (3, heads, width); scale as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (DIM // HEADS) ** -0.5
        self.embed, self.qkv = nn.Linear(6, DIM), nn.Linear(DIM, 3 * DIM)
        self.proj, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        b, n, c = h.shape
        q, k, v = self.qkv(h).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        attention = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.out(h + self.proj((attention @ v).transpose(1, 2).reshape(b, n, c)))


class FusedIndependent(nn.Module):
    """The same with the heads' total width apart from the stream's."""

    def __init__(self, heads: int = HEADS, width: int = 4) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.embed, self.norm = nn.Linear(6, DIM), nn.LayerNorm(DIM)
        self.qkv = nn.Linear(DIM, 3 * heads * width, bias=False)
        self.proj, self.out = nn.Linear(heads * width, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = self.qkv(self.norm(h)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, self.width)).transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.out(h + self.proj(y.transpose(1, 2).flatten(2)))


class Grouped(nn.Module):
    """Several query heads share one head of keys and values."""

    def __init__(self, heads: int = 8, shared: int = 2, width: int = 4, how: str = "repeat") -> None:
        super().__init__()
        self.num_heads, self.num_key_value_heads, self.head_dim, self.how = heads, shared, width, how
        self.num_key_value_groups = heads // shared
        self.embed = nn.Linear(6, DIM)
        self.q_proj = nn.Linear(DIM, heads * width, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(DIM, shared * width, bias=False) for _ in range(2))
        self.o_proj, self.out = nn.Linear(heads * width, DIM, bias=False), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        b, n, _ = h.shape
        q = self.q_proj(h).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(b, n, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(b, n, self.num_key_value_heads, self.head_dim).transpose(1, 2)
        if self.how == "repeat":
            k = k.repeat_interleave(self.num_key_value_groups, dim=1)
            v = v.repeat_interleave(self.num_key_value_groups, dim=1)
        elif self.how == "expand":
            shape = (b, self.num_key_value_heads, self.num_key_value_groups, n, self.head_dim)
            k = k[:, :, None].expand(shape).reshape(b, self.num_heads, n, self.head_dim)
            v = v[:, :, None].expand(shape).reshape(b, self.num_heads, n, self.head_dim)
        y = functional.scaled_dot_product_attention(
            q, k, v, scale=0.5, is_causal=True, enable_gqa=self.how == "native"
        )
        return self.out(h + self.o_proj(y.transpose(1, 2).reshape(b, n, -1)))


class MultiQuery(nn.Module):
    """All heads share one key and one value."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = HEADS, 4
        self.embed, self.q = nn.Linear(6, DIM), nn.Linear(DIM, DIM)
        self.kv = nn.Linear(DIM, 8)
        self.proj, self.out = nn.Linear(DIM, DIM), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q = self.q(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv(h).split([self.width, self.width], -1)
        scores = torch.einsum("bhqd,bkd->bhqk", q, k) / math.sqrt(self.width)
        y = torch.einsum("bhqk,bkd->bqhd", scores.softmax(-1), v).flatten(2)
        return self.out(h + self.proj(y))


def _einsum_heads(m: Any, x: Tensor) -> Tensor:
    q, k, v = (torch.einsum("bnc,chd->bnhd", x, w) for w in (m.wq, m.wk, m.wv))
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
    return m.b(torch.einsum("bhqk,bkhd,hdc->bqc", weights, v, m.wo))


def _linear_attention(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = (w(x).view(b, n, m.heads, -1) for w in (m.q, m.k, m.v))
    q, k = functional.elu(q) + 1, functional.elu(k) + 1
    summary = torch.einsum("bnhd,bnhe->bhde", k, v)
    norm = 1 / torch.einsum("bnhd,bhd->bnh", q, k.sum(1))
    return m.b(torch.einsum("bnhd,bhde,bnh->bnhe", q, summary, norm).flatten(2))


def _channel_attention(m: Any, x: Tensor) -> Tensor:
    """XCiT: attention between channels, positions contracted."""
    b, n, _ = x.shape
    q, k, v = m.qkv(x).view(b, n, 3, m.heads, -1).permute(2, 0, 3, 4, 1)
    q, k = functional.normalize(q, dim=-1), functional.normalize(k, dim=-1)
    y = ((q @ k.transpose(-2, -1)) * m.temperature).softmax(-1) @ v
    return m.b(y.permute(0, 3, 1, 2).reshape(b, n, -1))


def _talking_heads(m: Any, x: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = m.qkv(x).reshape(b, n, 3, m.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    scores = m.before((q @ k.mT).permute(0, 2, 3, 1)).softmax(-2)
    y = m.after(scores).permute(0, 3, 1, 2) @ v
    return m.b(y.transpose(1, 2).flatten(2))


def _latents(m: Any, x: Tensor) -> Tensor:
    """Perceiver: a few learned queries read everything."""
    k, v = m.kv(x).chunk(2, -1)
    q = m.q(m.latent).expand(len(x), -1, -1)
    return m.b(functional.scaled_dot_product_attention(q, k, v).mean(1))


def _slopes(m: Any, x: Tensor) -> Tensor:
    """ALiBi: one slope for every head in a buffer."""
    b, n, _ = x.shape
    q, k, v = m.qkv(x).view(b, n, 3, m.slopes.shape[0], -1).permute(2, 0, 3, 1, 4)
    distance = (torch.arange(n)[None] - torch.arange(n)[:, None]).to(x.dtype)
    scores = q @ k.mT * 0.4 + m.slopes[:, None, None] * distance
    return m.b((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, -1))


def _generate(m: Any, x: Tensor) -> Tensor:
    """Two steps with keys and values kept from the first."""
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outputs = []
    for step in x.split(2, 1):
        q, k, v = (t.unflatten(-1, (m.heads, -1)).transpose(1, 2) for t in m.qkv(step).chunk(3, -1))
        keys.append(k)
        values.append(v)
        y = functional.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2), scale=0.5)
        outputs.append(m.b(y.transpose(1, 2).flatten(2)))
    return torch.cat(outputs, 1)


def with_heads(**parts: Any) -> dict[str, Any]:
    return {"heads": HEADS, "b": nn.Linear(DIM, 3), **parts}


ROWS = normal(4, 6)


WIDE = normal(4, DIM)


CASES: tuple[Architecture, ...] = (
    case("mha", "attention", lambda: Net(_self, a=nn.Linear(6, DIM), attend=mha(batch_first=True),
         b=nn.Linear(DIM, 3)), ROWS),
    case("mha time first", "attention", lambda: Net(_self, a=nn.Linear(6, DIM), attend=mha(bias=False),
         b=nn.Linear(DIM, 3)), normal(4, 6, at=1)),
    case("mha that returns its weights", "attention", lambda: Net(_self_with_weights, a=nn.Linear(6, DIM),
         attend=mha(batch_first=True), b=nn.Linear(DIM, 3)), ROWS),
    case("mha with kdim and vdim", "attention", lambda: Net(_cross, a=nn.Linear(6, DIM), k=nn.Linear(5, 10),
         v=nn.Linear(5, 12), attend=mha(kdim=10, vdim=12, batch_first=True), b=nn.Linear(DIM, 3)),
         ROWS, normal(7, 5)),
    case("mha with added keys", "attention", lambda: Net(_self, a=nn.Linear(6, DIM),
         attend=mha(batch_first=True, add_bias_kv=True, add_zero_attn=True), b=nn.Linear(DIM, 3)), ROWS),
    case("mha with masks", "attention", lambda: Net(_masked, a=nn.Linear(6, DIM),
         attend=mha(batch_first=True), b=nn.Linear(DIM, 3)), ROWS),
    case("separate projections", "attention", Separate, ROWS),
    case("causal", "attention", lambda: Separate(causal=True), ROWS),
    case("fused projection", "attention", Fused, ROWS),
    case("fused projection in thirds", "attention", FusedIndependent, ROWS),
    case("grouped queries repeated", "attention", Grouped, ROWS),
    case("grouped queries expanded", "attention", lambda: Grouped(how="expand"), ROWS),
    case("grouped queries native", "attention", lambda: Grouped(how="native"), ROWS),
    case("one key for all heads", "attention", MultiQuery, ROWS),
    case("einsum heads", "attention", lambda: Net(_einsum_heads, wq=parameter(DIM, HEADS, 4),
         wk=parameter(DIM, HEADS, 4), wv=parameter(DIM, HEADS, 4), wo=parameter(HEADS, 4, DIM),
         b=nn.Linear(DIM, 3)), WIDE),
    case("linear attention", "attention", lambda: Net(_linear_attention, **with_heads(q=nn.Linear(DIM, DIM),
         k=nn.Linear(DIM, DIM), v=nn.Linear(DIM, DIM))), WIDE),
    case("attention between channels", "attention", lambda: Net(_channel_attention,
         **with_heads(qkv=nn.Linear(DIM, 48), temperature=parameter(HEADS, 1, 1))), WIDE),
    case("talking heads", "attention", lambda: Net(_talking_heads, **with_heads(qkv=nn.Linear(DIM, 48),
         before=nn.Linear(HEADS, HEADS), after=nn.Linear(HEADS, HEADS))), WIDE),
    case("learned queries", "attention", lambda: Net(_latents, latent=parameter(3, 8), q=nn.Linear(8, DIM),
         kv=nn.Linear(6, 2 * DIM), b=nn.Linear(DIM, 3)), ROWS),
    case("a slope for every head", "attention", lambda: buffered(Net(_slopes, qkv=nn.Linear(DIM, 48),
         b=nn.Linear(DIM, 3)), slopes=2.0 ** -torch.arange(1, HEADS + 1)), WIDE),
    case("keys kept between steps", "attention", lambda: Net(_generate, **with_heads(qkv=nn.Linear(DIM, 48))),
         WIDE),
)  # fmt: skip
