"""Sizes in the user's own code: attributes, configurations, closures and literals; and hostile operators."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from reducible.architecture import Architecture
from reducible.hand import Net, case, normal


@dataclass
class Config:
    """A configuration that several layers share."""

    inputs: int = 6
    hidden: int = 12
    heads: int = 3
    widths: list[int] = field(default_factory=lambda: [4, 8])


class Configured(nn.Module):
    """Views by the numbers of a shared dataclass."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(config.inputs, config.hidden)
        self.mix = nn.Parameter(torch.randn(config.heads, config.hidden // config.heads))
        self.out = nn.Linear(config.hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).view(-1, self.config.heads, self.config.hidden // self.config.heads)
        return self.out((h * self.mix).relu().view(-1, self.config.hidden))


class SplitByConfig(nn.Module):
    """Parts of unequal width, listed in a configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.enter = nn.Linear(6, sum(config.widths))
        self.outs = nn.ModuleList(nn.Linear(n, 3) for n in config.widths)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.enter(x).relu().split(self.config.widths, dim=-1)
        return sum(out(part) for out, part in zip(self.outs, parts, strict=True))


class InDictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sizes = {"heads": 4, "width": 3}
        self.enter, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x).view(len(x), self.sizes["heads"], self.sizes["width"])
        return self.out(h.transpose(1, 2).relu().transpose(1, 2).flatten(1))


class InTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shape = (4, 3)
        self.enter, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.enter(x).unflatten(-1, self.shape).relu().flatten(1))


class InProperty(nn.Module):
    """The width is derived, and asserted."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.num_heads = 12, 3
        self.enter, self.out = nn.Linear(6, 12), nn.Linear(12, 3)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        assert h.shape[-1] == self.hidden_size, "width"
        if h.size(1) != self.num_heads * self.head_dim:
            raise ValueError("heads")
        return self.out(h.view(-1, self.num_heads, self.head_dim).tanh().reshape(-1, self.hidden_size))


def closure(width: int) -> Callable[[Any, Tensor], Tensor]:
    """A size that only a closure knows."""

    def run(m: Any, x: Tensor) -> Tensor:
        return m.b(m.a(x).relu().view(-1, 2, width).flatten(1))

    return run


def _literal_view(m: Any, x: Tensor) -> Tensor:
    return m.b(m.a(x).view(len(x), 16, -1).relu().mean(-1))


def _literal_width(m: Any, x: Tensor) -> Tensor:
    return m.b(m.c(m.a(x).relu()).view(-1, 8).relu())


def _literal_split(m: Any, x: Tensor) -> Tensor:
    one, two, three = m.a(x).split([4, 4, 4], -1)
    return m.b(m.c(one * two + three).relu())


def _literal_slice(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(torch.cat([h[:, :4].relu(), h[:, 4:].tanh()], -1)).relu())


def _local_sizes(m: Any, x: Tensor) -> Tensor:
    """Sizes taken once from a weight and used later."""
    width, _ = m.a.weight.shape
    heads = 4
    per_head = width // heads
    h = m.a(x).view(-1, heads, per_head).softmax(1)
    return m.b(m.c(h.reshape(-1, heads * per_head)).relu())


def _module_sizes(m: Any, x: Tensor) -> Tensor:
    """torch's own size attributes used as sizes."""
    h = m.a(x).view(-1, m.a.out_features)
    start = torch.zeros(len(x), m.c.in_features, dtype=x.dtype)
    return m.b(m.c(h + start).view(x.size(0), m.c.out_features).relu())


def _root_of_width(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h / h.shape[-1] ** 0.5).relu())


def _root_by_math(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h / math.sqrt(h.size(-1))).relu())


def _mean_by_hand(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    mean = h.sum(-1, keepdim=True) / h.shape[-1]
    return m.b(m.c(h - mean).relu())


def _mean_by_literal(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h - h.sum(-1, keepdim=True) / 8).relu())


def _count_of_elements(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(h).relu() * (8 / h[0].numel()))


def _positions(m: Any, x: Tensor) -> Tensor:
    """Numbers of the channels enter the arithmetic."""
    h = m.a(x)
    return m.b(m.c(h * torch.arange(h.shape[-1], dtype=h.dtype).cos()).relu())


def _scaled_by_width(m: Any, x: Tensor) -> Tensor:
    """The default scale of fused attention is the root of a width that could be cut."""
    q, k, v = m.q(x), m.k(x), m.v(x)
    return m.b(functional.scaled_dot_product_attention(q, k, v))


def _branch_on_size(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    if h.shape[-1] > 6:
        h = h.relu()
    return m.b(m.c(h).tanh())


def _loop_over_channels(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(torch.stack([h[:, i] * (i + 1) for i in range(h.shape[1])], 1)).relu())


def _python_sum(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(sum(h[..., i] for i in range(h.shape[-1])).unsqueeze(-1) * h).relu())


def _reused_width(m: Any, x: Tensor) -> Tensor:
    """The width of one layer is the size for another's output."""
    n, c = m.a(x).shape
    return m.b(m.d(x).relu().reshape(n, c) + m.a(x))


ROW, ROWS = normal(6), normal(5, 6)


def a(n: int = 8) -> nn.Linear:
    return nn.Linear(6, n)


def net(
    run: Callable[..., Any], width: int = 8, hidden: int | None = None, **parts: Any
) -> Callable[[], nn.Module]:
    """Linear a, then what ``run`` does, then Linear c and b; parts are functions or numbers."""

    def make() -> nn.Module:
        made = {name: part() if callable(part) else part for name, part in parts.items()}
        layers = {"a": a(width), "c": nn.Linear(hidden or width, 10), "b": nn.Linear(10, 3), **made}
        return Net(run, **layers)

    return make


CASES: tuple[Architecture, ...] = (
    case("configuration", "sizes", lambda: Configured(Config()), ROW),
    case("configuration shared by two", "sizes", lambda: (lambda c: nn.Sequential(Configured(c),
         nn.Linear(3, 6), Configured(c)))(Config()), ROW),
    case("list in a configuration", "sizes", lambda: SplitByConfig(Config()), ROW),
    case("namespace", "sizes", lambda: Configured(SimpleNamespace(inputs=6, hidden=12, heads=4)), ROW),
    case("sizes in a dictionary", "sizes", InDictionary, ROW),
    case("sizes in a tuple", "sizes", InTuple, ROW),
    case("sizes from a property", "sizes", InProperty, ROW),
    case("size in a closure", "sizes", lambda: Net(closure(4), a=a(), b=nn.Linear(8, 3)), ROW),
    case("sizes of torch's modules", "sizes", net(_module_sizes), ROW),
    case("sizes of a weight", "sizes", net(_local_sizes), ROW),
    case("size of another layer", "sizes", lambda: Net(_reused_width, a=a(), d=a(), b=nn.Linear(8, 3)), ROW),
    case("literal view", "literals", lambda: Net(_literal_view, a=a(32), b=nn.Sequential(nn.Linear(16, 10),
         nn.ReLU(), nn.Linear(10, 3))), ROW),
    case("literal width", "literals", lambda: Net(_literal_width, a=a(12), c=nn.Linear(12, 8),
         b=nn.Linear(8, 3)), ROW),
    case("literal split", "literals", net(_literal_split, 12, 4), ROW),
    case("literal slice", "literals", net(_literal_slice), ROW),
    case("root of the width", "numbers", net(_root_of_width), ROW),
    case("root of the width by math", "numbers", net(_root_by_math), ROW),
    case("mean by hand", "numbers", net(_mean_by_hand), ROW),
    case("mean by a literal", "numbers", net(_mean_by_literal), ROW),
    case("number of elements", "numbers", net(_count_of_elements), ROW),
    case("numbers of the channels", "numbers", net(_positions), ROW),
    case("scale by default", "numbers", lambda: Net(_scaled_by_width, q=a(), k=a(), v=a(10),
         b=nn.Linear(10, 3)), ROWS),
    case("branch on a size", "numbers", net(_branch_on_size), ROW),
    case("loop over channels", "numbers", net(_loop_over_channels), ROW),
    case("sum in Python", "numbers", net(_python_sum), ROW),
)  # fmt: skip
