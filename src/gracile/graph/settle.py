"""After a cut: what every integer of the model must become, or why that is impossible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gracile.graph.attributes import Shown
from gracile.graph.labels import Axis
from gracile.graph.sizes import OPERATORS, Apply, Attribute, Expression, Leaf, Length, Need, attributes_in

Count = Callable[[Axis, int], int]  # how many indices of an axis are left


@dataclass(frozen=True)
class Conflict:
    """A need that nothing can meet."""

    need: Need
    given: int
    wanted: int
    literal: bool

    @property
    def got(self) -> str:
        """The call, its line, and what it would be given."""
        given = f"the number {self.given}, written in the code" if self.literal else f"{self.given}"
        outcome = "that comes out differently" if self._comparison else f"given {given}"
        return f"{self.need.op} at {self.need.source or self.need.module} {outcome}"

    @property
    def expected(self) -> str:
        """What it would need to be given."""
        same = "the same outcome as before"
        return same if self._comparison else f"{self.wanted} in place of {self.need.size}"

    @property
    def _comparison(self) -> bool:
        return self.need.op == "comparison" and self.need.axis is None


def settle(
    leaves: Sequence[Leaf], needs: Sequence[Need], count: Count
) -> tuple[dict[int, int], list[Conflict]]:
    """New values of the integer attributes, by their number, and the needs that they do not meet."""
    values: dict[int, int] = {}
    conflicts: list[Conflict] = []
    wanted = [count(need.axis, need.size) for need in needs]
    for need, target in zip(needs, wanted, strict=True):
        if isinstance(need.given, Attribute) and values.setdefault(need.given.number, target) != target:
            conflicts.append(Conflict(need, values[need.given.number], target, literal=False))
    progress = True
    while progress:
        progress = False
        for need, target in zip(needs, wanted, strict=True):
            if evaluate(need.given, leaves, values, count) == target:
                continue
            unknown = attributes_in(need.given) - values.keys()
            if len(unknown) == 1:
                solved = _solve(need.given, target, leaves, values, count)
                if solved is not None and solved > 0:
                    values[unknown.pop()] = solved
                    progress = True
    for need, target in zip(needs, wanted, strict=True):
        given = evaluate(need.given, leaves, values, count)
        if given != target and not isinstance(need.given, Attribute):
            conflicts.append(Conflict(need, given, target, literal=isinstance(need.given, int)))
    return values, conflicts


def evaluate(given: Expression, leaves: Sequence[Leaf], values: dict[int, int], count: Count) -> int:
    """What an expression comes out as after the cut."""
    if isinstance(given, int):
        return given
    if isinstance(given, Attribute):
        return values.get(given.number, leaves[given.number].value)
    if isinstance(given, Length):
        return count(given.axis, given.size)
    left, right = evaluate(given.left, leaves, values, count), evaluate(given.right, leaves, values, count)
    return 0 if right == 0 and given.op in ("//", "%") else OPERATORS[given.op](left, right)


def _solve(
    given: Expression, target: int, leaves: Sequence[Leaf], values: dict[int, int], count: Count
) -> int | None:
    """The value of the one unknown attribute that makes the expression come out as the target."""
    if isinstance(given, Attribute):
        return target
    if not isinstance(given, Apply):
        return None
    left, right = evaluate(given.left, leaves, values, count), evaluate(given.right, leaves, values, count)
    if attributes_in(given.left) - values.keys():
        inverse = {
            "+": target - right,
            "-": target + right,
            "*": target // right if right and target % right == 0 else None,
            "//": target * right,
        }.get(given.op)
        return None if inverse is None else _solve(given.left, inverse, leaves, values, count)
    inverse = {
        "+": target - left,
        "-": left - target,
        "*": target // left if left and target % left == 0 else None,
        "//": left // target if target and left % target == 0 else None,
    }.get(given.op)
    return None if inverse is None else _solve(given.right, inverse, leaves, values, count)


def attributes_of(
    leaves: Sequence[Leaf],
    values: dict[int, int],
    shown: Sequence[Shown],
    kept: Callable[[str, int], int | None],
) -> tuple[dict[str, int | list[int]], dict[str, list[str]]]:
    """New attribute values by path, and the other paths of objects that are reached by several."""
    changed: dict[str, int | list[int]] = {}
    shared: dict[str, list[str]] = {}
    required: dict[str, int] = {}
    for number, value in values.items():
        leaf = leaves[number]
        if leaf.position is None:
            required[leaf.path] = value
        if value == leaf.value:
            continue
        if leaf.position is None:
            changed[leaf.path] = value
        else:
            row = changed.setdefault(leaf.path, list(leaf.whole) if isinstance(leaf.whole, list) else [])
            assert isinstance(row, list)
            row[leaf.position] = value
        if leaf.aliases:
            shared[leaf.path] = list(leaf.aliases)
    for row_ in shown:
        left = kept(row_.tensor, row_.dim)
        factor = required.get(row_.times, row_.factor) if row_.times else 1
        size = row_.value // row_.factor if left is None else left
        if row_.path not in required and size * factor != row_.value:
            changed[row_.path] = size * factor
    return changed, shared
