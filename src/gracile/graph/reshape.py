"""Labels through a reshape: the index arithmetic of view, flatten, unflatten and their kin.

Only dimensions that a reshape really mixes are looked at: the sizes before and after are cut into minimal
blocks of equal product. Within a block every column of labels is a function of one dimension before; it is
followed to the dimensions after. If it depends on one of them, it goes there. If its labels are all
distinct over several, each is *split* into a row with one label per dimension, which loses nothing. What is
left is merged until it depends on one dimension alone: coarser, still right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import numpy as np

from gracile.graph.labels import WIDTH, Axis, Ints, Labels


def reshape(labels: Labels, axes: Sequence[Axis], before: Sequence[int], after: Sequence[int]) -> list[Axis]:
    """Axes after a row-major reshape of sizes `before` to sizes `after`.

    >>> labels = Labels()
    >>> heads, width = reshape(labels, [labels.fresh(6)], [6], [2, 3])
    >>> flat, = reshape(labels, [heads, width], [2, 3], [6])
    >>> labels.resolve(flat).tolist()
    [[7, 9], [7, 10], [7, 11], [8, 9], [8, 10], [8, 11]]
    """
    out: list[Axis] = [None] * len(after)
    if prod(before) == 0:
        for axis in axes:
            labels.pin(axis)
        return out
    for ins, outs in _blocks(before, after):
        if all(axes[i] is None for i in ins):
            continue
        if len(ins) == len(outs) == 1:
            out[outs[0]] = axes[ins[0]]
            continue
        block = _Block(tuple(before[i] for i in ins), tuple(after[o] for o in outs))
        columns: list[list[Ints]] = [[] for _ in outs]
        for position, i in enumerate(ins):
            _follow(labels, axes[i], position, block, columns)
        for o, found in zip(outs, columns, strict=True):
            axis = np.concatenate(found, 1) if found else None
            if axis is not None and axis.shape[1] > WIDTH:
                axis = labels.resolve(axis)
            out[o] = axis
    return out


def _blocks(before: Sequence[int], after: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Minimal runs of dimensions (those of size 1 left out) with equal products."""
    ins = [d for d, n in enumerate(before) if n != 1]
    outs = [d for d, n in enumerate(after) if n != 1]
    i = o = 0
    while i < len(ins):
        left, right, i0, o0 = before[ins[i]], after[outs[o]], i, o
        i, o = i + 1, o + 1
        while left != right:
            if left < right:
                left, i = left * before[ins[i]], i + 1
            else:
                right, o = right * after[outs[o]], o + 1
        yield ins[i0:i], outs[o0:o]


@dataclass(frozen=True)
class _Piece:
    """Part of one dimension after: its index is (o // lower) % size."""

    out: int
    size: int
    lower: int


class _Block:
    """The sizes of one block and, by dimension before, the pieces of dimensions after that it becomes."""

    def __init__(self, before: tuple[int, ...], after: tuple[int, ...]) -> None:
        self.before, self.after = before, after
        strides = {prod(before[i:]) for i in range(len(before) + 1)}
        strides |= {prod(after[o:]) for o in range(len(after) + 1)}
        cuts = sorted(strides, reverse=True)
        self.clean = all(high % low == 0 for high, low in pairwise(cuts))
        self._cuts = cuts

    def pieces(self, position: int) -> list[_Piece]:
        if not self.clean:  # the dimensions interleave: every one before reaches every one after
            return [_Piece(o, n, 1) for o, n in enumerate(self.after)]
        high, low = prod(self.before[position:]), prod(self.before[position + 1 :])
        found = []
        for o in range(len(self.after)):
            top, bottom = prod(self.after[o:]), prod(self.after[o + 1 :])
            first, last = min(top, high), max(bottom, low)
            if first > last:
                found.append(_Piece(o, first // last, last // bottom))
        return found

    def grid(self, column: Ints, position: int, pieces: list[_Piece]) -> Ints:
        if self.clean:
            return column.reshape([piece.size for piece in pieces])
        lower = prod(self.before[position + 1 :])
        spread = column[(np.arange(prod(self.before)) // lower) % self.before[position]]
        return spread.reshape(self.after)


def _follow(labels: Labels, axis: Axis, position: int, block: _Block, out: list[list[Ints]]) -> None:
    """Place every column of the axis on the dimensions after it depends on."""
    pieces = block.pieces(position)
    waiting: list[Axis] = [axis]
    while waiting:
        resolved = labels.resolve(waiting.pop())
        if resolved is None:
            continue
        if resolved.shape[1] > 1:
            waiting += [
                np.ascontiguousarray(resolved[:, c : c + 1]) for c in reversed(range(resolved.shape[1]))
            ]
            continue
        grid = block.grid(resolved[:, 0], position, pieces)
        for piece, column in _separate(labels, grid, pieces):
            out[piece.out].append(_place(column, piece, block.after[piece.out])[:, None])


def _place(column: Ints, piece: _Piece, size: int) -> Ints:
    if piece.size == size:
        return column
    upper = size // (piece.size * piece.lower)
    return np.broadcast_to(column[None, :, None], (upper, piece.size, piece.lower)).reshape(-1)


def _separate(labels: Labels, grid: Ints, pieces: list[_Piece]) -> list[tuple[_Piece, Ints]]:
    varying = [d for d in range(grid.ndim) if grid.shape[d] > 1 and (grid != grid.take([0], d)).any()]
    if not varying:
        labels.pin(grid.reshape(-1, 1))
        return []
    grid = grid[tuple(slice(None) if d in varying else 0 for d in range(grid.ndim))]
    pieces = [pieces[d] for d in varying]
    flat = grid.reshape(-1)
    if len(pieces) == 1:
        return [(pieces[0], flat)]
    if flat.all() and labels.distinct(flat):
        parts = [labels.fresh(n)[:, 0] for n in grid.shape]
        labels.split(flat, np.stack(np.meshgrid(*parts, indexing="ij"), -1).reshape(len(flat), -1))
        return list(zip(pieces, parts, strict=True))
    best = max(range(grid.ndim), key=lambda d: _classes(np.moveaxis(grid, d, 0)))
    rows = np.moveaxis(grid, best, 0).reshape(grid.shape[best], -1)
    free = rows.all(1)
    labels.pin(rows[~free].reshape(-1, 1))
    labels.union(np.repeat(rows[free, 0], rows.shape[1]), rows[free].ravel())
    return [(pieces[best], rows[:, 0])]


def _classes(grid: Ints) -> int:
    """How many classes are left when every row of the grid becomes one."""
    rows = grid.reshape(len(grid), -1)
    _, values = np.unique(rows, return_inverse=True)
    values = values.reshape(rows.shape)
    names = np.arange(len(rows))
    while True:
        smallest = np.full(values.max() + 1, len(rows))
        np.minimum.at(smallest, values.ravel(), np.repeat(names, rows.shape[1]))
        after = np.minimum(names, smallest[values].min(1))
        if np.array_equal(after, names):
            return len(np.unique(names))
        names = after
