"""Convolutional networks whose weights are computed, or whose channels and places are handled unusually."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm

from reducible.architecture import Architecture
from reducible.edge_conv import IMAGE, SMALL, between, conv
from reducible.hand import Net, buffered, case, normal, parameter


def _standardized(m: Any, x: Tensor) -> Tensor:
    """Weight standardization by batch norm over a reshaped weight, as NFNet does."""
    w = m.weight
    w = functional.batch_norm(w.reshape(1, len(w), -1), None, None, m.gain, None, True, 0.0, 1e-6)
    return m.b(functional.conv2d(m.a(x).relu(), w.reshape_as(m.weight), padding=1).relu())


def _standardized_by_hand(m: Any, x: Tensor) -> Tensor:
    w = m.weight
    mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True)
    w = (w - mean) / (var + 1e-6).sqrt()
    return m.b(functional.conv2d(m.a(x).relu(), w, padding=1).relu())


def _standardized_with_pairs(m: Any, x: Tensor) -> Tensor:
    var, mean = torch.var_mean(m.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
    return m.b(
        functional.conv2d(m.a(x).relu(), (m.weight - mean) * torch.rsqrt(var + 1e-6), padding=1).relu()
    )


def _across_channels(m: Any, x: Tensor) -> Tensor:
    """ECA: a small convolution over the channels as a sequence."""
    h = m.a(x)
    gate = m.over(h.mean((2, 3)).unsqueeze(1)).squeeze(1).sigmoid()
    return m.b(h * gate[:, :, None, None])


def _expert_kernels(m: Any, x: Tensor) -> Tensor:
    """CondConv: every sample mixes its own kernel; one grouped convolution for the whole batch."""
    h = m.a(x)
    b, c, high, wide = h.shape
    route = m.route(h.mean((2, 3))).softmax(-1)
    weight = torch.einsum("be,eoikl->boikl", route, m.experts).reshape(-1, c, 3, 3)
    y = functional.conv2d(h.reshape(1, b * c, high, wide), weight, padding=1, groups=b)
    return m.b(y.view(b, -1, high, wide).relu())


def _modulated(m: Any, x: Tensor) -> Tensor:
    """StyleGAN2: weights scaled by a style and divided by their norm, grouped over the batch."""
    h = m.a(x)
    b, _, high, wide = h.shape
    weight = m.weight[None] * m.style(h.mean((2, 3)))[:, None, :, None, None]
    weight = weight * torch.rsqrt(weight.pow(2).sum((2, 3, 4), keepdim=True) + 1e-8)
    y = functional.conv2d(h.view(1, -1, high, wide), weight.flatten(0, 1), padding=1, groups=b)
    return m.b(y.view(b, -1, high, wide))


def _involution(m: Any, x: Tensor) -> Tensor:
    """Kernels made from the input, shared in groups of channels, over unfolded patches."""
    h = m.a(x)
    b, c, high, wide = h.shape
    weight = m.span(m.reduce(h).relu()).view(b, m.groups, 9, high, wide).unsqueeze(2)
    patches = functional.unfold(h, 3, padding=1).view(b, m.groups, c // m.groups, 9, high, wide)
    return m.b((weight * patches).sum(3).view(b, c, high, wide))


def _unfolded(m: Any, x: Tensor) -> Tensor:
    """A convolution as unfold and a matrix product."""
    h = m.a(x).relu()
    return m.b((m.weight.flatten(1) @ functional.unfold(h, 3, padding=1)).unflatten(-1, h.shape[-2:]))


def _folded(m: Any, x: Tensor) -> Tensor:
    """Patches are worked on and put back where they came from."""
    h = m.a(x)
    patches = functional.unfold(h, 2, stride=2).transpose(1, 2)
    patches = m.down(m.up(patches).relu()).transpose(1, 2)
    return m.b(functional.fold(patches, h.shape[-2:], 2, stride=2))


def _blurred(m: Any, x: Tensor) -> Tensor:
    """A fixed kernel in a buffer, repeated for every channel."""
    h = m.a(x).relu()
    return m.b(functional.conv2d(h, m.kernel.repeat(h.shape[1], 1, 1, 1), stride=2, groups=h.shape[1]))


def _film(m: Any, x: Tensor, condition: Tensor) -> Tensor:
    scale, shift = m.condition(condition)[..., None, None].chunk(2, 1)
    return m.b((functional.instance_norm(m.a(x)) * (1 + scale) + shift).relu())


def _spatially_adaptive(m: Any, x: Tensor) -> Tensor:
    h = m.n(m.a(x))
    seg = m.shared(functional.interpolate(x, h.shape[2:])).relu()
    return m.b(h * (1 + m.gamma(seg)) + m.beta(seg))


def _style(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The Gram matrix of inner features is an output, by way of a projection."""
    h = m.a(x).relu()
    flat = m.p(h).flatten(2)
    return m.b(h), torch.bmm(flat, flat.transpose(1, 2))


