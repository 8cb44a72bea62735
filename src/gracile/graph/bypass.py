"""Which modules a shortcut bypasses, so that they can be removed whole: depth.

    block    y = act(x + f(x))   the module computes all of it; without f it is act(x + constant)
    branch   s + f(x)            the module computes f, the longer way; without it the sum keeps s

Both are read off the log: ``x`` is followed through the steps of a call, everything that is added to it on
the way is a branch, and what comes out must be the sum. Nothing looks at types or names of modules.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, final

from gracile.graph.network import Graph
from gracile.graph.records import Call, Operand, Step

# Operators that only rearrange what they are given.
MOVES = frozenset(
    ("view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "unsqueeze", "squeeze",
     "clone", "contiguous", "alias", "detach", "lift_fresh", "_to_copy", "select", "slice", "roll")
)  # fmt: skip
# Operators that make zero of zero.
QUIET = MOVES | {"relu", "gelu", "silu", "tanh", "hardswish", "leaky_relu", "mul", "neg"}
ACTIVATIONS = ("relu", "hardtanh", "gelu", "silu")  # what may follow the sum of a block
_POSITIVE = MOVES | {"max_pool2d_with_indices", "avg_pool2d", "max_pool2d"}
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "mul")


@dataclass(frozen=True)
class Detour:
    """A module with a shortcut around it.

    ``joins`` are the branches as (step, position among its arguments): where a branch is added. ``weights``
    names parameters of which all must be zero for the branches to be constant, the last matrix of each.
    ``activation`` is the step behind the sum, -1 for none; ``settled`` if it does nothing to the shortcut
    alone. ``given`` and ``returned`` tell where the shortcut enters among the arguments and how long the
    tuple is in which the result leaves, 0 for none. ``full`` if what goes in has the shape of what comes out.
    ``unheard`` are modules to which, once this one is gone, nobody listens.
    """

    module: str
    kind: Literal["block", "branch"]
    joins: tuple[tuple[int, int], ...]
    weights: tuple[str, ...]
    activation: int
    settled: bool
    given: int | str
    returned: int
    start: int
    stop: int
    full: bool
    unheard: tuple[str, ...] = ()


def droppable(graph: Graph) -> tuple[Detour, ...]:
    """Every module that can be removed whole, in the order of their calls, outer ones first.

    A module counts if it is called once, has parameters, and is either a block (what it returns has the
    shape of a tensor it is given, and is that tensor plus branches) or a branch (its tensor is added to
    another one that fewer matrices lie before, and no parameter outside of it would be left without effect).

    >>> from torch import nn, zeros
    >>> from gracile.graph import watch
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.f = nn.Linear(3, 3)
    ...     def forward(self, x):
    ...         return x + self.f(x).relu()
    >>> found = droppable(watch(nn.Sequential(nn.Linear(3, 3), Block()), zeros(1, 3)))
    >>> [(detour.module, detour.kind, detour.weights) for detour in found]
    [('1', 'block', ('1.f.weight',))]
    """
    flow = _Flow(graph)
    found: dict[frozenset[str], Detour] = {}
    for call in sorted(flow.calls.values(), key=lambda call: (call.start, -call.stop, len(call.module))):
        parameters = flow.parameters(range(call.start, call.stop))
        if parameters:
            for detour in (flow.block(call), flow.branch(call)):
                if detour is not None:
                    gone = parameters.union(*(flow.parameters(flow.within(name)) for name in detour.unheard))
                    known = found.get(gone)
                    if known is None or (known.kind == "branch" and detour.kind == "block"):
                        found[gone] = detour
    return tuple(sorted(found.values(), key=lambda detour: (detour.start, -detour.stop)))


@dataclass(frozen=True)
class _Sum:
    """The shortcut with what was added to it so far."""

    joins: tuple[tuple[int, int], ...] = ()
    activation: int = -1


@final
class _Flow:
    """Who makes and who reads every operand of a log."""

    def __init__(self, graph: Graph) -> None:
        times = Counter(call.module for call in graph.calls)
        self.steps, self.trained = graph.steps, graph.parameters
        self.calls = {call.module: call for call in graph.calls if call.module and times[call.module] == 1}
        self.readers: dict[int, list[int]] = {}
        self.makers: dict[int, list[int]] = {}
        for number, step in enumerate(self.steps):
            for given in step.inputs:
                self.readers.setdefault(id(given), []).append(number)
            for made in step.outputs:
                self.makers.setdefault(id(made), []).append(number)
        self.depths = list(self._depths())

    def _depths(self) -> Iterator[tuple[int, ...]]:
        """For every step and each of its inputs: how many matrices lie before it."""
        depth: dict[int, int] = {}
        for step in self.steps:
            before = tuple(depth.get(id(given), 0) for given in step.inputs)
            yield before
            deeper = packet_of(step) in _PRODUCTS and bool(_matrices(step))
            depth.update((id(made), max(before, default=0) + deeper) for made in step.outputs)

    def within(self, module: str) -> range:
        call = self.calls[module]
        return range(call.start, call.stop)

    def parameters(self, numbers: Iterable[int]) -> frozenset[str]:
        """Parameters that these steps read."""
        names = (given.name for n in numbers for given in self.steps[n].inputs)
        return frozenset(name for name in names if name in self.trained)

    def maker(self, given: Operand, before: int) -> int:
        """The last step before ``before`` that made or wrote this operand, -1 for none."""
        numbers = self.makers.get(id(given), [])
        at = bisect_right(numbers, before - 1)
        return numbers[at - 1] if at else -1

    def block(self, call: Call) -> Detour | None:
        """The call as x + f(x), if it is that."""
        result, length = result_of(call)
        if result is None or self._read_later(call):
            return None
        for key, x in call.given.items():
            if x.shape != result.shape or x.dtype != result.dtype or x.weight:
                continue
            total = self._sums(call, x).get(id(result))
            if total is None or not total.joins:
                continue
            at = total.activation
            settled = at >= 0 and packet_of(self.steps[at]) == "relu" and self._positive(x, call.start)
            weights = self._last_weights(total.joins, call.start)
            where = (key, length, call.start, call.stop, True)
            return Detour(call.module, "block", total.joins, weights, at, settled, *where)
        return None

    def _read_later(self, call: Call) -> bool:
        """Whether someone listens to more than the first tensor of the result."""
        others = call.returned[1:] if isinstance(call.returned, tuple) else ()
        return any(
            given is not None and self.readers.get(id(given), [-1])[-1] >= call.stop for given in others
        )

    def _sums(self, call: Call, x: Operand) -> dict[int, _Sum]:
        """Which operands are x plus something, after the call."""
        sums = {id(x): _Sum()}
        for number in range(call.start, call.stop):
            step = self.steps[number]
            following = _next(number, step, sums)
            for made in step.outputs:
                sums.pop(id(made), None)
            if following is not None:
                sums[id(step.outputs[0])] = following
        return sums

    def _positive(self, x: Operand, before: int) -> bool:
        """Whether x is what a relu let through."""
        while (number := self.maker(x, before)) >= 0:
            step, before = self.steps[number], number
            if packet_of(step) == "relu":
                return True
            if packet_of(step) not in _POSITIVE:
                return False
            x = step.inputs[0]
        return False

    def branch(self, call: Call) -> Detour | None:
        """The call as the branch of a sum outside of it, if it is that."""
        result, length = result_of(call)
        if result is None or self._read_later(call) or result.weight:
            return None
        join = self._joined(call, result)
        if join is None:
            return None
        key, x = next(iter(call.given.items()), (0, None))
        if x is None or x.dtype != result.dtype:
            return None
        full = x.shape == result.shape
        if not full and join[1] == 0 and writes(self.steps[join[0]]):
            return None  # nothing of the right size to add to
        unheard = self._unheard(call)
        if unheard is None:
            return None
        first = min((self.calls[name].start for name in unheard), default=call.start)
        weights = self._last_weights((join,), first)
        where = (key, length, call.start, call.stop, full)
        return Detour(call.module, "branch", (join,), weights, -1, False, *where, unheard)

    def _joined(self, call: Call, result: Operand) -> tuple[int, int] | None:
        """The sum that the result goes into, by operators that make zero of zero and nowhere else."""
        after = call.stop
        while True:
            readers = sorted({n for n in self.readers.get(id(result), []) if n >= after})
            if len(readers) != 1:
                return None
            number = readers[0]
            step = self.steps[number]
            if packet_of(step) == "add":
                return (number, at) if (at := self._short(number, result)) is not None else None
            weighs = any(given.weight for given in step.inputs if given is not result)
            if packet_of(step) not in QUIET or weighs or len(step.outputs) != 1:
                return None
            result, after = step.outputs[0], number + 1

    def _short(self, number: int, long: Operand) -> int | None:
        """At which argument of a sum an operand stands, if the other one took a shorter way."""
        inputs, depths = self.steps[number].inputs, self.depths[number]
        if len(inputs) != 2:
            return None
        at = 0 if inputs[0] is long else 1
        other = inputs[1 - at]
        shorter = depths[1 - at] < depths[at] and not other.weight
        return at if shorter and other.shape == self.steps[number].outputs[0].shape else None

    def _unheard(self, call: Call) -> tuple[str, ...] | None:
        """Modules that only this call listens to; None if a parameter outside of modules would be one."""
        silent = set(range(call.start, call.stop))
        waiting = [given for n in silent for given in self.steps[n].inputs]
        while waiting:
            number = self.maker(waiting.pop(), call.start)
            if number < 0 or number in silent:
                continue
            if all(
                n in silent
                for made in self.steps[number].outputs
                for n in self.readers.get(id(made), [])
                if n > number
            ):
                silent.add(number)
                waiting += self.steps[number].inputs
        outside = silent - set(range(call.start, call.stop))
        names: list[str] = []
        for other in sorted(self.calls.values(), key=lambda other: (other.start, -other.stop)):
            if (
                outside.issuperset(range(other.start, other.stop))
                and other.stop > other.start
                and level(other)
            ):
                names.append(other.module)
                outside -= set(range(other.start, other.stop))
        return tuple(names) if not self.parameters(outside) else None

    def _last_weights(self, joins: Iterable[tuple[int, int]], start: int) -> tuple[str, ...]:
        """The last matrix of every branch, walking back from the sum."""
        names: list[str] = []
        waiting = [(_tensor(self.steps[n].args[at]), n) for n, at in joins]
        while waiting:
            given, before = waiting.pop()
            number = -1 if given is None else self.maker(given, before)
            if number < start:
                continue
            step = self.steps[number]
            matrices = _matrices(step)
            if packet_of(step) in _PRODUCTS and matrices and (name := self._parameter(matrices[-1], number)):
                names.append(name)
                continue
            moving = [x for x in step.inputs if not x.weight]
            waiting += [(x, number) for x in (moving if packet_of(step) == "add" else moving[:1])]
        return tuple(dict.fromkeys(reversed(names)))

    def _parameter(self, given: Operand, before: int) -> str | None:
        """The parameter that a weight was made of."""
        while given.name is None:
            number = self.maker(given, before)
            if number < 0 or not self.steps[number].inputs:
                return None
            given, before = self.steps[number].inputs[0], number
        return given.name


def _next(number: int, step: Step, sums: dict[int, _Sum]) -> _Sum | None:
    """What the first output of a step is, if it is still x plus something."""
    packet, inputs = packet_of(step), step.inputs
    first = sums.get(id(inputs[0])) if inputs else None
    if packet in MOVES:
        return first if len(inputs) == 1 and packet not in ("select", "slice", "roll") else None
    if packet in ACTIVATIONS:
        return _Sum(first.joins, number) if first is not None and first.activation < 0 else None
    if packet != "add" or len(inputs) != 2:
        return None
    second = sums.get(id(inputs[1]))
    total, at = (first, 1) if first is not None else (second, 0)
    scaled = second is not None and step.kwargs.get("alpha", 1) != 1
    if total is None or (first is not None and second is not None) or scaled or total.activation >= 0:
        return None
    if inputs[1 - at].shape != step.outputs[0].shape:
        return None
    return _Sum((*total.joins, (number, at)))


def result_of(call: Call) -> tuple[Operand | None, int]:
    """The tensor that a call returns, or returns first, and the length of the tuple it is in."""
    if isinstance(call.returned, tuple):
        return (call.returned[0], len(call.returned)) if call.returned else (None, 0)
    return call.returned, 0


def level(call: Call) -> bool:
    """One tensor in, one of the same shape out."""
    result, _ = result_of(call)
    return result is not None and [given.shape for given in call.given.values()][:1] == [result.shape]


def _matrices(step: Step) -> list[Operand]:
    return [given for given in step.inputs if given.weight and len(given.shape) > 1]


def _tensor(value: object) -> Operand | None:
    return value if isinstance(value, Operand) else None


def packet_of(step: Step) -> str:
    """``"add"`` for ``aten.add_.Tensor``."""
    return step.op.split(".")[1].removesuffix("_")


def writes(step: Step) -> bool:
    return step.op.split(".")[1].endswith("_")


def nested(paths: Iterable[str]) -> Iterator[str]:
    """Those of the paths that lie inside another one.

    >>> list(nested(["a", "a.b", "ab"]))
    ['a.b']
    """
    known = set(paths)
    for path in known:
        parts = path.split(".")
        if any(".".join(parts[:n]) in known for n in range(1, len(parts))):
            yield path
