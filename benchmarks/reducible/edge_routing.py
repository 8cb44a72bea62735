"""Experts, state spaces, graphs, tables and memories: who talks to whom is data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.edge_modules import ROW, ROWS, a, b
from reducible.hand import Net, buffered, case, parameter, tokens


class Experts(nn.Module):
    """The two best of several experts, each called with the tokens that chose it."""

    def __init__(self, dim: int = 8, hidden: int = 12, count: int = 4, top: int = 2) -> None:
        super().__init__()
        self.top_k, self.num_experts, self.dim = top, count, dim
        self.embed, self.router = nn.Linear(6, dim), nn.Linear(dim, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(count)
        )
        self.out = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        flat = h.view(-1, self.dim)
        weights, chosen = self.router(flat).softmax(-1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            if len(token) == 0:
                continue
            result.index_add_(0, token, expert(flat[token]) * weights[token, slot, None])
        return self.out((flat + result).view_as(h))


def _dense_experts(m: Any, x: Tensor) -> Tensor:
    """Every expert works on every token; weights of all experts in one tensor."""
    h = m.a(x)
    route = m.router(h).softmax(-1)
    inner = functional.gelu(torch.einsum("bnd,edf->bnef", h, m.up))
    return m.b(torch.einsum("bnef,efd,bne->bnd", inner, m.down, route))


def _stacked_experts(m: Any, x: Tensor) -> Tensor:
    """Tokens repeated for every expert, one batched product, a mask for those not chosen."""
    h = m.a(x).flatten(0, 1)
    n = m.up.shape[0]
    route = m.router(h).softmax(-1)
    mask = torch.zeros_like(route).scatter_(1, route.topk(2, -1).indices, 1.0) * route
    both = torch.bmm(h.expand(n, -1, -1), m.up)
    gate, up = both.chunk(2, -1)
    y = torch.bmm(functional.silu(gate) * up, m.down)
    return m.b((y * mask.t()[..., None]).sum(0))


def _experts_by_token(m: Any, x: Tensor) -> Tensor:
    """The best expert's weights are looked up for every token."""
    h = m.a(x)
    best = m.router(h).argmax(-1)
    return m.b(torch.einsum("bd,bdf->bf", h, m.weight[best]).relu() + m.bias[best])


class Selective(nn.Module):
    """A selective state space, as in Mamba: the scan is a loop over time."""

    def __init__(self, dim: int = 8, expand: int = 2, states: int = 4, rank: int = 3) -> None:
        super().__init__()
        self.inner, self.states, self.rank = expand * dim, states, rank
        self.embed, self.norm = nn.Embedding(19, dim), nn.RMSNorm(dim)
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = nn.Conv1d(self.inner, self.inner, 3, groups=self.inner, padding=2)
        self.x_proj = nn.Linear(self.inner, rank + 2 * states, bias=False)
        self.dt_proj = nn.Linear(rank, self.inner)
        self.a_log = nn.Parameter(torch.arange(1, states + 1).float().log().repeat(self.inner, 1))
        self.skip, self.out_proj = parameter(self.inner), nn.Linear(self.inner, dim, bias=False)
        self.head = nn.Linear(dim, 5)

    def forward(self, words: Tensor) -> Tensor:
        h = self.embed(words)
        x, z = self.in_proj(self.norm(h)).chunk(2, -1)
        x = functional.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]]).transpose(1, 2)
        dt, b, c = torch.split(self.x_proj(x), [self.rank, self.states, self.states], -1)
        dt = functional.softplus(self.dt_proj(dt))
        a = torch.exp(dt[..., None] * -torch.exp(self.a_log))
        bx = dt[..., None] * b[:, :, None] * x[..., None]
        state, outputs = torch.zeros(len(x), self.inner, self.states, dtype=x.dtype), []
        for t in range(x.shape[1]):
            state = a[:, t] * state + bx[:, t]
            outputs.append((state @ c[:, t, :, None]).squeeze(-1))
        y = (torch.stack(outputs, 1) + x * self.skip) * functional.silu(z)
        return self.head(h + self.out_proj(y))


def _cumulative_scan(m: Any, x: Tensor) -> Tensor:
    """A linear recurrence in closed form: cumulative sums of logarithms."""
    v, f = m.a(x).chunk(2, -1)
    decay = functional.logsigmoid(f).cumsum(1)
    return m.b(torch.exp(decay) * (v * torch.exp(-decay)).cumsum(1))


