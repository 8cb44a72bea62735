"""Wires of crossbars against loops over a plain matrix of inputs x outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gracile.algebra import (
    Grouping,
    Lasso,
    Term,
    View,
    add_gradient_,
    crossbar_columns,
    crossbar_rows,
    largest_divisor,
    loss_of,
    proximal_,
)
from gracile.errors import ShapeError, UsageError
from gracile.train import Freeze, Run

SHAPES = st.sampled_from([(5, 7), (4, 3, 2, 2), (6, 1, 5), (64, 3), (1, 9), (9, 1)])
TILES = st.tuples(st.integers(1, 8), st.integers(1, 8))


def weight(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def wires(matrix: np.ndarray, tile: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Norms of the rows and columns of all tiles of a matrix, tile by tile."""
    rows, columns = [], []
    P, Q = tile
    for top in range(0, matrix.shape[0], P):
        for left in range(0, matrix.shape[1], Q):
            block = matrix[top : top + P, left : left + Q]
            rows += [float(np.linalg.norm(row)) for row in block]
            columns += [float(np.linalg.norm(column)) for column in block.T]
    return sorted(rows), sorted(columns)


@settings(max_examples=60, deadline=None)
@given(SHAPES, TILES, st.integers(0, 99))
def test_norms_are_those_of_the_rows_and_columns_of_every_tile(shape, tile, seed):
    w = weight(shape, seed)
    matrix = w.flatten(1).T.numpy()  # a row for each (input, kh, kw), a column for each output
    rows, columns = wires(matrix, tile)
    for grouping, expected in ((crossbar_rows, rows), (crossbar_columns, columns)):
        groups = grouping("w", shape, tile).of({"w": w})
        assert groups.count == len(expected)
        np.testing.assert_allclose(sorted(groups.norms.tolist()), expected, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(SHAPES, TILES, st.integers(0, 99))
def test_every_number_is_in_one_row_and_in_one_column(shape, tile, seed):
    for grouping in (crossbar_rows, crossbar_columns):
        found = grouping("w", shape, tile)
        assert found.disjoint
        w = torch.ones(shape)
        groups = found.of({"w": w})
        factors = torch.arange(1.0, groups.count + 1)
        groups.scale_(factors)
        counts = torch.bincount(w.long().flatten(), minlength=groups.count + 1)[1:]
        assert torch.equal(counts, groups.sizes)
        assert counts.sum() == w.numel()


def test_numbers_of_groups_are_as_documented():
    w = weight((5, 7))
    groups = crossbar_rows("w", (5, 7), (4, 2)).of({"w": w})
    torch.testing.assert_close(groups.norms[1 * 7 + 3], w[2:4, 3].norm())  # the second tile, row 3
    torch.testing.assert_close(groups.norms[2 * 7 + 6], w[4:, 6].norm())  # the last, smaller tile
    groups = crossbar_columns("w", (5, 7), (3, 2)).of({"w": w})
    torch.testing.assert_close(groups.norms[4 * 2 + 1], w[4, 3:6].norm())
    torch.testing.assert_close(groups.norms[5 * 2 + 3], w[3, 6:].norm())


def both(strength=0.3):
    shape, tile = (10, 3, 2, 2), (5, 4)
    rows, columns = crossbar_rows("w", shape, tile), crossbar_columns("w", shape, tile)
    return [Term(rows, Lasso(), strength), Term(columns, Lasso(), 2 * strength)]


@pytest.mark.parametrize("layout", ["none", "contiguous", "transposed"])
def test_the_explicit_gradient_is_the_gradient_of_the_loss(layout):
    w = weight((10, 3, 2, 2)).requires_grad_()
    with torch.no_grad():
        w[:4, 0] = 0  # whole rows of tiles
    (expected,) = torch.autograd.grad(loss_of(both(), {"w": w}), w)
    start = torch.zeros_like(w)
    if layout == "contiguous":
        w.grad = weight(w.shape, 3)
        start = w.grad.clone()
    if layout == "transposed":  # a gradient that cannot be viewed as the pattern wants
        w.grad = weight((2, 2, 3, 10), 3).permute(3, 2, 1, 0)
        start = w.grad.clone()
    add_gradient_(both(), {"w": w})
    torch.testing.assert_close(w.grad - start, expected)


def test_parts_of_one_shape_are_not_mixed_up():
    views = tuple(View("w", "out in", ("out",), range(n * 4, n * 4 + 4), (1, n * 3, 3)) for n in range(2))
    terms = [Term(Grouping(views), Lasso(), 1.0)]
    w = weight((4, 6)).requires_grad_()
    (expected,) = torch.autograd.grad(loss_of(terms, {"w": w}), w)
    add_gradient_(terms, {"w": w})
    torch.testing.assert_close(w.grad, expected)


def test_the_proximal_step_shrinks_every_wire_and_overlap_is_refused():
    w = weight((10, 3, 2, 2))
    before = w.clone()
    grouping = crossbar_rows("w", w.shape, (5, 4))
    proximal_([Term(grouping, Lasso(), 1.0)], {"w": w}, step=0.7)
    torch.testing.assert_close(
        grouping.of({"w": w}).norms, (grouping.of({"w": before}).norms - 0.7).clamp_min(0)
    )
    for top in range(0, 10, 4):
        block = before[top : top + 4]
        norm = torch.linalg.vector_norm(block, dim=0, keepdim=True)
        torch.testing.assert_close(w[top : top + 4], block * (1 - 0.7 / norm).clamp_min(0))
    with pytest.raises(UsageError, match="overlap"):
        proximal_(both(), {"w": w}, step=0.1)


def test_dead_wires_are_held():
    model = nn.Linear(7, 5, bias=False)
    grouping = crossbar_rows("weight", (5, 7), (4, 3))
    with torch.no_grad():
        model.weight[3:, 2] = 0  # one row of the last tile
        model.weight[0, 2] = 0  # a part of another
    run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    freeze = Freeze([grouping])
    freeze.start(run)
    model.weight.data.fill_(1.0)
    freeze.mask(run)
    assert (model.weight == 0).nonzero().tolist() == [[3, 2], [4, 2]]


def test_memory_that_cannot_be_flattened_is_refused():
    w = weight((8, 4, 3, 3)).to(memory_format=torch.channels_last)
    with pytest.raises(ShapeError, match="contiguous_format"):
        crossbar_columns("w", w.shape, (5, 4)).of({"w": w})
    assert crossbar_rows("w", w.shape, (5, 3)).of({"w": w}).count == 3 * 36  # no need to flatten


@pytest.mark.parametrize("tile", [(0, 4), (4, -1), (4,), (4, 2.0), (4, True)])
def test_impossible_tiles_are_refused(tile):
    for grouping in (crossbar_rows, crossbar_columns):
        with pytest.raises(UsageError, match="1 or more"):
            grouping("w", (4, 4), tile)
        with pytest.raises(ShapeError, match="outputs, inputs"):
            grouping("w", (4,))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 100))
def test_largest_divisor(size, limit):
    found = largest_divisor(size, limit)
    assert found <= limit
    assert size % found == 0
    assert all(size % d for d in range(found + 1, min(size, limit) + 1))


def test_largest_divisors_of_the_publication():
    assert [largest_divisor(n) for n in (500, 800, 1024, 50, 36)] == [50, 50, 64, 50, 36]
    with pytest.raises(UsageError, match="1 or more"):
        largest_divisor(0)
