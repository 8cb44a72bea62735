"""Convolutional networks: shuffles, gates, trees of parts, shortcuts, and weights that are computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.hand import Net, case, normal, parameter


def conv(i: int, o: int, k: int = 1, **named: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, k, padding=k // 2, **named)


class Bottleneck(nn.Module):
    """A grouped bottleneck with a shortcut that may be projected."""

    def __init__(self, inputs: int, width: int, outputs: int, groups: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, groups=groups, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, outputs, bias=False), nn.BatchNorm2d(outputs)
        self.short = None if inputs == outputs else conv(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu_())).relu_()
        return (self.bn3(self.conv3(h)) + (x if self.short is None else self.short(x))).relu()


def shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def _shuffled_groups(m: Any, x: Tensor) -> Tensor:
    return m.b(shuffle(m.a(x).relu(), m.groups))


def _shuffle_unit(m: Any, x: Tensor) -> Tensor:
    """ShuffleNet v2: half passes, half works, both are mixed; twice."""
    h = m.a(x)
    for work in m.works:
        left, right = h.chunk(2, 1)
        h = shuffle(torch.cat([left, work(right)], 1), 2)
    return m.b(h)


def _shuffle_unit_works() -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8, 3, groups=8), conv(8, 8)) for _ in range(2)
    )


def _focus(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    parts = [h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]]
    return m.b(torch.cat(parts, 1))


def _space_to_depth(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    n, c, high, wide = h.size()
    h = h.view(n, c, high // 2, 2, wide // 2, 2).permute(0, 3, 5, 1, 2, 4).contiguous()
    return m.b(h.view(n, c * 4, high // 2, wide // 2))


def _patch_merging(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).permute(0, 2, 3, 1)
    h = torch.cat([h[:, 0::2, 0::2], h[:, 1::2, 0::2], h[:, 0::2, 1::2], h[:, 1::2, 1::2]], -1)
    return m.b(m.n(h)).mean((1, 2))


def _flattened(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.flatten(functional.max_pool2d(m.a(x).relu(), 2), 1))


def _flattened_last(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).permute(0, 2, 3, 1).flatten(1))


def _stages(m: Any, x: Tensor) -> Tensor:
    """CSP: one part skips the blocks, everything is collected and mixed."""
    left, right = m.a(x).split(8, dim=1)
    y = [left, right]
    for block in m.blocks:
        y.append(block(y[-1]).relu())
    return m.b(torch.cat(y, 1))


def _tree(m: Any, x: Tensor) -> Tensor:
    """Parts of parts, joined in another order."""
    one, two = m.a(x).chunk(2, 1)
    three, four = two.chunk(2, 1)
    joined = torch.cat([four, torch.cat([one, three.relu()], 1)], 1)
    return m.b(joined[:, 2:])


def _scales(m: Any, x: Tensor) -> Tensor:
    """Res2Net: every part of the channels is fed the part before."""
    parts = torch.split(m.a(x).relu(), m.width, 1)
    out = [parts[0]]
    for part, work in zip(parts[1:], m.works, strict=True):
        out.append(work(part + out[-1] if len(out) > 1 else part).relu())
    return m.b(torch.cat(out, 1))


def _excited(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    b, c, _, _ = h.size()
    gate = m.up(m.down(functional.adaptive_avg_pool2d(h, 1).view(b, c)).relu()).sigmoid()
    return m.b(h * gate.view(b, c, 1, 1).expand_as(h))


def _dense(m: Any, x: Tensor) -> Tensor:
    features = [m.a(x)]
    for norm, layer in zip(m.norms, m.layers, strict=True):
        features.append(layer(norm(torch.cat(features, 1)).relu()))
    return m.b(torch.cat(features, 1))


class UNet(nn.Module):
    """Down, up by transposed convolution, skips by concatenation."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.enter, self.down = conv(3, width, 3), conv(width, 2 * width, 3)
        self.deep = conv(2 * width, 4 * width, 3)
        self.up1, self.mix1 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2), conv(4 * width, 2 * width, 3)
        self.up2, self.mix2 = nn.ConvTranspose2d(2 * width, width, 2, 2), conv(2 * width, width, 3)
        self.out = conv(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.enter(x).relu()
        two = self.down(functional.max_pool2d(one, 2)).relu()
        three = self.deep(functional.max_pool2d(two, 2)).relu()
        two = self.mix1(torch.cat([two, self.up1(three)], 1)).relu()
        return self.out(self.mix2(torch.cat([one, self.up2(two)], 1)).relu())


def _pyramid(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """FPN: lateral projections, resized and added, heads shared between levels."""
    fine = m.a(x).relu()
    coarse = m.d(fine).relu()
    top = m.lateral2(coarse)
    low = m.lateral1(fine) + functional.interpolate(top, size=fine.shape[-2:], mode="nearest")
    return m.head(top), m.head(low)


def _atrous(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).relu()
    pooled = functional.interpolate(m.pooled(h.mean((2, 3), True)), h.shape[2:], mode="bilinear")
    return m.b(torch.cat([*(branch(h) for branch in m.branches), pooled], 1))


def _two_attentions(m: Any, x: Tensor) -> Tensor:
    """CBAM: a gate for channels from mean and maximum, a gate for places from both over channels."""
    h = m.a(x)
    gate = m.up(m.down(h.mean((2, 3), True)).relu()) + m.up(m.down(h.amax((2, 3), True)).relu())
    h = h * gate.sigmoid()
    return m.b(h * m.place(torch.cat([h.mean(1, True), h.max(1, True)[0]], 1)).sigmoid())


def _selected_kernels(m: Any, x: Tensor) -> Tensor:
    """SK: a softmax over branches for every channel."""
    h = m.a(x)
    branches = torch.stack([m.small(h), m.large(h)], 1)
    b, k, c = branches.shape[:3]
    weights = m.up(m.down(branches.sum(1).mean((2, 3))).relu()).view(b, k, c).softmax(1)
    return m.b((branches * weights[..., None, None]).sum(1))


def _split_attention(m: Any, x: Tensor) -> Tensor:
    """ResNeSt: radix groups, a softmax over them, written with reshapes."""
    h = m.a(x)
    b, rc = h.shape[:2]
    h = h.reshape(b, m.radix, rc // m.radix, *h.shape[2:])
    gap = h.sum(1).mean((2, 3), keepdim=True)
    weights = m.up(m.down(gap).relu()).view(b, 1, m.radix, -1).transpose(1, 2).softmax(1)
    return m.b((h * weights.reshape(b, m.radix, rc // m.radix, 1, 1)).sum(1))


def _non_local(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    b = len(h)
    q, k, v = m.q(h).flatten(2), m.k(h).flatten(2), m.v(h).flatten(2)
    weights = torch.bmm(q.transpose(1, 2), k).softmax(-1)
    y = torch.bmm(v, weights.transpose(1, 2)).view(b, -1, *h.shape[2:])
    return m.b(h + m.o(y))


def _octave(m: Any, x: Tensor) -> Tensor:
    high, low = m.h(x).relu(), m.l(functional.avg_pool2d(x, 2)).relu()
    fine = m.hh(high) + functional.interpolate(m.lh(low), scale_factor=2)
    coarse = m.ll(low) + m.hl(functional.avg_pool2d(high, 2))
    return m.b(torch.cat([fine, functional.interpolate(coarse, scale_factor=2)], 1))


def _coordinates(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    rows = torch.linspace(-1, 1, h.shape[2], dtype=h.dtype)[:, None].expand(len(h), 1, -1, h.shape[3])
    return m.b(torch.cat([h, rows, rows.transpose(2, 3)], 1))


def _shifted_in_time(m: Any, x: Tensor) -> Tensor:
    """TSM: an eighth of the channels comes from the frame before, one from the next."""
    frames, n = m.a(x.flatten(0, 1)).unflatten(0, x.shape[:2]), 0
    n = frames.shape[2] // 8
    out = torch.zeros_like(frames)
    out[:, :-1, :n] = frames[:, 1:, :n]
    out[:, 1:, n : 2 * n] = frames[:, :-1, n : 2 * n]
    out[:, :, 2 * n :] = frames[:, :, 2 * n :]
    return m.b(out.mean(1))


def _wavenet(m: Any, x: Tensor) -> Tensor:
    h, skips = m.a(x), 0
    for gate, filter_, out, skip in m.layers:
        z = torch.tanh(filter_(h)) * torch.sigmoid(gate(h))
        skips = skips + skip(z)
        h = h[..., -z.shape[-1] :] + out(z)
    return m.b(functional.relu(skips))


def _wavenet_layers() -> nn.ModuleList:
    return nn.ModuleList(
        nn.ModuleList([nn.Conv1d(8, 12, 3, dilation=d, padding="same"), nn.Conv1d(8, 12, 3, dilation=d,
                      padding="same"), nn.Conv1d(12, 8, 1), nn.Conv1d(12, 10, 1)]) for d in (1, 2)
    )  # fmt: skip


def _inverted(o: int = 12) -> nn.Module:
    return nn.Sequential(conv(8, o), nn.BatchNorm2d(o), nn.ReLU6(), conv(o, o, 3, groups=o),
                         nn.BatchNorm2d(o), nn.Hardswish(), conv(o, 8))  # fmt: skip


def _ghost(m: Any, x: Tensor) -> Tensor:
    primary = m.a(x).relu()
    return m.b(torch.cat([primary, m.cheap(primary)], 1)[:, : m.keep])


def _next_block(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    y = m.down(functional.gelu(m.up(m.n(m.depth(h).permute(0, 2, 3, 1))))) * m.gamma
    return m.b(h + y.permute(0, 3, 1, 2))


def between(inner: nn.Module, o: int = 8) -> nn.Module:
    return nn.Sequential(conv(3, 8), inner, conv(o, 2))


IMAGE, SMALL = normal(3, 8, 8), normal(3, 6, 6)


CASES: tuple[Architecture, ...] = (
    case("bottlenecks", "convolution", lambda: nn.Sequential(Bottleneck(3, 6, 12), Bottleneck(12, 8, 12),
         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)), IMAGE),
    case("grouped bottlenecks", "convolution", lambda: nn.Sequential(Bottleneck(3, 8, 12, 4),
         Bottleneck(12, 8, 12, 2), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(12, 4)), IMAGE),
    case("shuffled groups", "convolution", lambda: Net(_shuffled_groups, a=conv(3, 16), groups=4,
         b=conv(16, 8, 3, groups=4)), SMALL),
    case("shuffled into other groups", "convolution", lambda: nn.Sequential(Net(_shuffled_groups,
         a=conv(3, 12), groups=3, b=conv(12, 6, 3, groups=3)), nn.ReLU(), conv(6, 3)), SMALL),
    case("shuffle units", "convolution", lambda: Net(_shuffle_unit, a=conv(3, 16),
         works=_shuffle_unit_works(), b=conv(16, 2)), SMALL),
    case("torch channel shuffle", "convolution", lambda: nn.Sequential(conv(3, 8), nn.ChannelShuffle(4),
         conv(8, 8, 3, groups=2), conv(8, 2)), SMALL),
    case("pixel shuffle", "convolution", lambda: nn.Sequential(conv(3, 24, 3), nn.PixelShuffle(2),
         nn.PReLU(6), conv(6, 3)), SMALL),
    case("pixel unshuffle", "convolution", lambda: nn.Sequential(conv(3, 4), nn.PixelUnshuffle(2),
         conv(16, 8, groups=4), conv(8, 2)), SMALL),
    case("focus", "convolution", lambda: Net(_focus, a=conv(3, 8), b=conv(32, 4)), SMALL),
    case("space to depth", "convolution", lambda: Net(_space_to_depth, a=conv(3, 8), b=conv(32, 4)), SMALL),
    case("patch merging", "convolution", lambda: Net(_patch_merging, a=conv(3, 8), n=nn.LayerNorm(32),
         b=nn.Linear(32, 4)), SMALL),
    case("flatten", "convolution", lambda: Net(_flattened, a=conv(3, 8), b=nn.Linear(8 * 9, 4)), SMALL),
    case("flatten with channels last", "convolution", lambda: Net(_flattened_last, a=conv(3, 8),
         b=nn.Linear(8 * 36, 4)), SMALL),
    case("cross stage", "convolution", lambda: Net(_stages, a=conv(3, 16),
         blocks=nn.ModuleList(conv(8, 8, 3) for _ in range(2)), b=conv(32, 3)), SMALL),
    case("tree of parts", "convolution", lambda: Net(_tree, a=conv(3, 16), b=conv(14, 3)), SMALL),
    case("scales within a layer", "convolution", lambda: Net(_scales, a=conv(3, 16), width=4,
         works=nn.ModuleList(conv(4, 4, 3) for _ in range(3)), b=conv(16, 3)), SMALL),
    case("squeeze and excite", "convolution", lambda: Net(_excited, a=conv(3, 8), down=nn.Linear(8, 4),
         up=nn.Linear(4, 8), b=conv(8, 3)), SMALL),
    case("dense block", "convolution", lambda: Net(_dense, a=conv(3, 8), b=conv(20, 3),
         norms=nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3)),
         layers=nn.ModuleList(conv(8 + 4 * i, 4, 3) for i in range(3))), SMALL),
    case("u-net", "convolution", UNet, IMAGE),
    case("feature pyramid", "convolution", lambda: Net(_pyramid, a=conv(3, 8), d=conv(8, 12, 3, stride=2),
         lateral1=conv(8, 6), lateral2=conv(12, 6), head=conv(6, 4, 3)), IMAGE),
    case("atrous pyramid", "convolution", lambda: Net(_atrous, a=conv(3, 8), pooled=conv(8, 6),
         branches=nn.ModuleList(nn.Conv2d(8, 6, 3, padding=d, dilation=d) for d in (1, 2)),
         b=conv(18, 2)), IMAGE),
    case("transposed", "convolution", lambda: between(nn.ConvTranspose2d(8, 6, 3, 2, 1, 1), 6), SMALL),
    case("grouped transposed", "convolution", lambda: between(nn.ConvTranspose2d(8, 12, 2, groups=4), 12),
         SMALL),
    case("depthwise multiplier", "convolution", lambda: between(conv(8, 24, 3, groups=8), 24), SMALL),
    case("grouped wider", "convolution", lambda: between(conv(8, 12, 3, groups=2), 12), SMALL),
    case("inverted residual", "convolution", lambda: between(_inverted()), SMALL),
    case("channel and place attention", "convolution", lambda: Net(_two_attentions, a=conv(3, 8),
         down=conv(8, 4), up=conv(4, 8), place=conv(2, 1, 3), b=conv(8, 2)), SMALL),
    case("selected kernels", "convolution", lambda: Net(_selected_kernels, a=conv(3, 8), small=conv(8, 8, 3),
         large=conv(8, 8, 5), down=nn.Linear(8, 4), up=nn.Linear(4, 16), b=conv(8, 2)), SMALL),
    case("split attention", "convolution", lambda: Net(_split_attention, a=conv(3, 16), radix=2,
         down=conv(8, 4), up=conv(4, 16), b=conv(8, 2)), SMALL),
    case("non-local", "convolution", lambda: Net(_non_local, a=conv(3, 8), q=conv(8, 4), k=conv(8, 4),
         v=conv(8, 4), o=conv(4, 8), b=conv(8, 2)), SMALL),
    case("octave", "convolution", lambda: Net(_octave, h=conv(3, 8), l=conv(3, 6), hh=conv(8, 8),
         lh=conv(6, 8), ll=conv(6, 6), hl=conv(8, 6), b=conv(14, 2)), SMALL),
    case("coordinates", "convolution", lambda: Net(_coordinates, a=conv(3, 8), b=conv(10, 2)), SMALL),
    case("shift in time", "convolution", lambda: Net(_shifted_in_time, a=conv(3, 16), b=conv(16, 2)),
         normal(4, 3, 5, 5)),
    case("wavenet", "convolution", lambda: Net(_wavenet, a=nn.Conv1d(1, 8, 1), layers=_wavenet_layers(),
         b=nn.Conv1d(10, 4, 1)), normal(1, 12)),
    case("ghost", "convolution", lambda: Net(_ghost, a=conv(3, 8), cheap=conv(8, 8, 3, groups=8), keep=12,
         b=conv(12, 2)), SMALL),
    case("next block", "convolution", lambda: Net(_next_block, a=conv(3, 8), depth=conv(8, 8, 3, groups=8),
         n=nn.LayerNorm(8), up=nn.Linear(8, 16), down=nn.Linear(16, 8), gamma=parameter(8), b=conv(8, 2)),
         SMALL),
    case("video", "convolution", lambda: nn.Sequential(nn.Conv3d(3, 8, 3, padding=1), nn.BatchNorm3d(8),
         nn.ReLU(), nn.Conv3d(8, 8, (3, 1, 1), groups=4), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
         nn.Linear(8, 3)), normal(3, 4, 5, 5)),
)  # fmt: skip
