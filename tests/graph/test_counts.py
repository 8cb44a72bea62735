"""Counts that are tied by the model's own arithmetic, against a search over all of them."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from gracile.graph import CutRefusedError, Graph, watch
from gracile.reduce import random_units, remove


class Attention(nn.Module):
    """Fused qkv with a head width that follows from two other sizes."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(b, n, c))


class Transformer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(5, width)
        self.blocks = nn.Sequential(*(Attention(width, heads) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(x)).mean(1))


class Shuffle(nn.Module):
    """Two branches of other sizes, mixed by a shuffle and split in the middle again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.c, self.d = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((self.a(x), self.b(x)), 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = y.chunk(2, 1)
        return self.c(left) + self.d(right)


def possible(graph: Graph, units: list[int]) -> bool:
    try:
        graph.cut(units)
    except CutRefusedError:
        return False
    return True


def best(graph: Graph, blocks: list[list[int]]) -> float:
    """The smallest restored share, over all numbers of units to go from every block."""
    shares = []
    for numbers in product(*(range(len(units) + 1) for units in blocks)):
        going = [u for n, units in zip(numbers, blocks, strict=True) for u in units[:n]]
        if possible(graph, going):
            shares.append(restored(graph, blocks, going))
    return min(shares)


def restored(graph: Graph, blocks: list[list[int]], going: list[int]) -> float:
    return sum(
        len(set(units) - set(going)) / len(graph.blocks[graph.units[units[0]].block].units)
        for units in blocks
    )


@pytest.mark.parametrize(("width", "heads"), [(12, 3), (12, 4), (10, 5), (8, 1)])
def test_width_over_heads(width: int, heads: int) -> None:
    graph = watch(Transformer(width, heads, depth=1), torch.randn(2, 4, 5))
    for fraction in (0.3, 0.5, 0.7):
        blocks = [list(b.units[: int(fraction * len(b.units))]) for b in graph.blocks]
        blocks = [units for units in blocks if units]
        chosen = [u for units in blocks for u in units]
        going, kept = graph.balanced(chosen)
        assert possible(graph, going)
        assert sorted([*going, *(u for k in kept for u in k.units)]) == sorted(chosen)
        assert restored(graph, blocks, going) == pytest.approx(best(graph, blocks))


def test_nothing_stays_where_the_counts_agree() -> None:
    graph = watch(Transformer(12, 4), torch.randn(2, 4, 5))
    halves = [u for b in graph.blocks for u in b.units[: len(b.units) // 2]]
    assert graph.balanced(halves) == (halves, [])


def test_units_named_last_stay_first() -> None:
    graph = watch(Transformer(12, 3, depth=1), torch.randn(2, 4, 5))
    width = max(graph.blocks, key=lambda b: len(b.units))
    going, kept = graph.balanced(list(reversed(width.units[:5])))
    assert going == list(reversed(width.units[:5]))[: len(going)]
    assert len(going) < 5
    assert kept[0].why.need.op in ("reshape", "view")


def test_equal_halves_of_a_shuffle() -> None:
    torch.manual_seed(0)
    model = Shuffle().double()
    reduction = remove(model, torch.randn(2, 3, 4, 4).double(), units=partial(random_units, fraction=0.5))
    assert reduction.model.a.out_channels == reduction.model.b.out_channels
    assert reduction.model.a.out_channels < 8
    assert reduction.verdict.error < 1e-12


@pytest.mark.parametrize(("width", "heads"), [(12, 3), (24, 6), (20, 5)])
def test_reduced_with_tied_counts(width: int, heads: int) -> None:
    torch.manual_seed(0)
    model = Transformer(width, heads).double()
    reduction = remove(model, torch.randn(2, 4, 5).double(), units=partial(random_units, fraction=0.5))
    small = reduction.model
    assert small.blocks[0].heads < heads
    assert small.embed.out_features // small.blocks[0].heads == width // heads
    assert reduction.verdict.error < 1e-12


def test_a_literal_keeps_its_units_and_says_where() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).view(-1, 8)).relu())

    reduction = remove(Fixed(), torch.randn(3, 5), units=partial(random_units, fraction=0.5))
    assert reduction.model.a.out_features == 8
    assert reduction.model.b.out_features == 3
    (refusal,) = reduction.refused
    assert "view at test_counts.py" in refusal.reason
    assert "given the number 8, written in the code where it needs 4 in place of 8" in refusal.reason
    assert refusal.count == 4
