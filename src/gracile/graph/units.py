"""From labels to units: which labels can go, which of them play the same part, which exclude each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, final

import numpy as np
import numpy.typing as npt

from gracile.graph.labels import WIDTH, Axis, Ints, Labels
from gracile.graph.records import Block, Operand, Slice, Step, Unit


@dataclass(frozen=True, eq=False)
class Place:
    """One dimension of a parameter or buffer and its labels, resolved."""

    tensor: str
    dim: int
    role: Literal["out", "in"]
    parameter: bool
    raw: Ints
    labels: Axis


@final
class UnitTable(Sequence[Unit]):
    """Every unit of a network, made on demand from arrays.

    ``of[label]`` is the number of the unit that a resolved label belongs to, -1 for none.
    """

    def __init__(self, places: Sequence[Place], of: Ints, roots: Ints, blocks: Ints) -> None:
        self.places, self.of, self.roots, self.block = places, of, roots, blocks

    def __len__(self) -> int:
        return len(self.roots)

    def owners(self, place: Place) -> Ints | None:
        """The unit of every index of a place, -1 for none; None when no index has one."""
        if place.labels is None:
            return None
        owners = self.of[place.labels].max(1)
        return owners if (owners >= 0).any() else None

    @cached_property
    def _members(self) -> tuple[Ints, list[int], list[int], list[int]]:
        units, places, indices = [], [], []
        for number, place in enumerate(self.places):
            owners = self.owners(place)
            if owners is not None:
                found = np.flatnonzero(owners >= 0)
                units.append(owners[found])
                places.append(np.full(len(found), number))
                indices.append(found)
        if not units:
            return np.zeros(1, np.int32), [], [], []
        owner = np.concatenate(units)
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(len(self) + 1)).astype(np.int32)
        return starts, np.concatenate(places)[order].tolist(), np.concatenate(indices)[order].tolist(), []

    def __getitem__(self, item: int | slice) -> Unit | tuple[Unit, ...]:  # type: ignore[override]
        if isinstance(item, slice):
            return tuple(self._unit(i) for i in range(*item.indices(len(self))))
        number = item + len(self) if item < 0 else item
        if not 0 <= number < len(self):
            raise IndexError(item)
        return self._unit(number)

    def _unit(self, number: int) -> Unit:
        starts, places, indices, _ = self._members
        slices: dict[int, list[int]] = {}
        for at in range(starts[number], starts[number + 1]):
            slices.setdefault(places[at], []).append(indices[at])
        return Unit(
            number,
            int(self.block[number]),
            tuple(
                Slice(self.places[p].tensor, self.places[p].dim, tuple(found), self.places[p].role)
                for p, found in slices.items()
            ),
        )


def find_places(
    labels: Labels, tensors: dict[str, Operand], parameters: frozenset[str], contracted: dict[int, Axis]
) -> tuple[Place, ...]:
    """Every labelled dimension of every parameter and buffer."""
    raw = [
        (name, dim, axis)
        for name, tensor in tensors.items()
        for dim, axis in enumerate(tensor.labels)
        if axis is not None
    ]
    resolved = labels.resolve_all([axis for _, _, axis in raw])
    return tuple(
        Place(name, dim, "in" if id(axis) in contracted else "out", name in parameters, axis, found)
        for (name, dim, axis), found in zip(raw, resolved, strict=True)
    )


def find_units(
    labels: Labels, places: Sequence[Place], steps: Sequence[Step]
) -> tuple[UnitTable, tuple[Block, ...]]:
    """Units and blocks.

    A unit is a label that at least two dimensions of parameters carry. Units that occur in the same
    columns of labels, over all operators, form a block. Where a dimension is a product of two blocks (heads
    and their width) only the outer one is offered.
    """
    uses = np.zeros(labels.count, np.int32)
    for place in places:
        if place.parameter and place.labels is not None:
            uses[place.labels] += 1  # at most once for one place
    candidates = np.flatnonzero(uses[1:] >= 2) + 1
    signature = _signatures(labels, places, steps)[candidates]
    _, first, inverse = np.unique(signature, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    block = rank[inverse]  # blocks in the order of their oldest label

    block_of = np.full(labels.count, -1, np.int64)
    block_of[candidates] = block
    losers = _clashes(places, block_of, len(first))
    offered = np.array([b not in losers for b in range(len(first))], bool)
    order = np.argsort(block, kind="stable")
    order = order[offered[block[order]]]
    number = np.cumsum(offered) - 1
    roots = candidates[order].astype(np.int32)
    of = np.full(labels.count, -1, np.int32)
    of[roots] = np.arange(len(roots))
    table = UnitTable(places, of, roots, number[block[order]].astype(np.int32))
    return table, _named(table, int(offered.sum()), steps)


def _signatures(labels: Labels, places: Sequence[Place], steps: Sequence[Step]) -> npt.NDArray[np.uint64]:
    arrays = {id(place.raw): place.raw for place in places}
    for step in steps:
        for given in step.outputs:
            arrays.update((id(axis), axis) for axis in given.labels if axis is not None)
    random = np.random.default_rng(0).integers(1, 2**63, (len(arrays), WIDTH), dtype=np.uint64)
    signature = np.zeros(labels.count, np.uint64)
    for axis, numbers in zip(labels.resolve_all(list(arrays.values())), random, strict=True):
        if axis is not None:
            for column, number in zip(axis.T, numbers, strict=False):
                signature[column] += number  # once for one column of one array
    return signature


def _clashes(places: Sequence[Place], block_of: npt.NDArray[np.int64], count: int) -> set[int]:
    """Blocks that give way to another with which they share a dimension: inner factors to outer ones."""
    rivals: dict[int, set[int]] = {b: set() for b in range(count)}
    depth = [0] * count
    for place in places:
        if place.labels is None or place.labels.shape[1] == 1:
            continue
        for row in np.unique(block_of[place.labels], axis=0).tolist():
            present = {b for b in row if b >= 0}
            for b in present:
                rivals[b] |= present - {b}
        changes = (place.labels[1:] != place.labels[:-1]).sum(0)  # the outermost factor changes least
        for rank, column in enumerate(np.argsort(changes, kind="stable").tolist()):
            for b in np.unique(block_of[place.labels[:, column]]).tolist():
                if b >= 0:
                    depth[b] = max(depth[b], rank)
    alone = np.bincount(block_of[block_of >= 0], minlength=count) == 1  # the half of a shuffle: never to go
    losers: set[int] = set()
    for b in sorted(range(count), key=lambda b: (alone[b], depth[b], b)):
        if b not in losers:
            losers |= rivals[b]
    return losers


def _named(table: UnitTable, count: int, steps: Sequence[Step]) -> tuple[Block, ...]:
    sources: dict[str, str] = {}
    for step in steps:
        for given in step.inputs:
            if given.name is not None:
                sources.setdefault(given.name, step.source)
    names: list[str | None] = [None] * count
    producers: list[str] = [""] * count
    for role in ("out", "in"):
        for place in table.places:
            owners = table.owners(place) if place.role == role and place.parameter else None
            if owners is not None:
                for b in np.unique(table.block[owners[owners >= 0]]).tolist():
                    if names[b] is None:
                        names[b], producers[b] = place.tensor.rpartition(".")[0] or place.tensor, place.tensor
    members = np.split(np.arange(len(table)), np.flatnonzero(np.diff(table.block)) + 1) if len(table) else []
    blocks: list[Block] = []
    seen: dict[str, int] = {}
    for b, units in enumerate(members):
        name = names[b] or ""
        seen[name] = seen.get(name, 0) + 1
        blocks.append(
            Block(
                b,
                name if seen[name] == 1 else f"{name}:{seen[name]}",
                tuple(units.tolist()),
                sources.get(producers[b], ""),
            )
        )
    return tuple(blocks)
