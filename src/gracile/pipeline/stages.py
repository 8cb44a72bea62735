"""Stages that a network can go through, and which of them may follow which.

Every stage makes something true of a network (its layers have low rank, its weights take few bits) and may
undo what another has made. An order is legal if nothing is undone later; :func:`check` tells why not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from torch import nn

from gracile.algebra import Grouping, Uniform, elements
from gracile.errors import RefusedError, UsageError
from gracile.graph import Cut, watch
from gracile.pipeline.journey import Journey
from gracile.reduce import factorize, quantize, ranks_by_energy, remove
from gracile.train import Freeze, Method, Reach


@final
@dataclass(frozen=True)
class State:
    """A network under way.

    Args:
        model: the network.
        bits: that a number of a parameter is stored in, by name; 32 where nothing is said.
        made: what the stages so far have made true.
        steps: what was done to the structure, in order: pass them to :func:`gracile.reduce.save`.
    """

    model: nn.Module
    bits: dict[str, float]
    made: frozenset[str] = frozenset()
    steps: tuple[Cut | Mapping[str, int], ...] = ()

    @property
    def holds(self) -> list[Method]:
        """What a training has to keep."""
        return [Freeze()] if Elements.makes in self.made else []


class Stage(ABC):
    """One step of a pipeline.

    ``makes`` says what is true of a network after it, ``undoes`` maps what it would undo to the reason.
    """

    makes: ClassVar[str]
    undoes: ClassVar[dict[str, str]]

    @abstractmethod
    def run(self, state: State, journey: Journey) -> State:
        """Work on the state's network, which may be trained on in place; the new state comes back."""


_LOW_RANK, _NARROW, _SPARSE, _FEW_BITS = "low rank", "fewer units", "zero elements", "few bits"
_TRAINS = "it trains on, and one step of an optimizer leaves the format"


@final
@dataclass(frozen=True)
class LowRank(Stage):
    """Factor every layer for which it pays (C5).

    Args:
        energy: share of each layer's energy that its rank keeps, in (0, 1].
        tune: epochs of fine-tuning.
        protect: layers that stay as they are.
    """

    makes: ClassVar[str] = _LOW_RANK
    undoes: ClassVar[dict[str, str]] = {
        _LOW_RANK: "factors of factors are no cheaper than one factoring of lower rank",
        _SPARSE: "the factors of a matrix with zeros have none",
        _FEW_BITS: "the factors of rounded weights are not rounded",
    }

    energy: float = 0.9
    tune: int = 4
    protect: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self, 0 < self.energy <= 1 and self.tune >= 0, "a share of the energy in (0, 1]")

    def run(self, state: State, journey: Journey) -> State:
        ranks = ranks_by_energy(state.model, self.energy)
        ranks = {name: rank for name, rank in ranks.items() if name not in self.protect}
        if not ranks:
            raise RefusedError(
                "factoring",
                got=f"no layer for which the rank of {self.energy:.0%} of its energy pays",
                expected="at least one",
                hint="ask for less energy",
            )
        model = factorize(state.model, ranks)
        _tune(model, self, self.tune, state, journey)
        return replace(state, model=model, steps=(*state.steps, ranks))


@dataclass(frozen=True)
class Goal(Stage):
    """A stage in which a share of something is learned away.

    Args:
        gone: the share, in (0, 1).
        learn: epochs in which it goes.
        tune: epochs of fine-tuning what is left.
    """

    undoes: ClassVar[dict[str, str]] = {_FEW_BITS: _TRAINS}

    gone: float = 0.5
    learn: int = 6
    tune: int = 4

    def __post_init__(self) -> None:
        fine = 0 < self.gone < 1 and self.learn >= 1 and self.tune >= 0
        _require(self, fine, "a share in (0, 1) and at least one epoch in which it goes")

    def learn_away(self, groupings: Iterable[Grouping], state: State, journey: Journey) -> None:
        """Train the state's network in place until the share of every grouping is zero."""
        name, rate = f"{len(state.made)} {type(self).__name__} learn", journey.plan.rate_learn
        reach = Reach(groupings, self.gone)
        journey.train(name, state.model, self.learn, journey.plan.rate * rate, reach, *state.holds)


@final
@dataclass(frozen=True)
class Units(Goal):
    """Learn away a share of every block's units, remove them, fine-tune (C6, C3); see :class:`Goal`."""

    makes: ClassVar[str] = _NARROW

    def run(self, state: State, journey: Journey) -> State:
        graph = watch(state.model, journey.example)
        self.learn_away([graph.grouping([block.id]) for block in graph.blocks], state, journey)
        reduction = remove(state.model, journey.example)
        _tune(reduction.model, self, self.tune, state, journey)
        return replace(state, model=reduction.model, steps=(*state.steps, reduction.cut))


@final
@dataclass(frozen=True)
class Elements(Goal):
    """Learn away a share of every layer's single weights, and hold them at zero (C23); see :class:`Goal`."""

    makes: ClassVar[str] = _SPARSE

    gone: float = 0.8

    def run(self, state: State, journey: Journey) -> State:
        weights = [name for name, p in state.model.named_parameters() if p.dim() > 1]
        self.learn_away(map(elements, weights), state, journey)
        state = replace(state, made=state.made | {self.makes})
        _tune(state.model, self, self.tune, state, journey)
        return state


@final
@dataclass(frozen=True)
class Bits(Stage):
    """Round every weight to few bits, with a scale for every filter; nothing may be trained after it.

    Args:
        bits: 2 to 16.
    """

    makes: ClassVar[str] = _FEW_BITS
    undoes: ClassVar[dict[str, str]] = {_FEW_BITS: "what is rounded twice has the errors of both"}

    bits: int = 8

    def __post_init__(self) -> None:
        Uniform(self.bits)

    def run(self, state: State, journey: Journey) -> State:
        done = quantize(state.model, self.bits)
        return replace(state, model=done.model, bits=dict(done.bits))


def check(stages: Sequence[Stage]) -> None:
    """Refuse an order in which a stage undoes what an earlier one made, with the reason.

    Raises:
        RefusedError: the order is illegal.
        UsageError: there are no stages.

    >>> check([LowRank(), Units(), Elements(), Bits()])
    >>> check([Bits(), LowRank()])
    Traceback (most recent call last):
    ...
    gracile.errors.RefusedError: composing stages: got LowRank after Bits; expected an order that undoes \
nothing. Hint: the factors of rounded weights are not rounded
    """
    if not stages:
        raise UsageError("composing stages", got="none", expected="at least one")
    for number, stage in enumerate(stages):
        for earlier in stages[:number]:
            if earlier.makes in stage.undoes:
                raise RefusedError(
                    "composing stages",
                    got=f"{type(stage).__name__} after {type(earlier).__name__}",
                    expected="an order that undoes nothing",
                    hint=stage.undoes[earlier.makes],
                )


def _require(stage: Stage, fine: bool, expected: str) -> None:
    if not fine:
        raise UsageError("planning a stage", got=str(stage), expected=expected)


def _tune(model: nn.Module, stage: Stage, epochs: int, state: State, journey: Journey) -> None:
    if epochs:
        name = f"{len(state.made)} {type(stage).__name__} tune"
        journey.train(name, model, epochs, journey.plan.rate * journey.plan.rate_tune, *state.holds)
