"""What a cut leaves behind: plain data that can be written to a file and replayed on a fresh model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gracile.errors import RefusedError


@dataclass(frozen=True)
class Dropped:
    """What stands in the place of a module that went as a whole.

    ``kind`` is ``"bypass"`` for act(x + shift), ``"silent"`` for shift in the shape of x, ``"constant"`` for
    shift as it is. ``shift`` is the shape of the constant, None for zero; ``given`` is the position or name
    of x among the arguments; ``returned`` the length of the tuple that the result leads, 0 for a tensor;
    ``attention`` lists where inside of the module attention had been made explicit.
    """

    kind: Literal["bypass", "silent", "constant"]
    shift: list[int] | None = None
    activation: str = ""
    given: int | str = 0
    returned: int = 0
    attention: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Cut:
    """The record of a cut, in plain JSON types.

    ``tensors[name][dim]`` lists the indices of that dimension that stay, ascending; a dimension that is
    not named stays whole. ``attributes[path]`` is the new value of the integer (or list of integers) found
    by following ``path`` from the model, e.g. ``"encoder.0.num_heads"``. A path may run through objects
    that are no modules, such as a configuration shared by many layers; ``shared`` then names the first
    path and the others under which the same object is reached. ``dropped`` are the modules that go whole, by
    path; a cut that drops modules does nothing else.

    >>> cut = Cut(tensors={"fc.weight": {0: [0, 2]}}, attributes={"fc.out_features": 2})
    >>> cut.kept("fc.weight", 0), cut.kept("fc.weight", 1)
    ([0, 2], None)
    """

    tensors: Mapping[str, Mapping[int, list[int]]] = field(default_factory=dict)
    attributes: Mapping[str, int | list[int]] = field(default_factory=dict)
    shared: Mapping[str, list[str]] = field(default_factory=dict)
    dropped: Mapping[str, Dropped] = field(default_factory=dict)

    def kept(self, tensor: str, dim: int) -> list[int] | None:
        """Indices of ``dim`` that stay, or None when the dimension stays whole."""
        return self.tensors.get(tensor, {}).get(dim)


class CutRefusedError(RefusedError):
    """A cut that cannot be made. ``units`` are those that would have to stay, ``source`` the user's line."""

    def __init__(
        self,
        operation: str,
        *,
        got: str,
        expected: str,
        hint: str = "",
        units: Sequence[int] = (),
        op: str = "",
        source: str = "",
    ) -> None:
        super().__init__(operation, got=got, expected=expected, hint=hint)
        self.units, self.op, self.source = tuple(units), op, source
