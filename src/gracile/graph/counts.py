"""Sizes that have to come out together: which counts of units a network's own arithmetic allows.

``C // self.num_heads`` ties the width to the number of heads; two halves of a shuffle must stay equal. Such
needs are equations in the numbers of indices left. Given units that are to go, `Counts.balanced` finds the
few that have to stay after all so that every equation holds.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import final

import numpy as np
import numpy.typing as npt

from gracile.graph.labels import Axis, Labels
from gracile.graph.settle import Conflict, Count, settle
from gracile.graph.sizes import Book, Need, attributes_in, lengths
from gracile.graph.units import UnitTable

Mask = npt.NDArray[np.bool_]
SEARCH = 2000  # most equations systems that are tried for one cut


@dataclass(frozen=True)
class Kept:
    """Units of one block that have to stay for the sake of a size, and the conflict that says so."""

    units: tuple[int, ...]
    why: Conflict


@final
class Counts:
    """How many indices are left where the model's code uses sizes."""

    def __init__(self, labels: Labels, table: UnitTable, book: Book) -> None:
        self._labels, self._table, self._book = labels, table, book
        self._rows: dict[
            int, tuple[Axis, Axis]
        ] = {}  # by id of the axis, which is held so that it stays its own
        self._closures: dict[int, list[Need]] = {}
        self._units: dict[int, npt.NDArray[np.int32]] = {}
        self._carried = np.zeros(labels.count, bool)
        for place in table.places:
            if place.labels is not None:
                self._carried[place.labels] = True
        self._needs = [need for need in book.needs if not self._idle(need)]

    def _idle(self, need: Need) -> bool:
        """Whether a need is for a dimension that was broadcast and met nothing since: any size will do."""
        rows = None if isinstance(need.given, int) else self.rows(need.axis)
        return rows is not None and bool(rows.all()) and not self._carried[rows].any()

    def rows(self, axis: Axis) -> Axis:
        """The axis resolved, from memory; equal axes give the same array."""
        if axis is None:
            return None
        if id(axis) not in self._rows:
            self._rows[id(axis)] = (axis, self._labels.resolve(axis))
        return self._rows[id(axis)][1]

    def left(self, dead: Mask) -> Count:
        """The function that counts what is left of an axis when the labels in ``dead`` go."""
        known: dict[int, int] = {}

        def count(axis: Axis, size: int) -> int:
            rows = self.rows(axis)
            if rows is None:
                return size
            if id(axis) not in known:
                known[id(axis)] = size - int(dead[rows].any(1).sum())
            return known[id(axis)]

        return count

    def settle(self, dead: Mask) -> tuple[dict[int, int], list[Conflict]]:
        """New values of attributes, and the needs that cannot be met."""
        return settle(self._book.leaves, self._needs, self.left(dead))

    def involved(self, need: Need) -> npt.NDArray[np.int32]:
        """The units that a need depends on, by way of attributes too."""
        closure = self._closure(need)
        if id(closure) not in self._units:
            found = [np.zeros(0, np.int32)]
            for axis in {id(a): a for n in closure for a in (n.axis, *lengths(n.given))}.values():
                rows = self.rows(axis)
                if rows is not None:
                    found.append(self._table.of[rows].ravel())
            units = np.unique(np.concatenate(found))
            self._units[id(closure)] = units[units >= 0]
        return self._units[id(closure)]

    def _closure(self, need: Need) -> list[Need]:
        """All needs that share attributes with this one, directly or by way of others."""
        if id(need) not in self._closures:
            attributes, chosen, waiting = attributes_in(need.given), [need], list(self._needs)
            while True:
                near = [n for n in waiting if attributes & attributes_in(n.given)]
                if not near:
                    break
                waiting = [n for n in waiting if not attributes & attributes_in(n.given)]
                chosen += [n for n in near if n is not need]
                attributes = attributes.union(*(attributes_in(n.given) for n in near))
            for member in chosen if attributes else [need]:
                self._closures[id(member)] = chosen
        return self._closures[id(need)]

    def balanced(self, units: Sequence[int]) -> tuple[list[int], list[Kept]]:
        """Those of ``units`` that can go so that all sizes come out, and those that stay for it.

        Of every block the units named last stay first. Where no such numbers are found, the units that the
        unmet needs involve are left as they are: the cut will be refused with the reason.
        """
        if not self._conflicts(self._needs, units):
            return list(units), []
        needs = [n for n in self._needs if len(self.involved(n))]
        blocks: dict[int, list[int]] = {}
        for unit in units:
            blocks.setdefault(int(self._table.block[unit]), []).append(unit)
        sizes = np.bincount(self._table.block)
        tried = count()
        stays: list[Kept] = []
        for component in self._components(needs):
            members = {int(b) for n in component for b in np.unique(self._table.block[self.involved(n)])}
            start = {b: len(going) for b, going in blocks.items() if b in members}
            found = self._search(component, blocks, start, sizes, tried)
            for b, (left, why) in found.items():
                stays.append(Kept(tuple(blocks[b][left:]), why))
                blocks[b] = blocks[b][:left]
        staying = {unit for kept in stays for unit in kept.units}
        return [unit for unit in units if unit not in staying], stays

    def _search(
        self,
        needs: Sequence[Need],
        blocks: Mapping[int, Sequence[int]],
        start: Mapping[int, int],
        sizes: npt.NDArray[np.int64],
        tried: Iterable[int],
    ) -> dict[int, tuple[int, Conflict]]:
        """Best first: the numbers of units to go, by block, that restore the smallest shares of blocks."""
        order = sorted(start)
        serial = count()
        first = tuple(start[b] for b in order)
        heap: list[tuple[float, int, tuple[int, ...], tuple[Conflict | None, ...]]] = [
            (0.0, next(serial), first, (None,) * len(order))
        ]
        seen: set[tuple[int, ...]] = set()
        steps = iter(tried)

        def units_of(state: tuple[int, ...]) -> list[int]:
            return [u for b, n in zip(order, state, strict=True) for u in blocks[b][:n]]

        while heap:
            cost, _, state, why = heapq.heappop(heap)
            if state in seen:
                continue
            seen.add(state)
            conflicts = self._conflicts(needs, units_of(state))
            if not conflicts:
                return {
                    b: (n, reason)
                    for b, n, reason in zip(order, state, why, strict=True)
                    if reason is not None
                }
            need = conflicts[0].need
            near = self._closure(need)
            touched = {int(b) for b in np.unique(self._table.block[self.involved(need)])}
            free = [k for k, b in enumerate(order) if b in touched and state[k] > 0]
            jumps: list[tuple[int, int]] = []
            for k in free:
                for n in range(state[k] - 1, -1, -1):
                    if next(steps) > SEARCH:
                        return {}
                    trial = (*state[:k], n, *state[k + 1 :])
                    if not any(c.need is need for c in self._conflicts(near, units_of(trial))):
                        jumps.append((k, n))
                        break
            for k, n in jumps or [(k, state[k] - 1) for k in free]:
                after = (*state[:k], n, *state[k + 1 :])
                share = float((state[k] - n) / sizes[order[k]])
                reasons = (*why[:k], conflicts[0], *why[k + 1 :])
                heapq.heappush(heap, (cost + share, next(serial), after, reasons))
        return {}

    def _conflicts(self, needs: Sequence[Need], units: Iterable[int]) -> list[Conflict]:
        dead = np.zeros(self._labels.count, bool)
        dead[self._table.roots[np.fromiter(units, np.int64)]] = True
        return settle(self._book.leaves, needs, self.left(dead))[1]

    def _components(self, needs: Sequence[Need]) -> list[list[Need]]:
        """Needs that share blocks or attributes, together; the order of the code is kept."""
        found: list[tuple[set[object], list[Need]]] = []
        for need in needs:
            keys: set[object] = set(np.unique(self._table.block[self.involved(need)]).tolist())
            keys |= {f"attribute {a}" for a in attributes_in(need.given)}
            together = [row for row in found if row[0] & keys]
            found = [row for row in found if not row[0] & keys]
            members = [n for row in together for n in row[1]]
            found.append((keys.union(*(row[0] for row in together)), [*members, need]))
        return [members for _, members in found]
