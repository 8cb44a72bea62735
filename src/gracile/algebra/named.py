"""The groupings that have a name in the literature (C6 (SSL)).

Each takes the name of a weight tensor, whose first dimension is the outputs and whose second is
the inputs, and works for convolutions of any dimension and for linear layers.
"""

from __future__ import annotations

from gracile.algebra.grouping import Grouping, View


def _one(tensor: str, pattern: str, *by: str) -> Grouping:
    return Grouping((View(tensor, pattern, by),))


def filters(tensor: str) -> Grouping:
    """One group for each output channel: W[n, :, :, :].

    >>> import torch
    >>> filters("w").of({"w": torch.ones(2, 3, 5, 5)}).sizes
    tensor([75, 75])
    """
    return _one(tensor, "out ...", "out")


def channels(tensor: str) -> Grouping:
    """One group for each input channel: W[:, c, :, :]."""
    return _one(tensor, "out in ...", "in")


def shapes(tensor: str) -> Grouping:
    """One group for each shape fibre, a column of the lowered matrix: W[:, c, h, w]."""
    return _one(tensor, "out ...", "...")


def kernels(tensor: str) -> Grouping:
    """One group for each 2-D kernel: W[n, c, :, :]."""
    return _one(tensor, "out in ...", "out", "in")


def layer(tensor: str) -> Grouping:
    """The whole tensor as one group."""
    return _one(tensor, "...")


def elements(tensor: str) -> Grouping:
    """Every number a group of its own."""
    return _one(tensor, "...", "...")


def rows(tensor: str) -> Grouping:
    """Rows of the lowered matrix (out) x (in kh kw): the same numbers as :func:`filters`."""
    return _one(tensor, "row ...", "row")


def columns(tensor: str) -> Grouping:
    """Columns of the lowered matrix (out) x (in kh kw): the same numbers as :func:`shapes`."""
    return _one(tensor, "row ...", "...")


def blocks(tensor: str, r: int, c: int) -> Grouping:
    """Tiles of ``r`` rows by ``c`` columns of the lowered matrix; they must cover it exactly.

    >>> import torch
    >>> blocks("w", 2, 25).of({"w": torch.ones(4, 3, 5, 5)}).sizes
    tensor([50, 50, 50, 50, 50, 50])
    """
    return _one(tensor, f"(tile row:{r}) ...(tile_column column:{c})", "tile", "tile_column")
