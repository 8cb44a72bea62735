"""A watched network: what ran, what its slices are called, and what can be cut."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, final

import numpy as np
import numpy.typing as npt

from gracile.algebra import Grouping, View
from gracile.errors import UsageError
from gracile.graph.attributes import Shown
from gracile.graph.counts import Counts, Kept
from gracile.graph.cut import Cut, CutRefusedError
from gracile.graph.labels import Axis, Labels
from gracile.graph.records import Axes, Block, Call, Operand, Pin, Reason, Step, Unit
from gracile.graph.settle import Conflict, attributes_of
from gracile.graph.sizes import Book, Need
from gracile.graph.units import Place, UnitTable, find_places, find_units

Outputs = Callable[[Any], Any]


def everything(output: Any) -> Any:
    """All that a model returns matters.

    >>> everything((1, 2))
    (1, 2)
    """
    return output


@final
class Graph:
    """What `watch` learned; nothing in it refers to the model or its numbers.

    ``outputs`` picks the part that matters from what the model returns.
    """

    def __init__(
        self,
        labels: Labels,
        steps: tuple[Step, ...],
        operands: dict[str, Operand],
        parameters: frozenset[str],
        contracted: dict[int, Axis],
        reasons: Sequence[Reason],
        book: Book,
        shown: Sequence[Shown],
        calls: tuple[Call, ...] = (),
        outputs: Outputs = everything,
    ) -> None:
        self.steps, self.calls, self.outputs = steps, calls, outputs
        self._book, self._shown = book, tuple(shown)
        self._labels, self._operands, self.parameters = labels, operands, parameters
        self._contracted, self._reasons = contracted, tuple(reasons)

    @property
    def tensors(self) -> dict[str, Axes]:
        """The labels of every parameter and buffer, by dimension."""
        return {name: given.labels for name, given in self._operands.items()}

    @cached_property
    def _places(self) -> tuple[Place, ...]:
        return find_places(self._labels, self._operands, self.parameters, self._contracted)

    @cached_property
    def _found(self) -> tuple[UnitTable, tuple[Block, ...]]:
        return find_units(self._labels, self._places, self.steps)

    @property
    def units(self) -> Sequence[Unit]:
        """Every unit that can be removed, numbered from 0; made on demand."""
        return self._found[0]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Units that play the same part, oldest first."""
        return self._found[1]

    def grouping(self, blocks: Iterable[int] | None = None) -> Grouping:
        """Units as groups of parameters: group g is unit g; units of other blocks are left empty."""
        table = self._found[0]
        chosen = None if blocks is None else np.isin(table.block, list(blocks))
        views = []
        for place in self._places:
            owners = table.owners(place) if place.parameter else None
            if owners is None:
                continue
            if chosen is not None:
                owners = np.where((owners >= 0) & chosen[owners], owners, -1)
                if not (owners >= 0).any():
                    continue
            axes = [f"d{d}" for d in range(len(self._operands[place.tensor].shape))]
            views.append(View(place.tensor, " ".join(axes), (axes[place.dim],), tuple(owners.tolist())))
        return Grouping(tuple(views), count=len(table))

    def cut(self, units: Iterable[int]) -> Cut:
        """What to keep everywhere when these units go.

        Raises:
            UsageError: there is no unit of that number, or the units are no numbers.
            CutRefusedError: a dimension would be left empty, or the model's own code would need a size that
                nothing can give it.
        """
        dead = self._dead(unit_numbers(units))
        kept: dict[str, dict[int, list[int]]] = {}
        for place in self._places:
            live = self._alive(place.labels, dead)
            if live is None:
                continue
            if not live.any():
                lost = sorted({int(u) for u in self._found[0].of[place.labels].max(1)} - {-1})
                block = self.blocks[self._found[0].block[lost[0]]]
                raise CutRefusedError(
                    f"cutting units {_few(lost)} of {block.name}",
                    got=f"nothing left of dimension {place.dim} of '{place.tensor}'",
                    expected="at least one index",
                    units=lost,
                    source=block.source,
                )
            kept.setdefault(place.tensor, {})[place.dim] = np.flatnonzero(live).tolist()
        return self._settled(kept, dead)

    @cached_property
    def _counts(self) -> Counts:
        return Counts(self._labels, self._found[0], self._book)

    def balanced(self, units: Iterable[int]) -> tuple[list[int], list[Kept]]:
        """Those of the units that can go so that the sizes in the model's code come out, and the others.

        Where two counts are tied (``width // heads``, equal halves) the fewest units stay for it, of every
        block those named last.
        """
        ordered = list(dict.fromkeys(units))
        unit_numbers(ordered)
        self._dead(ordered)
        return self._counts.balanced(ordered)

    def _settled(self, kept: dict[str, dict[int, list[int]]], dead: npt.NDArray[np.bool_]) -> Cut:
        """The cut with the attributes that follow from it."""
        settled, conflicts = self._counts.settle(dead)
        if conflicts:
            raise self._refused(conflicts, dead)
        attributes, shared = attributes_of(
            self._book.leaves,
            settled,
            self._shown,
            lambda tensor, dim: len(kept[tensor][dim]) if dim in kept.get(tensor, {}) else None,
        )
        return Cut(kept, attributes, shared)

    def _refused(self, conflicts: Sequence[Conflict], dead: npt.NDArray[np.bool_]) -> CutRefusedError:
        """The first conflict in words, with the units of all of them."""
        units = sorted({unit for conflict in conflicts for unit in self._involved(conflict.need, dead)})
        names = sorted({self.blocks[self._found[0].block[u]].name for u in units})
        first = conflicts[0]
        more = f" (and {len(conflicts) - 1} more such calls)" if len(conflicts) > 1 else ""
        return CutRefusedError(
            f"cutting units {_few(units)} of {_few(names)}",
            got=f"{first.got}{more}",
            expected=first.expected,
            hint="keep these units, or compute the size from the tensor's shape or from an attribute",
            units=units,
            op=first.need.op,
            source=first.need.source,
        )

    def _involved(self, need: Need, dead: npt.NDArray[np.bool_]) -> set[int]:
        """The dead units that a need depends on, by way of attributes too."""
        units = self._counts.involved(need)
        return set(units[dead[self._found[0].roots[units]]].tolist())

    def _dead(self, units: Iterable[int]) -> npt.NDArray[np.bool_]:
        table = self._found[0]
        chosen = np.fromiter(units, np.int64)
        if len(chosen) and not (chosen.min() >= 0 and chosen.max() < len(table)):
            wrong = chosen.min() if chosen.min() < 0 else chosen.max()
            raise UsageError("cut", got=f"unit {int(wrong)}", expected=f"numbers from 0 to {len(table) - 1}")
        dead = np.zeros(self._labels.count, bool)
        dead[table.roots[chosen]] = True
        return dead

    def _alive(self, resolved: Axis, dead: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
        """Which indices live; None when all do."""
        if resolved is None:
            return None
        gone: npt.NDArray[np.bool_] = np.asarray(dead[resolved].any(1))
        return ~gone if gone.any() else None

    def kept(self, axis: Axis, units: Iterable[int]) -> list[int] | None:
        """The indices of any operand's dimension that stay when these units go; None when all do."""
        live = self._alive(self._labels.resolve(axis), self._dead(units))
        return None if live is None else np.flatnonzero(live).tolist()

    def owners(self, axis: Axis) -> npt.NDArray[np.int32] | None:
        """The unit of each index of any operand's dimension, -1 for none; None when nothing can go."""
        rows = self._labels.resolve(axis)
        return None if rows is None else self._found[0].of[rows].max(1)

    def pin(self, units: Iterable[int], why: str) -> Graph:
        """A graph in which these units stay; unit numbers of the two graphs differ."""
        labels = self._labels.copy()
        labels.reason = len(self._reasons)
        labels.pin(np.flatnonzero(self._dead(unit_numbers(units))).astype(np.int32)[:, None])
        return Graph(
            labels,
            self.steps,
            self._operands,
            self.parameters,
            self._contracted,
            (*self._reasons, Reason(why)),
            self._book,
            self._shown,
            self.calls,
            self.outputs,
        )

    def pins(self) -> list[Pin]:
        """Which share of which parameter dimension is held, and by which operator; the largest first."""
        rows = []
        for place in self._places:
            if not place.parameter:
                continue
            found, counts = np.unique(self._labels.why(place.raw), return_counts=True)
            for number, held in zip(found.tolist(), counts.tolist(), strict=True):
                if number < 0:
                    continue
                reason = self._reasons[number]
                step = self.steps[reason.step] if reason.step >= 0 else None
                rows.append(
                    Pin(
                        place.tensor,
                        place.dim,
                        held,
                        len(place.raw),
                        "" if step is None else step.op,
                        reason.module if step is None else step.module,
                        reason.source if step is None else step.source,
                        reason.why or "held by this operator",
                    )
                )
        return sorted(rows, key=lambda row: -row.share)


def unit_numbers(units: Iterable[Any]) -> list[int]:
    """Units as plain integers, rising and each once; a mask or a fraction is no list of units.

    Raises:
        UsageError: something in ``units`` is no integer.

    >>> unit_numbers(np.array([3, 1, 3]))
    [1, 3]
    """
    listed = list(units) if isinstance(units, Iterable) else [units]
    numbers = [unit.item() if getattr(unit, "ndim", None) == 0 else unit for unit in listed]
    wrong = [number for number in numbers if type(number) is not int]
    if wrong:
        raise UsageError(
            "choosing units",
            got=f"{str(wrong[0])[:80]} ({type(wrong[0]).__name__}) among the units",
            expected="numbers of units",
            hint="mask.nonzero().flatten() turns a mask into numbers",
        )
    return sorted(set(numbers))


def _few(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:5]))
    return shown if len(items) <= 5 else f"{shown}, ... ({len(items)} in all)"
