"""Matrices on crossbars: which wires an array of small crossbars needs, as groups.

A layer is a matrix of inputs x outputs, tiled with crossbars of P rows and Q columns; the last tiles of a
dimension that is no multiple of them are smaller. A row of a tile is one wire that brings an input to it, a
column one that takes an output away. A wire is needed as long as its group is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from gracile.algebra.grouping import Grouping, View
from gracile.errors import ShapeError, UsageError

CROSSBAR = (64, 64)
"""Rows and columns of a crossbar, as in C18 (Group Scissor)."""


def crossbar_rows(tensor: str, shape: Sequence[int], tile: tuple[int, int] = CROSSBAR) -> Grouping:
    """One group for each row of each tile: what one input wire of a crossbar feeds.

    Group j * inputs + i is row i in the j-th tile along the outputs.

    Args:
        tensor: name of a weight.
        shape: its shape, (outputs, inputs, ...): the matrix has a row for each (input, kh, kw) and a column
            for each output.
        tile: rows P and columns Q of a crossbar.

    Raises:
        ShapeError: not the shape of a weight.
        UsageError: a tile without rows or columns.

    Source: C18 (Group Scissor), group connection deletion. There P and Q are divisors of the dimensions, see
    :func:`largest_divisor`; here the last tiles are smaller.

    >>> import torch
    >>> crossbar_rows("w", (5, 3), tile=(2, 2)).of({"w": torch.ones(5, 3)}).sizes
    tensor([2, 2, 2, 2, 2, 2, 1, 1, 1])
    """
    _, columns = _checked(shape, tile)
    return _grouping(tensor, "(tile out:{}) ...", ("tile", "..."), 0, shape[0], columns, prod(shape[1:]))


def crossbar_columns(tensor: str, shape: Sequence[int], tile: tuple[int, int] = CROSSBAR) -> Grouping:
    """One group for each column of each tile: what one output wire of a crossbar collects.

    Whole tiles come first: group o * tiles + i is column o in the i-th of them along the inputs; after these
    one group for each output in the last, smaller tile.

    Args, Raises, Source: as :func:`crossbar_rows`.

    >>> import torch
    >>> crossbar_columns("w", (2, 5), tile=(2, 2)).of({"w": torch.ones(2, 5)}).sizes
    tensor([2, 2, 2, 2, 1, 1])
    """
    rows, _ = _checked(shape, tile)
    return _grouping(tensor, "out ...(tile in:{})", ("out", "tile"), 1, prod(shape[1:]), rows, shape[0])


def largest_divisor(size: int, limit: int = 64) -> int:
    """The largest divisor of ``size`` up to ``limit``: the tile size in C18, where nothing may be left over.

    It degenerates to 1 where a size above the limit is prime; wires of different tilings do not compare.

    >>> largest_divisor(500), largest_divisor(1024), largest_divisor(67)
    (50, 64, 1)
    """
    if size < 1 or limit < 1:
        raise UsageError("tiling a matrix", got=f"size {size}, limit {limit}", expected="1 or more")
    return next(divisor for divisor in range(min(size, limit), 0, -1) if size % divisor == 0)


def _grouping(
    tensor: str, pattern: str, by: tuple[str, ...], dim: int, length: int, tile: int, across: int
) -> Grouping:
    """Whole tiles along one dimension, and what is left; each with a group for every index across."""
    whole, rest = length // tile * tile, length % tile
    if not rest or not whole:
        return Grouping((View(tensor, pattern.format(min(tile, length)), by),))
    first = whole // tile * across
    return Grouping(
        (
            View(tensor, pattern.format(tile), by, range(first), (dim, 0, whole)),
            View(tensor, pattern.format(rest), by, range(first, first + across), (dim, whole, rest)),
        )
    )


def _checked(shape: Sequence[int], tile: tuple[int, int]) -> tuple[int, int]:
    if len(shape) < 2 or min(shape) < 1:
        raise ShapeError(
            "crossbar grouping",
            got=f"shape {tuple(shape)}",
            expected="that of a weight: (outputs, inputs, ...)",
        )
    if len(tile) != 2 or any(type(size) is not int or size < 1 for size in tile):
        raise UsageError("crossbar grouping", got=f"tile {tile}", expected="rows and columns, 1 or more")
    return tile
