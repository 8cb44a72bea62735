"""Which units to remove so that what is left fits a budget: a share of the parameters, or of any other cost.

A cost is a function ``(graph, model) -> (gone -> number)``: given which units are gone, a truth value for
each, it tells what the reduced network would cost. :func:`parameters_left` is one,
:func:`gracile.cost.macs_left` another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, final

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.graph import Block, Graph
from gracile.reduce.importance import Importance, magnitude
from gracile.reduce.select import scores

Gone = npt.NDArray[np.bool_]
CostOf = Callable[[Graph, nn.Module], Callable[[Gone], float]]


@final
@dataclass(frozen=True)
class Limits:
    """What a choice may not do.

    Args:
        protect: layers that stay as they are: names of modules or patterns (``"layer1.*"``, ``"stem"``). A
            block is protected if any layer that produces it is.
        least: what every block keeps: a share of its units (0 < least < 1, at least one unit), or a number.
        multiple_of: widths are multiples of this where a layer is narrowed. Units that are several indices
            wide (attention heads) count with their width.

    Raises:
        UsageError: a number makes no sense.
    """

    protect: tuple[str, ...] = ()
    least: float = 0.1
    multiple_of: int = 1

    def __post_init__(self) -> None:
        whole = self.least >= 1 and self.least == int(self.least)
        if isinstance(self.protect, str) or not (0 < self.least < 1 or whole) or self.multiple_of < 1:
            raise UsageError(
                "limiting a choice",
                got=str(self),
                expected="names in a tuple, least a share below 1 or a whole number, multiple_of from 1 on",
            )

    def widths(self, graph: Graph, model: nn.Module) -> list[list[int]]:
        """For every block how many of its units may stay, rising; the last is all of them.

        Raises:
            UsageError: a name in ``protect`` fits no module of the model.
        """
        self._check_names(model)
        return [self._widths(graph, block) for block in graph.blocks]

    def _widths(self, graph: Graph, block: Block) -> list[int]:
        count = len(block.units)
        slices = graph.units[block.units[0]].slices
        makers = {block.name, *(s.tensor.rpartition(".")[0] for s in slices if s.role == "out")}
        if any(_fits(name, pattern) for name in makers for pattern in self.protect):
            return [count]
        least = max(1, math.ceil(self.least * count - 1e-9)) if self.least < 1 else int(self.least)
        span = min(len(s.indices) for s in slices)
        step = self.multiple_of // math.gcd(self.multiple_of, span)
        return [*(w for w in range(step, count, step) if w >= least), count]

    def _check_names(self, model: nn.Module) -> None:
        names = [name for name, _ in model.named_modules()]
        for pattern in self.protect:
            if not any(_fits(name, pattern) for name in names):
                raise UsageError(
                    "protecting layers",
                    got=f"'{pattern}', which fits no module",
                    expected=f"names like {', '.join(names[1:4])}, or patterns like 'layer1.*'",
                )


def within(
    graph: Graph,
    model: nn.Module,
    left: float,
    *,
    cost: CostOf | None = None,
    importance: Importance = magnitude,
    ranking: Literal["global", "layer"] = "global",
    limits: Limits | None = None,
) -> list[int]:
    """The least important units whose removal brings a cost down to a share of what it is.

    Globally, units of all blocks are ranked by s / sqrt(mean of s² over the unit's block), where s is the
    importance: what is small among its like goes first, however the scales of layers differ. By layer,
    every block loses the same share. Widths are rounded up to what ``limits`` allow, and as few units go as
    meet the budget. Least important ones come first.

    Args:
        graph: what was watched.
        model: the watched model.
        left: share of the cost that may be left, 0 < left <= 1.
        cost: :func:`parameters_left` by default, or e.g. :func:`gracile.cost.macs_left`.
        importance: (graph, model) -> one number for every unit.
        ranking: over all blocks, or the same share of each.
        limits: protected layers, least widths, rounding.

    Raises:
        UsageError: the budget cannot be met; the message names the lowest share that can.

    >>> import torch
    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
    >>> graph = watch(model, torch.zeros(1, 4))
    >>> len(within(graph, model, 0.5)), parameters_left(graph, model)(np.zeros(8, bool))
    (4, 48.0)
    """
    if not 0 < left <= 1:
        raise UsageError("meeting a budget", got=f"a share of {left}", expected="0 < share <= 1")
    price = (cost or parameters_left)(graph, model)
    whole = price(np.zeros(len(graph.units), bool))
    if math.isnan(whole):
        raise UsageError(
            "meeting a budget",
            got="a cost that is not known for some operators",
            expected="one that is",
            hint="gracile.cost.count(model, example).unmodeled names them",
        )
    ladder = _Ladder.of(graph, model, importance, (limits or Limits()).widths(graph, model), ranking)
    low, high = 0, ladder.top
    if price(ladder.gone(high)) > left * whole:
        reached = price(ladder.gone(high)) / whole
        raise UsageError(
            "meeting a budget",
            got=f"{left:.3g} of the whole",
            expected=f"at least {reached:.3g}, the least that can be reached",
            hint="protect fewer layers or let blocks become narrower (least)",
        )
    while low < high:  # cost falls from rung to rung, and this finds the first within the budget
        middle = (low + high) // 2
        if price(ladder.gone(middle)) <= left * whole:
            high = middle
        else:
            low = middle + 1
    return ladder.units(high)


def parameters_left(graph: Graph, model: nn.Module) -> Callable[[Gone], float]:
    """How many parameters the model has when units are gone, exactly; shared ones count once."""
    owners: dict[str, dict[int, npt.NDArray[np.int64]]] = {}
    for view in graph.grouping().views:
        dim = view.pattern.split().index(view.by[0])
        owners.setdefault(view.tensor, {})[dim] = np.array(view.index)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def price(gone: Gone) -> float:
        flags = np.append(gone, False)  # -1, no unit, is the last
        return float(
            sum(
                math.prod(
                    size - int(flags[owners[name][dim]].sum()) if dim in owners.get(name, ()) else size
                    for dim, size in enumerate(shape)
                )
                for name, shape in shapes.items()
            )
        )

    return price


@final
@dataclass(frozen=True)
class _Ladder:
    """Choices from nothing (rung 0) to everything allowed (rung ``top``), each holding the one before."""

    order: tuple[list[int], ...]  # units by block, least important first
    turns: npt.NDArray[np.int64]  # the block that loses its next unit, rung by rung
    widths: Sequence[Sequence[int]]

    @staticmethod
    def of(
        graph: Graph,
        model: nn.Module,
        importance: Importance,
        widths: Sequence[Sequence[int]],
        ranking: Literal["global", "layer"],
    ) -> _Ladder:
        score = scores(graph, model, importance)
        order, ranks = [], [np.zeros(0)]
        for block in graph.blocks:
            relative = relative_to_block(score[list(block.units)])
            sequence = relative.argsort(stable=True)
            order.append([block.units[i] for i in sequence.tolist()])
            shares = np.arange(1, len(sequence) + 1) / len(sequence)
            ranks.append(shares if ranking == "layer" else relative[sequence].numpy())
        owner = np.repeat(np.arange(len(order)), [len(units) for units in order])
        return _Ladder(tuple(order), owner[np.concatenate(ranks).argsort(kind="stable")], widths)

    @property
    def top(self) -> int:
        return len(self.turns)

    def units(self, rung: int) -> list[int]:
        chosen: list[int] = []
        wanted = np.bincount(self.turns[:rung], minlength=len(self.order)).tolist()
        for units, widths, gone in zip(self.order, self.widths, wanted, strict=True):
            width = next(w for w in widths if w >= len(units) - gone)
            chosen += units[: len(units) - width]
        return chosen

    def gone(self, rung: int) -> Gone:
        flags = np.zeros(self.top, bool)
        flags[self.units(rung)] = True
        return flags


def relative_to_block(score: Tensor) -> Tensor:
    """Importances of one block over their root mean square; zeros stay zeros.

    Raises:
        UsageError: one is not finite.
    """
    if not score.isfinite().all():
        raise UsageError("ranking units", got="an importance that is not finite", expected="finite numbers")
    largest = score.abs().max() if len(score) else score.new_ones(())
    scaled = score / largest if largest > 0 else score  # so that squares neither overflow nor vanish
    size = scaled.square().mean().sqrt()
    return scaled / size if size > 0 else scaled


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
