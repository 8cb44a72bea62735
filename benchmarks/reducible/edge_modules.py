"""Networks put together in unusual ways: sharing, routing, bare tensors, computed weights, odd results."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from reducible.architecture import Architecture
from reducible.hand import Net, buffered, case, normal, parameter


@dataclass
class Answer:
    """What a network may return in place of a tensor."""

    logits: Tensor
    extras: dict[str, Tensor]


Pair = namedtuple("Pair", "mean spread")


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * grad


def _siamese(m: Any, x: Tensor, y: Tensor) -> Tensor:
    one, two = m.a(x).relu(), m.a(y).relu()
    return m.b(torch.cat([(one - two).abs(), one * two], -1))


def _twice(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(m.c(m.c(h).relu()).relu())


def _tied_transpose(m: Any, x: Tensor) -> Tensor:
    return functional.linear(m.a(x).relu(), m.a.weight.t(), m.bias)


def _deep_tied(m: Any, x: Tensor) -> Tensor:
    h = m.c(m.a(x).relu()).relu()
    h = functional.linear(h, m.c.weight.mT).relu()
    return functional.linear(h, m.a.weight.mT)


def _hyper(m: Any, x: Tensor, condition: Tensor) -> Tensor:
    """Weights of a layer are the output of another."""
    h = m.a(x)
    weight = m.make(m.enter(condition).relu()).view(len(x), m.out, -1)
    return m.b(torch.bmm(weight, h.unsqueeze(-1)).squeeze(-1).relu())


def _low_rank_update(m: Any, x: Tensor) -> Tensor:
    """LoRA: a frozen weight and a product of two thin ones."""
    return m.b(functional.linear(m.a(x).relu(), m.weight + 0.5 * (m.up @ m.down)).relu())


def _swiglu(m: Any, x: Tensor) -> Tensor:
    gate, up = m.a(x).chunk(2, -1)
    return m.b(functional.silu(gate) * up)


def _layer_scale(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    return m.b(h + m.gamma * m.down(m.up(m.n(h)).relu()))


def _stochastic_depth(m: Any, x: Tensor) -> Tensor:
    h = m.a(x)
    for block in m.blocks:
        if not m.training or torch.rand(()) > 0.2:
            h = h + block(h) / (0.8 if m.training else 1.0)
    return m.b(h)


def _checkpointed(m: Any, x: Tensor) -> Tensor:
    h = checkpoint(lambda t: m.c(m.a(t).relu()), x, use_reentrant=False)
    return m.b(torch.utils.checkpoint.checkpoint_sequential(m.deep, 2, h, use_reentrant=False))


def _functional(m: Any, x: Tensor) -> Tensor:
    """A module called with other parameters, made from its own."""
    changed = {"weight": m.c.weight * m.scale[:, None], "bias": m.c.bias * m.scale}
    return m.b(functional_call(m.c, changed, (m.a(x),)).relu())


def _listed(m: Any, x: Tensor) -> Tensor:
    h = x
    for weight, bias in zip(m.weights, m.biases, strict=True):
        h = torch.tanh(h @ weight + bias)
    return h @ m.named["last"] + m.named["shift"]


def _returns_object(m: Any, x: Tensor) -> Answer:
    h = m.a(x).relu()
    return Answer(m.b(h), {"aux": m.c(h)})


def _returns_pair(m: Any, x: Tensor) -> Any:
    h = m.a(x).relu()
    return Pair(m.b(h), functional.softplus(m.c(h)))


def _returns_nested(m: Any, x: Tensor) -> dict[str, Any]:
    h = m.a(x).relu()
    return {"first": m.b(h), "rest": [(m.c(h), "no tensor"), None, 3]}


class Masked(nn.Module):
    """Tensors kept as plain attributes, neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale, self.tables = torch.rand(8) + 0.5, [torch.randn(8), torch.randn(8)]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * self.scale
        for table in self.tables:
            h = h + table
        return self.b(h.relu())


class PlainWeights(nn.Module):
    """A random projection that nobody registered, in a dictionary and in an object."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(6, 8), nn.Linear(10, 3)
        self.fixed = {"projection": torch.randn(10, 8) * 0.4}

    def forward(self, x: Tensor) -> Tensor:
        return self.out(functional.linear(self.enter(x).relu(), self.fixed["projection"]).cos())


def _coupling(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A normalizing flow: halves transform each other, the width is the input's."""
    logdet = 0.0
    for net in m.nets:
        one, two = x.chunk(2, -1)
        scale, shift = net(one).chunk(2, -1)
        x = torch.cat([two * scale.tanh().exp() + shift, one], -1)
        logdet = logdet + scale.tanh().sum(-1)
    return x, logdet


