"""Whole blocks around attention: windows, positions, vision, decoders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.edge_attention import DIM, HEADS, ROWS, WIDE, mha, with_heads
from reducible.hand import Net, case, normal, parameter, tokens


class Windows(nn.Module):
    """Shifted windows with a table of relative positions, as in Swin."""

    def __init__(self, window: int = 2, shift: int = 1) -> None:
        super().__init__()
        self.window, self.shift, self.num_heads = window, shift, HEADS
        self.embed, self.norm = nn.Conv2d(3, DIM, 2, 2), nn.LayerNorm(DIM)
        self.qkv, self.proj, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Linear(DIM, 3)
        self.table = parameter((2 * window - 1) ** 2, HEADS)
        grid = torch.stack(torch.meshgrid(*2 * [torch.arange(window)], indexing="ij")).flatten(1)
        offset = grid[:, :, None] - grid[:, None] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])

    def forward(self, image: Tensor) -> Tensor:
        h = self.embed(image).permute(0, 2, 3, 1)
        b, high, wide, c = h.shape
        w = self.window
        x = torch.roll(self.norm(h), (-self.shift, -self.shift), (1, 2))
        x = x.view(b, high // w, w, wide // w, w, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, c)
        qkv = self.qkv(x).reshape(len(x), w * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index.view(-1)].view(w * w, w * w, -1).permute(2, 0, 1)
        scores = q @ k.transpose(-2, -1) * 0.5 + bias
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x.view(b, high // w, wide // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(b, high, wide, -1)
        return self.out((h + torch.roll(x, (self.shift, self.shift), (1, 2))).mean((1, 2)))


class Rotary(nn.Module):
    """Rotated halves of every head; frequencies in a buffer."""

    def __init__(self, interleaved: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.interleaved = HEADS, 8, interleaved
        self.embed, self.qkv = nn.Linear(6, DIM), nn.Linear(DIM, 3 * 8 * HEADS)
        self.proj, self.out = nn.Linear(8 * HEADS, DIM), nn.Linear(DIM, 3)
        self.register_buffer("frequency", 1 / 100 ** (torch.arange(0, 8, 2) / 8))

    def turn(self, x: Tensor) -> Tensor:
        angle = torch.arange(x.shape[-2], dtype=x.dtype)[:, None] * self.frequency
        if self.interleaved:
            even, odd = x[..., ::2], x[..., 1::2]
            turned = even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()
            return torch.stack(turned, -1).flatten(-2)
        both = torch.cat([angle, angle], -1)
        half = x.shape[-1] // 2
        return x * both.cos() + torch.cat([-x[..., half:], x[..., :half]], -1) * both.sin()

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = self.qkv(h).view(*x.shape[:2], 3, self.heads, self.head_dim).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = functional.scaled_dot_product_attention(self.turn(q), self.turn(k), v)
        return self.out(h + self.proj(y.transpose(1, 2).flatten(2)))


class Buckets(nn.Module):
    """T5: heads whose total width is not the model's, an embedding of bucketed distances for every head."""

    def __init__(self, model: int = 16, heads: int = 4, kv: int = 6) -> None:
        super().__init__()
        self.n_heads, self.key_value_proj_dim, self.inner_dim = heads, kv, heads * kv
        self.embed = nn.Embedding(29, model)
        self.q, self.k, self.v = (nn.Linear(model, self.inner_dim, bias=False) for _ in range(3))
        self.o, self.bias = nn.Linear(self.inner_dim, model, bias=False), nn.Embedding(8, heads)
        self.norm, self.head = nn.RMSNorm(model), nn.Linear(model, 29, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        h = self.embed(words)
        b, n = words.shape
        x = self.norm(h)

        def shape(t: Tensor) -> Tensor:
            return t.view(b, -1, self.n_heads, self.key_value_proj_dim).transpose(1, 2)

        position = torch.arange(n)
        distance = (position[None] - position[:, None]).abs().clamp(max=7)
        scores = shape(self.q(x)) @ shape(self.k(x)).transpose(3, 2)
        scores = scores + self.bias(distance).permute(2, 0, 1).unsqueeze(0)
        y = (scores.float().softmax(-1).type_as(scores) @ shape(self.v(x))).transpose(1, 2).contiguous()
        return self.head(h + self.o(y.view(b, -1, self.inner_dim)))


class Vision(nn.Module):
    """Patches, a class token, learned positions, two pre-norm blocks with layer scale."""

    def __init__(self, dim: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, dim, 4, 4), parameter(1, 1, dim)
        self.position = parameter(1, 5, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)
        self.scale1, self.scale2 = parameter(dim), parameter(dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        x = x + self.scale1 * self.proj(y.transpose(1, 2).reshape(b, n, -1))
        return x + self.scale2 * self.down(functional.gelu(self.up(self.norm2(x))))


class Llama(nn.Module):
    """RMS norms written out, SwiGLU, tied embeddings."""

    def __init__(self, words: int = 29, dim: int = 16, heads: int = 4, hidden: int = 24) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.embed, self.weight1, self.weight2 = nn.Embedding(words, dim), parameter(dim), parameter(dim)
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(dim, dim, bias=False) for _ in range(4))
        self.gate, self.up = nn.Linear(dim, hidden, bias=False), nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight

    def forward(self, words: Tensor) -> Tensor:
        h = self.embed(words)
        b, n, _ = h.shape
        x = self.norm(h, self.weight1)
        q, k, v = (w(x).view(b, n, self.heads, -1).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        mask = torch.full((n, n), float("-inf"), dtype=h.dtype).triu(1)
        y = ((q @ k.transpose(2, 3)) * self.scale + mask).softmax(-1) @ v
        h = h + self.wo(y.transpose(1, 2).reshape(b, n, -1))
        x = self.norm(h, self.weight2)
        h = h + self.down(functional.silu(self.gate(x)) * self.up(x))
        return functional.linear(h, self.embed.weight)


def _axial(m: Any, image: Tensor) -> Tensor:
    """Attention along rows, then along columns, with batch and space folded together."""
    x = m.a(image)
    b, c, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(b * h, w, c)
    rows = m.rows(rows, rows, rows, need_weights=False)[0].view(b, h, w, -1)
    columns = rows.permute(0, 2, 1, 3).reshape(b * w, h, -1)
    columns = m.columns(columns, columns, columns, need_weights=False)[0].view(b, w, h, -1)
    return m.b(x + columns.permute(0, 3, 2, 1))


def _mixer(m: Any, image: Tensor) -> Tensor:
    x = m.patch(image).flatten(2).transpose(1, 2)
    x = x + m.tokens_down(m.tokens_up(m.norm1(x).transpose(1, 2)).relu()).transpose(1, 2)
    return m.head((x + m.down(m.up(m.norm2(x)).relu())).mean(1))


def _spatial_gate(m: Any, x: Tensor) -> Tensor:
    """gMLP: one half gates the other along time."""
    u, v = functional.gelu(m.up(x)).chunk(2, -1)
    return m.down(u * m.space(m.norm(v).transpose(1, 2)).transpose(1, 2))


def _relative_shift(m: Any, x: Tensor) -> Tensor:
    """Transformer-XL: the scores of relative positions, shifted by padding and reshaping."""
    b, n, _ = x.shape
    q, k, v = (t.view(b, n, m.heads, -1).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
    relative = m.r(m.position[:n]).view(n, m.heads, -1).transpose(0, 1)
    content = (q + m.u[:, None]) @ k.transpose(-2, -1)
    place = functional.pad((q + m.w[:, None]) @ relative.transpose(-2, -1), (1, 0))
    place = place.view(b, m.heads, n + 1, n)[:, :, 1:].reshape(b, m.heads, n, n)
    y = ((content + place) * 0.5).softmax(-1) @ v
    return m.b(y.transpose(1, 2).reshape(b, n, -1))


def _encoder(**named: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True, **named)
    return nn.Sequential(nn.Linear(6, DIM), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
                         nn.Linear(DIM, 3))  # fmt: skip


def _decode(m: Any, x: Tensor, y: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1], dtype=y.dtype)
    return m.b(m.layer(m.a(y), m.c(x), tgt_mask=mask))


def _whole(m: Any, x: Tensor, y: Tensor) -> Tensor:
    return m.b(m.model(m.a(x), m.c(y)))


def _layer() -> nn.Module:
    return nn.TransformerDecoderLayer(DIM, HEADS, 24, batch_first=True, norm_first=True)


CASES: tuple[Architecture, ...] = (
    case("shifted windows", "attention", Windows, normal(3, 8, 8)),
    case("rotary halves", "attention", Rotary, ROWS),
    case("rotary pairs", "attention", lambda: Rotary(interleaved=True), ROWS),
    case("bucketed positions", "attention", Buckets, tokens(29, 5)),
    case("vision transformer", "attention", Vision, normal(3, 8, 8)),
    case("decoder with tied embeddings", "attention", Llama, tokens(29, 5)),
    case("axial", "attention", lambda: Net(_axial, a=nn.Conv2d(3, DIM, 1), rows=mha(batch_first=True),
         columns=mha(batch_first=True), b=nn.Conv2d(DIM, 3, 1)), normal(3, 4, 5)),
    case("mixer", "attention", lambda: Net(_mixer, patch=nn.Conv2d(3, DIM, 2, 2), norm1=nn.LayerNorm(DIM),
         norm2=nn.LayerNorm(DIM), tokens_up=nn.Linear(9, 12), tokens_down=nn.Linear(12, 9),
         up=nn.Linear(DIM, 32), down=nn.Linear(32, DIM), head=nn.Linear(DIM, 3)), normal(3, 6, 6)),
    case("spatial gate", "attention", lambda: Net(_spatial_gate, up=nn.Linear(6, 32), norm=nn.LayerNorm(16),
         space=nn.Linear(4, 4), down=nn.Linear(16, 3)), ROWS),
    case("relative shift", "attention", lambda: Net(_relative_shift, **with_heads(qkv=nn.Linear(DIM, 48),
         r=nn.Linear(6, DIM), position=parameter(9, 6), u=parameter(HEADS, 4), w=parameter(HEADS, 4))), WIDE),
    case("torch encoder", "attention", _encoder, ROWS),
    case("torch encoder pre-norm", "attention", lambda: _encoder(norm_first=True, activation="gelu"), ROWS),
    case("torch decoder", "attention", lambda: Net(_decode, a=nn.Linear(6, DIM), c=nn.Linear(5, DIM),
         layer=nn.TransformerDecoder(_layer(), 1), b=nn.Linear(DIM, 3)), normal(7, 5), ROWS),
    case("torch transformer", "attention", lambda: Net(_whole, a=nn.Linear(6, DIM), c=nn.Linear(5, DIM),
         model=nn.Transformer(DIM, HEADS, 1, 1, 24, batch_first=True), b=nn.Linear(DIM, 3)), ROWS,
         normal(7, 5)),
)  # fmt: skip
