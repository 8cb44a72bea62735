"""What random networks are made of: pieces that take one tensor of a known shape and give another.

A piece is a function ``(random, *shape) -> (module, shape)`` where the shape is that of one sample:
(channels, height, width) of an image, (steps, width) of rows, (width,) of a vector. One that does not fit
returns None.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from reducible.hand import Net

Shape = tuple[int, ...]
Made = tuple[nn.Module, Shape] | None
Piece = Callable[..., Made]
PIECES: dict[str, list[Piece]] = {"image": [], "rows": [], "vector": []}
ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.ELU, nn.Sigmoid, nn.Softplus, nn.Identity,
)  # fmt: skip


def piece(kind: str) -> Callable[[Piece], Piece]:
    """Register a piece for tensors of this kind."""

    def register(made: Piece) -> Piece:
        PIECES[kind].append(made)
        return made

    return register


def kind_of(shape: Shape) -> str:
    return {3: "image", 2: "rows", 1: "vector"}[len(shape)]


def divisor(random: Random, *numbers: int) -> int:
    """A common divisor, at random."""
    return random.choice([d for d in range(1, min(numbers) + 1) if all(n % d == 0 for n in numbers)])


def proper(random: Random, n: int) -> int | None:
    """A divisor that is neither 1 nor n, if there is one."""
    found = [d for d in range(2, n) if n % d == 0]
    return random.choice(found) if found else None


def width(random: Random) -> int:
    return random.choice((4, 6, 8, 9, 10, 12, 16))


def act(random: Random) -> nn.Module:
    return random.choice(ACTIVATIONS)()


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) * 0.4 + (1.0 if len(shape) == 1 else 0.0))


class Sum(nn.Module):
    """Branches of equal shape, added up, perhaps with the input."""

    def __init__(self, branches: list[nn.Module], shortcut: bool) -> None:
        super().__init__()
        self.branches, self.shortcut = nn.ModuleList(branches), shortcut

    def forward(self, x: Tensor) -> Tensor:
        out = x if self.shortcut else 0
        for branch in self.branches:
            out = out + branch(x)
        return out


class Cat(nn.Module):
    """Branches side by side along a dimension, perhaps with the input."""

    def __init__(self, branches: list[nn.Module], dim: int, shortcut: bool) -> None:
        super().__init__()
        self.branches, self.dim, self.shortcut = nn.ModuleList(branches), dim, shortcut

    def forward(self, x: Tensor) -> Tensor:
        parts = [x] if self.shortcut else []
        return torch.cat([*parts, *(branch(x) for branch in self.branches)], self.dim)


class Parts(nn.Module):
    """Every part of a dimension goes its own way, and they meet again in another order."""

    def __init__(self, sizes: list[int], ways: list[nn.Module], order: list[int], dim: int) -> None:
        super().__init__()
        self.sizes, self.ways, self.order, self.dim = sizes, nn.ModuleList(ways), tuple(order), dim

    def forward(self, x: Tensor) -> Tensor:
        parts = [way(part) for way, part in zip(self.ways, x.split(self.sizes, self.dim), strict=True)]
        return torch.cat([parts[i] for i in self.order], self.dim)


class ScaledBy(nn.Module):
    """A bare parameter that multiplies a dimension."""

    def __init__(self, n: int, after: int) -> None:
        super().__init__()
        self.scale, self.after = weight(n), after

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, *[1] * self.after)


class Grouped(nn.Module):
    """A dimension seen as (groups, rest), worked on, and flat again; sizes by attribute, shape or number."""

    def __init__(self, random: Random, n: int, groups: int, dim: int) -> None:
        super().__init__()
        self.groups, self.dim = groups, dim
        self.how = random.choice(("attribute", "attribute", "shape", "number"))
        self.sizes = (groups, n // groups)
        self.scale = weight(groups, 1) if random.random() < 0.5 else weight(1, n // groups)
        self.work = random.choice(("scale", "transpose", "softmax", "gate", "mean", "mix"))
        self.mix = nn.Linear(groups, groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x.movedim(self.dim, -1)
        if self.how == "attribute":
            h = x.reshape(*x.shape[:-1], self.groups, -1)
        elif self.how == "shape":
            h = x.unflatten(-1, (self.groups, x.shape[-1] // self.groups))
        else:
            h = x.reshape(*x.shape[:-1], int(str(self.sizes[0])), int(str(self.sizes[1])))
        if self.work == "scale":
            h = h * self.scale
        elif self.work == "transpose":
            h = h.transpose(-1, -2)
        elif self.work == "softmax":
            h = h * h.softmax(-2)
        elif self.work == "gate":
            h = h * h[..., :1].sigmoid()
        elif self.work == "mean":
            h = h - h.mean(-2, keepdim=True)
        else:
            h = self.mix(h.transpose(-1, -2)).transpose(-1, -2)
        return h.flatten(-2).movedim(-1, self.dim)


class Whole(nn.Module):
    """What looks across a dimension as a whole, or moves its indices."""

    KINDS = (
        "softmax", "center", "normalize", "root", "sum", "flip", "flip and add", "roll", "cumsum",
        "sort", "order", "largest", "first", "pad", "write", "write halves", "mask", "mask number",
        "outer", "cosine", "strided", "repeat", "interleave", "numbers", "stack", "gate by part",
        "count", "one", "last", "tile", "expand", "drop first", "windows", "turned parts", "unbound",
        "pairs", "own sum",
    )  # fmt: skip

    def __init__(self, random: Random, n: int, dim: int) -> None:
        super().__init__()
        self.kind, self.dim, self.half = random.choice(self.KINDS), dim, n // 2
        order = list(range(n))
        random.shuffle(order)
        self.register_buffer("order", torch.tensor(order))
        self.table = torch.rand(n) + 0.5  # nobody registered it

    def out(self, n: int) -> int:
        sizes = {"pad": n + 2, "strided": (n + 1) // 2, "drop first": n - 1, "windows": n // 2 * 2}
        return 2 * n if self.kind in ("repeat", "interleave", "tile", "expand") else sizes.get(self.kind, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x.movedim(self.dim, -1)).movedim(-1, self.dim)

    def run(self, x: Tensor) -> Tensor:
        kind, n = self.kind, x.shape[-1]
        if kind == "softmax":
            return x.softmax(-1) * 3
        if kind == "center":
            return x - x.mean(-1, keepdim=True)
        if kind == "normalize":
            return nn.functional.normalize(x, dim=-1)
        if kind == "root":
            return x / n**0.5
        if kind == "sum":
            return x + x.sum(-1, keepdim=True) / 8
        if kind == "flip":
            return x.flip(-1)
        if kind == "flip and add":
            return x + x.flip(-1)
        if kind == "roll":
            return x.roll(1, -1)
        if kind == "cumsum":
            return x.cumsum(-1)
        if kind == "sort":
            return x.sort(-1).values
        if kind == "order":
            return x[..., self.order]
        if kind == "largest":
            return x * (x >= x.amax(-1, keepdim=True))
        if kind == "first":
            return x * x[..., :1].sigmoid()
        if kind == "pad":
            return nn.functional.pad(x, (1, 1))
        if kind == "write":
            y = x.new_zeros(x.shape)
            y[..., 1:] = x[..., :-1]
            return y
        if kind == "write halves":
            y = torch.zeros_like(x)
            y[..., : self.half] = x[..., : self.half] * 2
            y[..., self.half :] = x[..., self.half :].relu()
            return y
        if kind == "mask":
            return x.masked_fill(x < 0, 0.25)
        if kind == "mask number":
            y = x * 1
            y[y < 0] = 0.0
            return y
        if kind == "outer":
            return (x.unsqueeze(-1) * x.unsqueeze(-2)).sum(-1) * 0.1
        if kind == "cosine":
            return x * nn.functional.cosine_similarity(x, x + 1, dim=-1).unsqueeze(-1)
        if kind == "strided":
            return x[..., ::2]
        if kind == "repeat":
            return torch.cat([x, x], -1)
        if kind == "interleave":
            return x.repeat_interleave(2, -1)
        if kind == "numbers":
            return x * torch.arange(n, dtype=x.dtype).cos()
        if kind == "stack":
            return torch.stack([x, x.relu()], -1).sum(-1)
        if kind == "gate by part":
            return x * x[..., : n // 2].sigmoid().mean(-1, keepdim=True)
        if kind == "count":
            return x * self.table
        return self.moved(x)

    def moved(self, x: Tensor) -> Tensor:
        kind, n = self.kind, x.shape[-1]
        if kind == "one":
            return x + x[..., 1].unsqueeze(-1).tanh()
        if kind == "last":
            return x * x[..., -1:].sigmoid()
        if kind == "tile":
            return x.repeat(*[1] * (x.dim() - 1), 2)
        if kind == "expand":
            return x.unsqueeze(-2).expand(*x.shape[:-1], 2, n).flatten(-2)
        if kind == "drop first":
            return x[..., 1:] if n > 1 else x
        if kind == "windows":
            return x.unfold(-1, 2, 2).relu().flatten(-2)
        if kind == "turned parts":
            return torch.cat(x.chunk(3, -1)[::-1], -1)
        if kind == "unbound":
            return torch.stack([y * 2 for y in x.unbind(-1)], -1)
        if kind == "pairs" and n % 2 == 0:
            return x.reshape(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
        return x + torch.einsum("...i,...i->...", x, x.tanh()).unsqueeze(-1)


def across(random: Random, n: int, dim: int) -> tuple[Whole, int]:
    found = Whole(random, n, dim)
    return found, found.out(n)


def net(run: Callable[..., Any], **parts: Any) -> Net:
    return Net(run, **parts)
