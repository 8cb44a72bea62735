"""The nouns of a watched network: what an operator saw, and what lives and dies together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from gracile.graph.labels import Axis

Axes = tuple[Axis, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """A tensor as one operator saw it: no numbers, only shape and labels."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Axes
    name: str | None = None  # of the parameter or buffer, if it is one
    weight: bool = False  # does not depend on what the model is given


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operator call: ``op`` such as ``"aten.convolution.default"``, with operands in place of tensors.

    ``module`` is the dotted path of the innermost module, ``source`` the user's line as ``"file.py:12"``,
    and ``counted`` names the dimensions whose length the operator counts (the mean of LayerNorm, say), as
    (position among the tensors of ``args``, flattened; dimension).
    """

    op: str
    module: str
    source: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: tuple[Operand, ...]
    counted: tuple[tuple[int, int], ...] = ()

    @property
    def inputs(self) -> tuple[Operand, ...]:
        """The operands among the arguments, lists of them included, in order."""
        found: list[Operand] = []
        for value in (*self.args, *self.kwargs.values()):
            items = value if isinstance(value, (list, tuple)) else (value,)
            found += [item for item in items if isinstance(item, Operand)]
        return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a module: steps ``start`` up to ``stop`` ran inside it.

    ``given`` holds the tensors among its arguments by position or name, in order; ``returned`` its result
    if that is a tensor, or the tensors of its tuple with None for anything else in there.
    """

    module: str
    start: int
    stop: int
    given: Mapping[int | str, Operand]
    returned: Operand | tuple[Operand | None, ...] | None


@dataclass(frozen=True, slots=True)
class Slice:
    """Some indices of one dimension of a parameter or buffer.

    The role is ``"in"`` where an operator contracts the dimension as a weight, and ``"out"`` elsewhere.
    """

    tensor: str
    dim: int
    indices: tuple[int, ...]
    role: Literal["out", "in"]


@dataclass(frozen=True, slots=True)
class Unit:
    """Slices of several tensors that can only be removed together."""

    id: int
    block: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True, slots=True)
class Block:
    """Units that play the same part (the channels of one layer, the heads of one attention)."""

    id: int
    name: str  # of the first parameter that produces them
    units: tuple[int, ...]
    source: str


@dataclass(frozen=True, slots=True)
class Pin:
    """How many indices of a parameter's dimension are held, by which operator, and why."""

    tensor: str
    dim: int
    held: int
    size: int
    op: str
    module: str
    source: str
    why: str

    @property
    def share(self) -> float:
        """Held indices over all indices of the dimension."""
        return self.held / self.size


@dataclass(frozen=True, slots=True)
class Reason:
    """Why labels were pinned; ``step`` is the position of the operator in the log, -1 for none."""

    why: str
    step: int = -1
    module: str = ""
    source: str = ""