def _mixture(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = m.a(x).tanh()
    means = m.means(h).view(-1, m.count, m.dim)
    return m.logits(h).log_softmax(-1), means


def _splines(m: Any, x: Tensor) -> Tensor:
    """KAN: a basis expansion of every feature, contracted with its own coefficients."""
    h = m.a(x)
    basis = torch.exp(-((h[..., None] - m.grid) ** 2))
    return m.b(torch.einsum("big,oig->bo", basis, m.coefficients) + functional.linear(h.relu(), m.base))


def _early_exits(m: Any, x: Tensor) -> list[Tensor]:
    outputs, h = [], m.a(x).relu()
    for layer, head in zip(m.layers, m.heads, strict=True):
        h = layer(h).relu()
        outputs.append(head(h))
    return outputs


def _fixed_point(m: Any, x: Tensor) -> Tensor:
    """A layer iterated until it changes little; the loop looks at numbers."""
    injected, z = m.a(x), 0.0 * m.a(x)
    for _ in range(4):
        after = torch.tanh(0.1 * m.c(z) + injected)
        if float((after - z).abs().max()) < 1e-12:
            break
        z = after
    return m.b(z)


def _factors(m: Any, x: Tensor) -> Tensor:
    """A tensor-train layer: three cores contracted one by one."""
    h = m.a(x).view(-1, 4, 4)
    return m.b(torch.einsum("bij,iar,rjc->bac", h, m.first, m.second).flatten(1))


ROW, ROWS = normal(6), normal(5, 6)


def a(n: int = 8) -> nn.Linear:
    return nn.Linear(6, n)


def b(n: int = 8) -> nn.Linear:
    return nn.Linear(n, 3)


def deep(n: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU())


CASES: tuple[Architecture, ...] = (
    case("siamese", "sharing", lambda: Net(_siamese, a=a(), b=b(16)), ROW, ROW),
    case("a module called twice", "sharing", lambda: Net(_twice, a=a(), c=nn.Linear(8, 8), b=b()), ROW),
    case("weight and its transpose", "sharing", lambda: Net(_tied_transpose, a=a(12),
         bias=parameter(6)), ROW),
    case("deep tied autoencoder", "sharing", lambda: Net(_deep_tied, a=a(12), c=nn.Linear(12, 8)), ROW),
    case("weights from a network", "computed", lambda: Net(_hyper, a=a(), enter=nn.Linear(5, 10),
         make=nn.Linear(10, 4 * 8), out=4, b=nn.Linear(4, 3)), ROW, normal(5)),
    case("low-rank update", "computed", lambda: Net(_low_rank_update, a=a(), weight=parameter(10, 8),
         up=parameter(10, 4), down=parameter(4, 8), b=b(10)), ROW),
    case("swiglu", "gates", lambda: Net(_swiglu, a=a(24), b=b(12)), ROW),
    case("glu", "gates", lambda: nn.Sequential(a(24), nn.GLU(), b(12)), ROW),
    case("layer scale", "residual", lambda: Net(_layer_scale, a=a(), n=nn.LayerNorm(8), up=nn.Linear(8, 16),
         down=nn.Linear(16, 8), gamma=parameter(8), b=b()), ROW),
    case("stochastic depth", "residual", lambda: Net(_stochastic_depth, a=a(),
         blocks=nn.ModuleList(deep() for _ in range(2)), b=b()), ROW),
    case("checkpoint", "calls", lambda: Net(_checkpointed, a=a(), c=nn.Linear(8, 8), deep=deep(),
         b=b()), ROW),
    case("autograd function", "calls", lambda: Net(lambda m, x: m.b(Square.apply(m.a(x))),
         a=a(), b=b()), ROW),
    case("functional call", "calls", lambda: Net(_functional, a=a(), c=nn.Linear(8, 10), scale=parameter(10),
         b=b(10)), ROW),
    case("lists of parameters", "bare", lambda: Net(_listed, weights=nn.ParameterList([parameter(6, 12),
         parameter(12, 8)]), biases=nn.ParameterList([parameter(12), parameter(8)]),
         named=nn.ParameterDict({"last": parameter(8, 3), "shift": parameter(3)})), ROW),
    case("plain tensors", "bare", Masked, ROW),
    case("plain weights in a dictionary", "bare", PlainWeights, ROW),
    case("returns a dataclass", "results", lambda: Net(_returns_object, a=a(), b=b(), c=b()), ROW),
    case("returns a named tuple", "results", lambda: Net(_returns_pair, a=a(), b=b(), c=b()), ROW),
    case("returns nested things", "results", lambda: Net(_returns_nested, a=a(), b=b(), c=b()), ROW),
    case("coupling flow", "flows", lambda: Net(_coupling, nets=nn.ModuleList(nn.Sequential(nn.Linear(3, 12),
         nn.ReLU(), nn.Linear(12, 6)) for _ in range(2))), ROW),
    case("mixture density", "results", lambda: Net(_mixture, a=a(12), means=nn.Linear(12, 10),
         logits=nn.Linear(12, 5), count=5, dim=2), ROW),
    case("splines", "bare", lambda: buffered(Net(_splines, a=a(), coefficients=parameter(10, 8, 5),
         base=parameter(10, 8), b=b(10)), grid=torch.linspace(-1, 1, 5)), ROW),
    case("early exits", "results", lambda: Net(_early_exits, a=a(), layers=nn.ModuleList(nn.Linear(8, 8)
         for _ in range(2)), heads=nn.ModuleList(b() for _ in range(2))), ROW),
    case("fixed point", "loops", lambda: Net(_fixed_point, a=a(), c=nn.Linear(8, 8), b=b()), ROW),
    case("tensor train", "bare", lambda: Net(_factors, a=a(16), first=parameter(4, 5, 6),
         second=parameter(6, 4, 3), b=b(15)), ROW),
)  # fmt: skip