def _diagonal_states(m: Any, x: Tensor) -> Tensor:
    """S4D: a kernel from complex exponentials, convolved by FFT along time."""
    h = m.a(x).transpose(1, 2)
    n = h.shape[-1]
    a = torch.complex(-m.real.exp(), m.imaginary)
    kernel = (torch.exp(a[..., None] * torch.arange(n)) * m.c[..., None]).real.sum(1)
    y = torch.fft.irfft(torch.fft.rfft(h, 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)[..., :n]
    return m.b((y + h * m.d[:, None]).transpose(1, 2).relu())


def _long_convolution(m: Any, x: Tensor) -> Tensor:
    """Hyena: an implicit filter from positions, gates around it."""
    u, v, w = m.a(x).transpose(1, 2).chunk(3, 1)
    n = u.shape[-1]
    filters = m.f2(m.f1(torch.linspace(0, 1, n, dtype=x.dtype)[:, None]).sin()).t()
    lags = torch.arange(n)[:, None] - torch.arange(n)[None]
    toeplitz = torch.where(lags >= 0, filters[:, lags.clamp(min=0)], 0.0)
    return m.b((w * torch.einsum("cts,bcs->bct", toeplitz, u * v)).transpose(1, 2))


def _codebook(m: Any, x: Tensor) -> Tensor:
    """VQ: the nearest code in place of the feature; distances written out."""
    h = m.a(x)
    distance = h.pow(2).sum(-1, keepdim=True) - 2 * h @ m.codes.t() + m.codes.pow(2).sum(-1)
    return m.b(m.codes[distance.argmin(-1)].relu())


def _soft_codebook(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    weights = (-torch.cdist(h, m.codes)).softmax(-1)
    return m.b((weights @ m.values).relu())


def _graph(m: Any, x: Tensor) -> Tensor:
    """A graph convolution with its adjacency in a buffer."""
    h = m.a(x)
    return m.b((m.adjacency @ m.c(h).relu()).mean(1))


def _messages(m: Any, x: Tensor) -> Tensor:
    """Messages along edges, summed where they arrive."""
    h = m.a(x)
    source, target = m.edges
    message = m.message(torch.cat([h[:, source], h[:, target]], -1)).relu()
    summed = torch.zeros_like(h).index_add(1, target, message)
    return m.b(m.update(h + summed).relu())


def _edge_attention(m: Any, x: Tensor) -> Tensor:
    """GAT: a softmax over the edges that arrive, by scatter."""
    h = m.a(x)
    source, target = m.edges
    score = functional.leaky_relu(m.s(h)[:, source] + m.t(h)[:, target]).exp()
    index = target[None, :, None].expand_as(score)
    total = torch.zeros(len(h), h.shape[1], 1, dtype=h.dtype).scatter_add(1, index, score)
    message = h[:, source] * (score / total[:, target])
    out = torch.zeros_like(h).scatter_add(1, target[None, :, None].expand_as(message), message)
    return m.b(out.relu())


def _points(m: Any, x: Tensor) -> Tensor:
    """PointNet: a maximum over points, given back to every point."""
    local = m.a(x).relu()
    best = m.c(local).relu().max(1, keepdim=True)[0].expand(-1, x.shape[1], -1)
    return m.b(torch.cat([local, best], -1))


def _interactions(m: Any, dense: Tensor, sparse: Tensor) -> Tensor:
    """DLRM: inner products of all pairs of embeddings."""
    features = torch.stack(
        [m.bottom(dense).relu(), *(e(s) for e, s in zip(m.tables, sparse.t(), strict=True))], 1
    )
    products = torch.bmm(features, features.transpose(1, 2))
    i, j = torch.tril_indices(3, 3, -1)
    return m.top(torch.cat([features[:, 0], products[:, i, j]], 1))


def _bags(m: Any, words: Tensor) -> Tensor:
    return m.b(m.bag(words).relu())


def _bags_by_offset(m: Any, words: Tensor) -> Tensor:
    offsets = torch.arange(0, words.numel(), words.shape[1])
    return m.b(m.bag(words.flatten(), offsets).relu())


def _waves(m: Any, x: Tensor) -> Tensor:
    """NeRF: positions in sines and cosines, a skip into the middle."""
    angles = (x[..., None] * m.frequencies).flatten(1)
    enter = torch.cat([x, angles.sin(), angles.cos()], -1)
    h = m.a(enter).relu()
    return m.b(m.c(torch.cat([h, enter], -1)).relu())


def _routed_capsules(m: Any, x: Tensor) -> Tensor:
    """Capsules: votes, and one round of agreement."""
    poses = m.a(x).unflatten(-1, (m.low, -1))
    votes = torch.einsum("bld,lhde->blhe", poses, m.transform)
    mean = votes.mean(1)
    weights = torch.einsum("blhe,bhe->blh", votes, mean).softmax(2)
    return m.b(torch.einsum("blh,blhe->bhe", weights, votes).tanh().flatten(1))


def _memory(m: Any, x: Tensor) -> Tensor:
    """A key–value memory of fixed size; its slots are parameters."""
    h = m.a(x)
    return m.b(functional.softmax(h @ m.keys, -1) @ m.values + h)


EDGES = torch.tensor([[0, 1, 2, 3, 4, 4, 0], [1, 2, 3, 4, 0, 2, 3]])


CASES: tuple[Architecture, ...] = (
    case("experts in a loop", "experts", Experts, ROWS),
    case("dense experts", "experts", lambda: Net(_dense_experts, a=a(), router=nn.Linear(8, 4),
         up=parameter(4, 8, 12), down=parameter(4, 12, 8), b=b()), ROWS),
    case("stacked experts", "experts", lambda: Net(_stacked_experts, a=a(), router=nn.Linear(8, 4),
         up=parameter(4, 8, 24), down=parameter(4, 12, 8), b=b()), ROWS),
    case("experts looked up by token", "experts", lambda: Net(_experts_by_token, a=a(),
         router=nn.Linear(8, 4), weight=parameter(4, 8, 10), bias=parameter(4, 10), b=b(10)), ROW),
    case("selective state space", "state space", Selective, tokens(19, 5)),
    case("cumulative scan", "state space", lambda: Net(_cumulative_scan, a=a(24), b=b(12)), ROWS),
    case("diagonal state space", "state space", lambda: Net(_diagonal_states, a=a(), real=parameter(8, 4),
         imaginary=parameter(8, 4), c=parameter(8, 4), d=parameter(8), b=b()), ROWS),
    case("long convolution", "state space", lambda: Net(_long_convolution, a=a(24), f1=nn.Linear(1, 10),
         f2=nn.Linear(10, 8), b=b()), ROWS),
    case("nearest code", "memory", lambda: Net(_codebook, a=a(), codes=parameter(7, 8), b=nn.Sequential(
         nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))), ROW),
    case("distances to codes", "memory", lambda: Net(_soft_codebook, a=a(), codes=parameter(7, 8),
         values=parameter(7, 10), b=b(10)), ROW),
    case("key-value memory", "memory", lambda: Net(_memory, a=a(), keys=parameter(8, 12),
         values=parameter(12, 8), b=b()), ROW),
    case("graph convolution", "graphs", lambda: buffered(Net(_graph, a=a(), c=nn.Linear(8, 10), b=b(10)),
         adjacency=torch.rand(5, 5)), ROWS),
    case("messages along edges", "graphs", lambda: buffered(Net(_messages, a=a(), message=nn.Linear(16, 8),
         update=nn.Linear(8, 10), b=b(10)), edges=EDGES), ROWS),
    case("attention along edges", "graphs", lambda: buffered(Net(_edge_attention, a=a(), s=nn.Linear(8, 1),
         t=nn.Linear(8, 1), b=b()), edges=EDGES), ROWS),
    case("points", "sets", lambda: Net(_points, a=a(), c=nn.Linear(8, 12), b=b(20)), ROWS),
    case("interactions of embeddings", "tables", lambda: Net(_interactions, bottom=a(),
         tables=nn.ModuleList(nn.Embedding(11, 8) for _ in range(2)), top=b(11)), ROW, tokens(11, 2)),
    case("bags of words", "tables", lambda: Net(_bags, bag=nn.EmbeddingBag(17, 12), b=b(12)), tokens(17, 4)),
    case("bags of words summed by offset", "tables", lambda: Net(_bags_by_offset,
         bag=nn.EmbeddingBag(17, 12, mode="sum"), b=b(12)), tokens(17, 4)),
    case("sines of positions", "coordinates", lambda: buffered(Net(_waves, a=nn.Linear(6 + 48, 12),
         c=nn.Linear(12 + 54, 8), b=b()), frequencies=2.0 ** torch.arange(4)), ROW),
    case("capsules", "routing", lambda: Net(_routed_capsules, a=a(12), low=3, transform=parameter(3, 4, 4, 5),
         b=b(20)), ROW),
)  # fmt: skip
