"""Operators that look across channels, move them, or write to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.edge_sizes import ROW, ROWS, a, net
from reducible.hand import Net, case, parameter


def _through_numpy(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(torch.from_numpy(h.detach().numpy() * 2)).relu())


def _sorted(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).sort(-1).values).relu())


def _accumulated(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).cumsum(-1)).relu())


def _flipped(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h + h.flip(-1)).relu())


def _flipped_branch(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x) + m.d(x).flip(-1)).relu())


def _rolled(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).roll(1, -1)).relu())


def _best_channels(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).topk(4, -1).values).relu())


def _best_channel(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h * (h.argmax(-1, keepdim=True) > 3)).relu())


def _positive_only(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h[h < 0] = 0.1
    return m.b(m.c(h).relu())


def _written_by_mask(m: Any, x: Tensor) -> Tensor:
    h, other = m.a(x), m.d(x)
    rows = x[:, 0] > 0
    h[rows] = other[rows]
    return m.b(m.c(h).relu())


def _written_by_index(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    h[:, torch.tensor([0, 2])] = 0.5
    return m.b(m.c(h).relu())


def _halves_written(m: Any, x: Tensor) -> Tensor:
    y = x.new_zeros(len(x), 16)
    y[:, : m.half] = m.a(x)
    y[:, m.half :] = m.d(x)
    return m.b(m.c(y).relu())


def _ordered_by_index(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x)[:, m.order]).relu())


def _selected(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(torch.index_select(m.a(x), 1, m.order[:5])).relu())


def _gathered(m: Any, x: Tensor) -> Tensor:
    """A row for every sample, channels pass."""
    h = m.a(x)
    best = m.s(h).argmax(1, keepdim=True).expand(-1, 1, h.shape[-1])
    return m.b(m.c(h.gather(1, best).squeeze(1)).relu())


def _scattered(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    index = torch.tensor([1, 0, 1, 2, 0])[None, :, None].expand_as(h)
    return m.b(torch.zeros(len(h), 3, h.shape[-1], dtype=h.dtype).scatter_add_(1, index, h).relu())


def _averaged_by_index(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    index = torch.tensor([1, 0, 1, 2, 0])[None, :, None].expand_as(h)
    return m.b(h.new_zeros(len(h), 3, h.shape[-1]).scatter_reduce(1, index, h, "amax").relu())


def _fourier(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(torch.fft.rfft(m.a(x)).abs()).relu())


def _fourier_mixing(m: Any, x: Tensor) -> Tensor:
    """FNet: a transform over time and channels; what comes after can be cut."""
    h = m.a(x)
    h = h + torch.fft.fft(torch.fft.fft(h, dim=-1), dim=-2).real
    return m.b(m.c(h).relu())


def _bilinear(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).relu(), m.d(x).relu()).relu())


def _distances(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h).relu()).mean(1) + torch.cdist(h, h).mean((1, 2))[:, None]


def _normalized(m: Any, x: Tensor) -> Tensor:
    h = functional.normalize(m.a(x), dim=-1)
    return functional.cosine_similarity(m.c(h), m.d(h), dim=-1)


def _outer(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(torch.einsum("bi,bj->bij", h, h.relu()).flatten(1))


def _kronecker(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.stack([torch.kron(r, s) for r, s in zip(m.a(x), m.d(x), strict=True)]))


def _tiled(m: Any, x: Tensor) -> Tensor:
    return m.b(torch.tile(m.a(x), (1, 2)).relu())


def _each_repeated(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).repeat_interleave(2, -1).relu())


def _windows_of_time(m: Any, x: Tensor) -> Tensor:
    h = m.a(x).unfold(1, 3, 1)
    return m.b(torch.einsum("bnck,ock->bno", h, m.kernel).relu())


def _windows_of_channels(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).unfold(-1, 4, 4).flatten(1)).relu())


def _einsum_spellings(m: Any, x: Tensor) -> Tensor:
    h = torch.einsum("b n i, i o -> b n o", x, m.one)
    h = torch.einsum("...i,oi", h, m.two).relu()
    scores = torch.einsum("bid,bjd->bij", h, h)
    mixed = torch.einsum("bij,bjd->bid", scores.softmax(-1), h)
    return m.b(torch.einsum("bid,d->bid", mixed, m.scale))


def _matmul_spellings(m: Any, x: Tensor) -> Tensor:
    h = torch.addmm(m.bias, x, m.one)
    h = torch.matmul(h.unsqueeze(1), m.two.T).squeeze(1)
    h = h + torch.mv(m.two, m.bias)
    return m.b(torch.tensordot(h.relu(), m.three, dims=([1], [0])))


def _diagonal(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h @ torch.diag(m.scale)).relu())


def _quantiles(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h.clamp(max=h.quantile(0.9, -1, keepdim=True))).relu())


def _median(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    low, high = torch.aminmax(h, dim=1, keepdim=True)
    return m.b(m.c((h - low) / (high - low + 1e-3) - h.median(1, keepdim=True).values).relu())


def _spread(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    spread, mean = torch.std_mean(h, -1, keepdim=True)
    return m.b(m.c((h - mean) / (spread + 1e-3)).relu())


def _strides(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    even, odd = h[:, ::2], h[:, 1::2]
    return m.b(m.c(torch.stack([even, odd], -1).flatten(1)).relu())


def _complex_pairs(m: Any, x: Tensor) -> Tensor:
    h = torch.view_as_complex(m.a(x).unflatten(-1, (-1, 2)))
    return m.b(torch.view_as_real(h * m.phase.exp()).flatten(-2).relu())


def _renamed(m: Any, x: Tensor) -> Tensor:
    """movedim, swapaxes, hstack and atleast: other names for the same."""
    h = torch.movedim(m.a(x), -1, 1).swapaxes(1, 2)
    h = torch.hstack([h, torch.dstack([h.narrow(2, 0, 4), h.narrow(2, 4, h.shape[2] - 4)])])
    return m.b(torch.ravel(h).view(len(x), -1, h.size(-1)).relu())


def order() -> Tensor:
    return torch.tensor([3, 1, 0, 2, 7, 6, 4, 5])


CASES: tuple[Architecture, ...] = (
    case("through numpy", "operators", net(_through_numpy), ROW),
    case("sort", "operators", net(_sorted), ROW),
    case("cumulative sum over channels", "operators", net(_accumulated), ROW),
    case("flip of itself", "operators", net(_flipped), ROW),
    case("flip of a branch", "operators", net(_flipped_branch, d=a), ROW),
    case("roll over channels", "operators", net(_rolled), ROW),
    case("the largest channels", "operators", net(_best_channels, 8, 4), ROW),
    case("the largest channel", "operators", net(_best_channel), ROW),
    case("mask written in place", "operators", net(_positive_only), ROW),
    case("rows written by mask", "operators", net(_written_by_mask, d=a), ROW),
    case("channels written by index", "operators", net(_written_by_index), ROW),
    case("halves written in place", "operators", net(_halves_written, 8, 16, d=a, half=8), ROW),
    case("channels ordered by index", "operators", net(_ordered_by_index, order=order), ROW),
    case("channels selected", "operators", net(_selected, 8, 5, order=order), ROW),
    case("rows gathered", "operators", net(_gathered, s=lambda: nn.Linear(8, 1)), ROWS),
    case("rows added by index", "operators", lambda: Net(_scattered, a=a(12), b=nn.Linear(12, 3)), ROWS),
    case("rows reduced by index", "operators", lambda: Net(_averaged_by_index, a=a(12), b=nn.Linear(12, 3)),
         ROWS),
    case("fourier over channels", "operators", net(_fourier, 8, 5), ROW),
    case("fourier mixing", "operators", net(_fourier_mixing), ROWS),
    case("bilinear", "operators", net(_bilinear, d=lambda: a(9), c=lambda: nn.Bilinear(8, 9, 10)), ROW),
    case("distances between rows", "operators", net(_distances), ROWS),
    case("cosine similarity", "operators", net(_normalized, d=lambda: nn.Linear(8, 10), b=lambda: None), ROW),
    case("outer product", "operators", lambda: Net(_outer, a=a(5), b=nn.Linear(25, 3)), ROW),
    case("kronecker product", "operators", lambda: Net(_kronecker, a=a(4), d=a(3), b=nn.Linear(12, 3)), ROW),
    case("tile", "operators", lambda: Net(_tiled, a=a(), b=nn.Linear(16, 3)), ROW),
    case("each channel repeated", "operators", lambda: Net(_each_repeated, a=a(), b=nn.Linear(16, 3)), ROW),
    case("windows of time", "operators", lambda: Net(_windows_of_time, a=a(), kernel=parameter(10, 8, 3),
         b=nn.Linear(10, 3)), ROWS),
    case("windows of channels", "operators", net(_windows_of_channels), ROW),
    case("einsum spellings", "operators", lambda: Net(_einsum_spellings, one=parameter(6, 8),
         two=parameter(10, 8), scale=parameter(10), b=nn.Linear(10, 3)), ROWS),
    case("matmul spellings", "operators", lambda: Net(_matmul_spellings, one=parameter(6, 8),
         two=parameter(10, 8), bias=parameter(8), three=parameter(10, 7), b=nn.Linear(7, 3)), ROW),
    case("diagonal matrix", "operators", net(_diagonal, scale=lambda: parameter(8)), ROW),
    case("quantiles", "operators", net(_quantiles), ROW),
    case("median and extremes", "operators", net(_median), ROWS),
    case("spread over channels", "operators", net(_spread), ROW),
    case("every other channel", "operators", net(_strides), ROW),
    case("complex pairs", "operators", lambda: Net(_complex_pairs, a=a(12), b=nn.Linear(12, 3),
         phase=nn.Parameter(torch.randn(6, dtype=torch.complex64))), ROW),
    case("other names", "operators", lambda: Net(_renamed, a=a(), b=nn.Linear(8, 3)), ROWS),
)  # fmt: skip