def _cross_correlated(m: Any, x: Tensor) -> Tensor:
    """SiamFC: one half of the image is the kernel that is searched for in the other."""
    template, search = m.a(x[..., :3, :3]), m.a(x)
    b, c, h, w = search.shape
    y = functional.conv2d(search.reshape(1, b * c, h, w), template, groups=b)
    return m.b(y.view(b, -1))


def _quantized_softmax(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).softmax(1) * 3)


def _generator(m: Any, noise: Tensor) -> Tensor:
    h = m.l(noise).view(-1, m.width, 2, 2)
    return m.c2(m.n(m.c1(h)).relu()).tanh()


def _reparametrized(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b((m.n0(h) + m.n1(m.c1(h)) + m.n3(m.c3(h))).relu())


def _two(make: Any, *parts: nn.Module) -> nn.Module:
    return nn.Sequential(*(make(p) if isinstance(p, nn.Conv2d) else p for p in parts))


CASES: tuple[Architecture, ...] = (
    case("hooked weight norm", "convolution", lambda: _two(hooked_weight_norm, conv(3, 8), nn.ReLU(),
         conv(8, 8, 3), conv(8, 2)), SMALL),
    case("parametrized weight norm", "convolution", lambda: _two(parametrizations.weight_norm, conv(3, 8),
         nn.ReLU(), conv(8, 8, 3), conv(8, 2)), SMALL),
    case("hooked spectral norm", "convolution", lambda: nn.Sequential(conv(3, 8), nn.ReLU(),
         hooked_spectral_norm(conv(8, 8, 3)), nn.ReLU(), conv(8, 2)), SMALL),
    case("parametrized spectral norm", "convolution", lambda: nn.Sequential(conv(3, 8), nn.ReLU(),
         parametrizations.spectral_norm(conv(8, 8, 3)), nn.ReLU(), conv(8, 2)), SMALL),
    case("orthogonal", "convolution", lambda: nn.Sequential(nn.Linear(6, 12), nn.ReLU(),
         parametrizations.orthogonal(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 3)), normal(6)),
    case("weight standardization", "convolution", lambda: Net(_standardized, a=conv(3, 8),
         weight=parameter(6, 8, 3, 3), gain=parameter(6), b=conv(6, 2)), SMALL),
    case("weight standardization by hand", "convolution", lambda: Net(_standardized_by_hand, a=conv(3, 8),
         weight=parameter(6, 8, 3, 3), b=conv(6, 2)), SMALL),
    case("weight standardization in one call", "convolution", lambda: Net(_standardized_with_pairs,
         a=conv(3, 8), weight=parameter(6, 8, 3, 3), b=conv(6, 2)), SMALL),
    case("convolution over channels", "convolution", lambda: Net(_across_channels, a=conv(3, 8),
         over=nn.Conv1d(1, 1, 3, padding=1, bias=False), b=nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 2))),
         SMALL),
    case("expert kernels", "convolution", lambda: Net(_expert_kernels, a=conv(3, 8), route=nn.Linear(8, 3),
         experts=parameter(3, 6, 8, 3, 3), b=conv(6, 2)), SMALL),
    case("modulated kernels", "convolution", lambda: Net(_modulated, a=conv(3, 8), style=nn.Linear(8, 8),
         weight=parameter(6, 8, 3, 3), b=conv(6, 2)), SMALL),
    case("involution", "convolution", lambda: Net(_involution, a=conv(3, 8), groups=2, reduce=conv(8, 4),
         span=conv(4, 18), b=conv(8, 2)), SMALL),
    case("unfold", "convolution", lambda: Net(_unfolded, a=conv(3, 8), weight=parameter(6, 8, 3, 3),
         b=conv(6, 2)), SMALL),
    case("fold", "convolution", lambda: Net(_folded, a=conv(3, 4), up=nn.Linear(16, 20),
         down=nn.Linear(20, 16), b=conv(4, 2)), SMALL),
    case("fixed blur", "convolution", lambda: buffered(Net(_blurred, a=conv(3, 8), b=conv(8, 2)),
         kernel=torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16), SMALL),
    case("feature-wise modulation", "convolution", lambda: Net(_film, a=conv(3, 8),
         condition=nn.Linear(5, 16), b=conv(8, 2)), SMALL, normal(5)),
    case("spatially adaptive norm", "convolution", lambda: Net(_spatially_adaptive, a=conv(3, 8, 3, stride=2),
         n=nn.BatchNorm2d(8, affine=False), shared=conv(3, 6), gamma=conv(6, 8), beta=conv(6, 8),
         b=conv(8, 2)), IMAGE),
    case("gram matrix returned", "convolution", lambda: Net(_style, a=conv(3, 8), p=conv(8, 4),
         b=conv(8, 2)), SMALL),
    case("searched for in itself", "convolution", lambda: Net(_cross_correlated, a=conv(3, 8),
         b=nn.Linear(16, 2)), SMALL),
    case("softmax over channels", "convolution", lambda: Net(_quantized_softmax, a=conv(3, 8),
         b=nn.Sequential(conv(8, 6), nn.ReLU(), conv(6, 2))), SMALL),
    case("generator", "convolution", lambda: Net(_generator, l=nn.Linear(6, 32), width=8, n=nn.BatchNorm2d(6),
         c1=nn.ConvTranspose2d(8, 6, 4, 2, 1), c2=nn.ConvTranspose2d(6, 3, 4, 2, 1)), normal(6)),
    case("three branches before merging", "convolution", lambda: Net(_reparametrized, a=conv(3, 8),
         n0=nn.BatchNorm2d(8), n1=nn.BatchNorm2d(8), n3=nn.BatchNorm2d(8), c1=conv(8, 8), c3=conv(8, 8, 3),
         b=conv(8, 2)), SMALL),
    case("group norm with odd groups", "convolution", lambda: between(nn.Sequential(nn.GroupNorm(1, 8),
         conv(8, 15), nn.GroupNorm(3, 15), nn.GELU(), conv(15, 9), nn.GroupNorm(9, 9)), 9), SMALL),
    case("instance norm", "convolution", lambda: between(nn.Sequential(nn.InstanceNorm2d(8, affine=True),
         nn.ELU(), nn.InstanceNorm2d(8, track_running_stats=True))), SMALL),
    case("local response norm", "convolution", lambda: between(nn.Sequential(nn.LocalResponseNorm(3),
         conv(8, 12), nn.ReLU(), conv(12, 8))), SMALL),
    case("max unpooling", "convolution", lambda: Net(lambda m, x: m.b(functional.max_unpool2d(
         *functional.max_pool2d_with_indices(m.a(x), 2), 2)), a=conv(3, 8), b=conv(8, 2)), SMALL),
    case("bicubic and area resizing", "convolution", lambda: Net(lambda m, x: m.b(functional.interpolate(
         functional.interpolate(m.a(x), scale_factor=2.0, mode="bicubic"), size=4, mode="area")),
         a=conv(3, 8), b=conv(8, 2)), SMALL),
    case("grid sampling", "convolution", lambda: Net(lambda m, x: m.b(functional.grid_sample(m.a(x),
         m.g(x).tanh().permute(0, 2, 3, 1), align_corners=False)), a=conv(3, 8), g=conv(3, 2),
         b=conv(8, 2)), SMALL),
    case("spatial transformer", "convolution", lambda: Net(lambda m, x: m.b(functional.grid_sample(m.a(x),
         functional.affine_grid(m.t(m.l(x.mean((2, 3))).relu()).view(-1, 2, 3), x.shape,
         align_corners=False), align_corners=False)), a=conv(3, 8), l=nn.Linear(3, 8), t=nn.Linear(8, 6),
         b=conv(8, 2)), SMALL),
)  # fmt: skip
