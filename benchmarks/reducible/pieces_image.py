"""Pieces for images: (channels, height, width)."""

from __future__ import annotations

from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import weight_norm

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


def conv(random: Random, c: int, o: int) -> nn.Conv2d:
    """A convolution that keeps the size, in random groups."""
    k = random.choice((1, 3))
    return nn.Conv2d(c, o, k, padding=k // 2, groups=divisor(random, c, o), bias=random.random() < 0.7)


@piece("image")
@piece("image")
@piece("image")
def convolution(random: Random, c: int, h: int, w: int) -> Made:
    o = random.choice((c, width(random)))
    layer = conv(random, c, o)
    if random.random() < 0.15:
        layer = weight_norm(layer)
    return nn.Sequential(layer, act(random)), (o, h, w)


@piece("image")
def strided(random: Random, c: int, h: int, w: int) -> Made:
    if min(h, w) < 4:
        return None
    o = width(random)
    return nn.Conv2d(c, o, 3, 2, 1, groups=divisor(random, c, o)), (o, (h + 1) // 2, (w + 1) // 2)


@piece("image")
def depthwise(random: Random, c: int, h: int, w: int) -> Made:
    times = random.choice((1, 1, 2))
    return nn.Conv2d(c, c * times, 3, padding=1, groups=c), (c * times, h, w)


@piece("image")
def transposed(random: Random, c: int, h: int, w: int) -> Made:
    if h > 4:
        return None
    o = width(random)
    return nn.ConvTranspose2d(c, o, 2, 2, groups=divisor(random, c, o)), (o, 2 * h, 2 * w)


class ChannelsLast(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@piece("image")
@piece("image")
def norm(random: Random, c: int, h: int, w: int) -> Made:
    made = random.choice(
        (
            lambda: nn.BatchNorm2d(c),
            lambda: nn.BatchNorm2d(c, affine=False),
            lambda: nn.GroupNorm(divisor(random, c), c),
            lambda: nn.InstanceNorm2d(c, affine=True),
            lambda: ChannelsLast(nn.LayerNorm(c)),
            lambda: ChannelsLast(nn.RMSNorm(c)),
            lambda: nn.LocalResponseNorm(3),
        )
    )()
    return made, (c, h, w)


@piece("image")
def activation(random: Random, c: int, h: int, w: int) -> Made:
    return random.choice((act(random), nn.PReLU(c), ScaledBy(c, 2), nn.Dropout2d(0.3))), (c, h, w)


@piece("image")
def pool(random: Random, c: int, h: int, w: int) -> Made:
    if min(h, w) < 4:
        return None
    return random.choice((nn.MaxPool2d, nn.AvgPool2d))(2), (c, h // 2, w // 2)


@piece("image")
def resized(random: Random, c: int, h: int, w: int) -> Made:
    if h > 4:
        return nn.AdaptiveAvgPool2d((3, 2)), (c, 3, 2)
    mode = random.choice(("nearest", "bilinear"))
    return nn.Upsample(scale_factor=2, mode=mode), (c, 2 * h, 2 * w)


@piece("image")
def excited(random: Random, c: int, h: int, w: int) -> Made:
    inner = width(random)
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c, inner, 1), act(random), nn.Conv2d(inner, c, 1))
    if random.random() < 0.5:
        return net(lambda m, x: x * m.gate(x).sigmoid(), gate=gate), (c, h, w)
    down, up = nn.Linear(c, inner), nn.Linear(inner, c)
    return net(_linear_gate, down=down, up=up), (c, h, w)


def _linear_gate(m: Any, x: Tensor) -> Tensor:
    b, c, _, _ = x.shape
    return x * m.up(m.down(x.mean((2, 3))).relu()).view(b, c, 1, 1).sigmoid()


@piece("image")
def shuffled(random: Random, c: int, h: int, w: int) -> Made:
    groups = proper(random, c)
    if groups is None:
        return None
    if random.random() < 0.3:
        return nn.ChannelShuffle(groups), (c, h, w)
    return net(_shuffle, groups=groups), (c, h, w)


def _shuffle(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, m.groups, c // m.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


@piece("image")
def between_space_and_depth(random: Random, c: int, h: int, w: int) -> Made:
    if h % 2 == 0 and w % 2 == 0 and c <= 8:
        if random.random() < 0.5:
            return nn.PixelUnshuffle(2), (4 * c, h // 2, w // 2)
        return net(_focus), (4 * c, h // 2, w // 2)
    return (nn.PixelShuffle(2), (c // 4, 2 * h, 2 * w)) if c % 4 == 0 and c > 4 and h <= 4 else None


def _focus(m: Any, x: Tensor) -> Tensor:
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)


@piece("image")
@piece("image")
def residual(random: Random, c: int, h: int, w: int) -> Made:
    branches = [nn.Sequential(conv(random, c, n := width(random)), act(random), conv(random, n, c))
                for _ in range(random.choice((1, 1, 2)))]  # fmt: skip
    return Sum(branches, random.random() < 0.8), (c, h, w)


@piece("image")
def dense(random: Random, c: int, h: int, w: int) -> Made:
    sizes = [width(random) for _ in range(random.choice((1, 2)))]
    branches = [nn.Sequential(conv(random, c, n), act(random)) for n in sizes]
    shortcut = random.random() < 0.6
    return Cat(branches, 1, shortcut), (sum(sizes) + c * shortcut, h, w)


@piece("image")
def parted(random: Random, c: int, h: int, w: int) -> Made:
    cut = random.randrange(1, c)
    sizes = [cut, c - cut]
    outs = [width(random) if random.random() < 0.5 else n for n in sizes]
    ways = [conv(random, n, o) if o != n else random.choice((nn.Identity(), act(random), nn.BatchNorm2d(n)))
            for n, o in zip(sizes, outs, strict=True)]  # fmt: skip
    return Parts(sizes, ways, random.sample(range(2), 2), 1), (sum(outs), h, w)


@piece("image")
def scales(random: Random, c: int, h: int, w: int) -> Made:
    parts = proper(random, c)
    if parts is None or parts > 6:
        return None
    n = c // parts
    return net(_scales, works=nn.ModuleList(nn.Conv2d(n, n, 3, padding=1) for _ in range(parts - 1)), n=n), (
        c,
        h,
        w,
    )


def _scales(m: Any, x: Tensor) -> Tensor:
    first, *rest = x.split(m.n, 1)
    out = [first]
    for part, work in zip(rest, m.works, strict=True):
        out.append(work(part + out[-1]).relu())
    return torch.cat(out, 1)


@piece("image")
def gated(random: Random, c: int, h: int, w: int) -> Made:
    if c % 2 or c < 4:
        return None
    if random.random() < 0.5:
        return nn.GLU(1), (c // 2, h, w)
    return net(_gated), (c // 2, h, w)


def _gated(m: Any, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return left * functional.gelu(right)


@piece("image")
def shared(random: Random, c: int, h: int, w: int) -> Made:
    layer = nn.Conv2d(c, c, 3, padding=1, groups=divisor(random, c))
    return net(lambda m, x: m.layer(m.layer(x).relu()), layer=layer), (c, h, w)


@piece("image")
def einsum(random: Random, c: int, h: int, w: int) -> Made:
    o = width(random)
    spelling = random.choice(("bchw,co->bohw", "bchw,oc->bohw"))
    made = weight(c, o) if spelling.endswith("co->bohw") else weight(o, c)
    return net(lambda m, x: torch.einsum(m.spelling, x, m.weight), spelling=spelling, weight=made), (o, h, w)


@piece("image")
def pixels_attend(random: Random, c: int, h: int, w: int) -> Made:
    inner = width(random)
    q, k = (nn.Conv2d(c, inner, 1) for _ in range(2))
    return net(_attend, q=q, k=k, v=nn.Conv2d(c, c, 1)), (c, h, w)


def _attend(m: Any, x: Tensor) -> Tensor:
    q, k, v = (f(x).flatten(2) for f in (m.q, m.k, m.v))
    return x + (v @ (q.transpose(1, 2) @ k * 0.3).softmax(-1).transpose(1, 2)).view_as(x)


@piece("image")
def unfolded(random: Random, c: int, h: int, w: int) -> Made:
    o = width(random)
    return net(_unfolded, weight=weight(o, c, 3, 3)), (o, h, w)


def _unfolded(m: Any, x: Tensor) -> Tensor:
    columns = functional.unfold(x, 3, padding=1)
    return (m.weight.flatten(1) @ columns).view(len(x), -1, *x.shape[2:])


@piece("image")
def selected_kernels(random: Random, c: int, h: int, w: int) -> Made:
    works = nn.ModuleList(conv(random, c, c) for _ in range(2))
    return net(_select, works=works, down=nn.Linear(c, 4), up=nn.Linear(4, 2 * c)), (c, h, w)


def _select(m: Any, x: Tensor) -> Tensor:
    branches = torch.stack([work(x) for work in m.works], 1)
    gates = m.up(m.down(branches.sum(1).mean((2, 3))).relu())
    gates = gates.view(len(x), 2, -1, 1, 1).softmax(1)
    return (branches * gates).sum(1)


@piece("image")
def whole(random: Random, c: int, h: int, w: int) -> Made:
    found, n = across(random, c, 1)
    return found, (n, h, w)


@piece("image")
def grouped(random: Random, c: int, h: int, w: int) -> Made:
    groups = proper(random, c)
    return None if groups is None else (Grouped(random, c, groups, 1), (c, h, w))


@piece("image")
def moved_in_space(random: Random, c: int, h: int, w: int) -> Made:
    run = random.choice((lambda m, x: x.roll((1, 1), (2, 3)), lambda m, x: x.flip(3), _turned))
    return net(run), (c, w, h) if run is _turned else (c, h, w)


def _turned(m: Any, x: Tensor) -> Tensor:
    return x.transpose(2, 3)


@piece("image")
def to_rows(random: Random, c: int, h: int, w: int) -> Made:
    if random.random() < 0.5:
        return net(lambda m, x: x.flatten(2).transpose(1, 2)), (h * w, c)
    return net(_columns), (w, c * h)


def _columns(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.permute(0, 3, 1, 2).reshape(b, w, c * h)


@piece("image")
def to_vector(random: Random, c: int, h: int, w: int) -> Made:
    if random.random() < 0.5:
        return nn.Sequential(random.choice((nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d))(1), nn.Flatten()), (
            c,
        )
    if random.random() < 0.5:
        return nn.Flatten(), (c * h * w,)
    return net(lambda m, x: x.permute(0, 2, 3, 1).flatten(1)), (c * h * w,)
