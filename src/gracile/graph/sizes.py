"""Integers that remember where they came from: an attribute, the length of a dimension, or a sum of those.

While a model is watched its integer attributes and the sizes of its tensors are `Traced`: still ints, but
arithmetic on them builds an expression. When such a number is used as a size, the labels say what it must
become after a cut, and the expression says which attribute has to change for that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, final

from gracile.graph.labels import Axis


@dataclass(frozen=True, slots=True)
class Attribute:
    """An integer attribute, by its number in the book."""

    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Length:
    """How many indices of a dimension are left."""

    axis: Axis
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """An operator of Python's on two expressions."""

    op: str
    left: Expression
    right: Expression


Expression = Attribute | Length | Apply | int


def lengths(given: Expression) -> list[Axis]:
    """The axes whose lengths an expression depends on."""
    if isinstance(given, Apply):
        return lengths(given.left) + lengths(given.right)
    return [given.axis] if isinstance(given, Length) else []


def attributes_in(given: Expression) -> set[int]:
    """The attributes an expression depends on, by number."""
    if isinstance(given, Attribute):
        return {given.number}
    return attributes_in(given.left) | attributes_in(given.right) if isinstance(given, Apply) else set()


OPERATORS: Final[Mapping[str, Callable[[int, int], int]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True, eq=False)
class Need:
    """After a cut `given` must be the number of indices left of `axis` (or `size`, where it is None)."""

    given: Expression
    axis: Axis
    size: int
    op: str
    module: str
    source: str


@dataclass(slots=True, eq=False)
class Leaf:
    """An integer attribute of a module, or of an object that modules point to."""

    path: str
    position: int | None  # in a list of integers
    value: int
    whole: int | list[int]
    aliases: list[str] = field(default_factory=list)


@final
class Book:
    """What was learned about integers while the model ran."""

    def __init__(self) -> None:
        self.open = True
        self.inside = False  # a function of torch's that is Python, where the sizes of tensors are plain
        self.leaves: list[Leaf] = []
        self.needs: list[Need] = []
        self.where: Callable[[], tuple[str, str]] = lambda: ("", "")  # module and source line
        self.pin: Callable[[Axis, str], None] = lambda axis, why: None

    def need(self, op: str, given: int, axis: Axis, size: int) -> None:
        """Record that a number was used as the size of a dimension."""
        expression = expression_of(given)
        if isinstance(expression, int) and axis is None:
            return
        if isinstance(expression, Length) and expression.axis is axis:
            return
        module, source = self.where()
        self.needs.append(Need(expression, axis, size, op, module, source))

    def used(self, given: Traced) -> None:
        """Record that a traced integer took part in arithmetic, where another value is another function."""
        if attributes_in(given.expression):
            module, source = self.where()
            self.needs.append(Need(given.expression, None, int(given), "arithmetic", module, source))
        else:
            for axis in lengths(given.expression):
                self.pin(axis, "its length is used as a number")


@final
class Traced(int):
    """An int with an expression. Once its book is closed it is an int like any other."""

    expression: Expression
    book: Book

    def __eq__(self, other: object) -> bool:
        return self._compared("==", other, int.__eq__(self, other))

    def __ne__(self, other: object) -> bool:
        same = self._compared("==", other, int.__eq__(self, other))
        return same if same is NotImplemented else not same

    def __lt__(self, other: int) -> bool:
        return self._compared("<", other, int.__lt__(self, other))

    def __le__(self, other: int) -> bool:
        return self._compared("<=", other, int.__le__(self, other))

    def __gt__(self, other: int) -> bool:
        return self._compared(">", other, int.__gt__(self, other))

    def __ge__(self, other: int) -> bool:
        return self._compared(">=", other, int.__ge__(self, other))

    def __bool__(self) -> bool:
        return not self._compared("==", 0, int.__eq__(self, 0))

    __hash__ = int.__hash__

    def _compared(self, op: str, other: object, outcome: bool) -> bool:
        """A model that compares two sizes will do so again after the cut, and must take the same way."""
        if outcome is NotImplemented or not self.book.open or isinstance(other, bool):
            return outcome
        mine, theirs = self.expression, expression_of(other)
        if self.book.inside and isinstance(theirs, int):
            return outcome
        if op == "==" and isinstance(mine, Length):
            mine, theirs = theirs, mine
        module, source = self.book.where()
        given: Expression = Apply(op, mine, theirs)
        axis: Axis = None
        size = int(outcome)
        if op == "==" and outcome:  # sizes that are equal say what an attribute must become
            if isinstance(theirs, Length):
                given, axis, size = mine, theirs.axis, theirs.size
            elif isinstance(theirs, int):
                given, size = mine, theirs
            else:
                given, size = Apply("-", mine, theirs), 0
        self.book.needs.append(Need(given, axis, size, "comparison", module, source))
        return outcome

    def __float__(self) -> float:
        return float(self._used(int.__float__(self)))

    def __truediv__(self, other: Any) -> Any:
        return self._used(int.__truediv__(self, other))

    def __rtruediv__(self, other: Any) -> Any:
        return self._used(int.__rtruediv__(self, other))

    def __pow__(self, other: Any, modulo: int | None = None) -> Any:
        whole = isinstance(other, int) and other >= 0
        return int(self) ** other if whole else self._used(int(self) ** other)

    def _used(self, value: Any) -> Any:
        if self.book.open:
            self.book.used(self)
        return value

    def __neg__(self) -> int:
        return self * -1

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


def traced(value: int, expression: Expression, book: Book) -> Traced:
    """An int that remembers."""
    number = Traced(value)
    number.expression, number.book = expression, book
    return number


def expression_of(value: object) -> Expression:
    """The expression of a traced integer, or the plain number itself."""
    return value.expression if isinstance(value, Traced) else int(value)  # type: ignore[call-overload]


def _method(symbol: str, name: str, reverse: bool) -> Callable[[Traced, Any], Any]:
    plain = getattr(int, name)

    def method(self: Traced, other: Any) -> Any:
        value = plain(self, other)
        if value is NotImplemented or not self.book.open or isinstance(other, bool):
            return value
        mine, theirs = self.expression, expression_of(other)
        made = Apply(symbol, theirs, mine) if reverse else Apply(symbol, mine, theirs)
        return traced(value, made, self.book)

    return method


for _symbol, _name in (("+", "add"), ("-", "sub"), ("*", "mul"), ("//", "floordiv"), ("%", "mod")):
    setattr(Traced, f"__{_name}__", _method(_symbol, f"__{_name}__", reverse=False))
    setattr(Traced, f"__r{_name}__", _method(_symbol, f"__r{_name}__", reverse=True))
