"""Who adds up which part of the gradients: a division that depends on nothing but the layer and the ranks.

So the result is the same however the layers are put into buckets.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import final

from gracile.wire.blocks import BLOCK


@final
@dataclass(frozen=True)
class Layer:
    """A tensor on the wire.

    Args:
        number: which one of the network.
        numbers: how many it has.
        packed: whether it travels in few bits; in single precision otherwise.
    """

    number: int
    numbers: int
    packed: bool

    def parts(self, ranks: int) -> list[range]:
        """The part that every rank adds up: a range of blocks, or of numbers where it is not packed.

        Parts differ by at most one block, and layers of one block go to all ranks in turn.

        >>> Layer(0, 2000, packed=True).parts(2), Layer(1, 5, packed=False).parts(2)
        ([range(0, 2), range(2, 4)], [range(0, 3), range(3, 5)])
        """
        size = -(-self.numbers // BLOCK) if self.packed else self.numbers
        bounds = [(size * k + self.number % ranks) // ranks for k in range(ranks + 1)]
        return [range(start, stop) for start, stop in pairwise(bounds)]

    def span(self, part: range) -> slice:
        """The numbers of a part."""
        step = BLOCK if self.packed else 1
        return slice(part.start * step, min(part.stop * step, self.numbers))


@final
@dataclass(frozen=True)
class Piece:
    """The part of one layer in a message: blocks, or numbers where it is not packed, and where they lie."""

    layer: Layer
    part: range
    at: int

    @property
    def first(self) -> int:
        """The block of its layer that it starts with."""
        return self.part.start

    @property
    def span(self) -> slice:
        """The numbers of its layer."""
        return self.layer.span(self.part)

    def words(self, width: int) -> slice:
        """Where it lies in a message with fields of ``width`` bits."""
        return slice(self.at * 16 * width, (self.at + len(self.part)) * 16 * width)

    @property
    def floats(self) -> slice:
        """Where it lies among the numbers in single precision."""
        return slice(self.at, self.at + len(self.part))


@final
@dataclass(frozen=True)
class Share:
    """What one rank, the owner, adds up of a bucket: pieces of packed layers, and of the others."""

    owner: int
    packed: tuple[Piece, ...]
    plain: tuple[Piece, ...]

    @cached_property
    def blocks(self) -> int:
        """Of all packed pieces."""
        return sum(len(piece.part) for piece in self.packed)

    @cached_property
    def floats(self) -> int:
        """Of all others."""
        return sum(len(piece.part) for piece in self.plain)


def shares(layers: tuple[Layer, ...], ranks: int) -> tuple[Share, ...]:
    """The share of every rank."""
    parts = {layer: layer.parts(ranks) for layer in layers}
    return tuple(_share(rank, [(layer, parts[layer][rank]) for layer in layers]) for rank in range(ranks))


def whole(layers: tuple[Layer, ...]) -> Share:
    """All of every layer."""
    return shares(layers, 1)[0]


def _share(owner: int, parts: list[tuple[Layer, range]]) -> Share:
    pieces: dict[bool, list[Piece]] = {True: [], False: []}
    at = {True: 0, False: 0}
    for layer, part in parts:
        if len(part):
            pieces[layer.packed].append(Piece(layer, part, at[layer.packed]))
            at[layer.packed] += len(part)
    return Share(owner, tuple(pieces[True]), tuple(pieces[False]))
