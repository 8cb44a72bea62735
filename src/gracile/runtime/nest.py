"""How a network's outputs are nested, as plain data that a file can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

from torch import Tensor

from gracile.errors import RefusedError


@final
@dataclass(frozen=True)
class Nest:
    """A tensor, or a tuple, list or dictionary of nests.

    >>> nest = Nest.of((Tensor(), {"h": [Tensor()]}))
    >>> nest.size, nest.fill(iter([1, 2]))
    (2, (1, {'h': [2]}))
    """

    kind: Literal["tensor", "tuple", "list", "dict"]
    parts: tuple[Nest, ...] = ()
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = len(self.parts) if self.kind == "dict" else 0
        if (self.kind == "tensor" and self.parts) or len(self.keys) != names:
            raise ValueError(f"a {self.kind} of {len(self.parts)} parts and {len(self.keys)} keys")

    @staticmethod
    def of(value: Any) -> Nest:
        """Describe ``value``; classes derived from those of Python count as these.

        Raises:
            RefusedError: there is something else in it.
        """
        if isinstance(value, Tensor):
            return Nest("tensor")
        if isinstance(value, (tuple, list)):
            return Nest("tuple" if isinstance(value, tuple) else "list", tuple(map(Nest.of, value)))
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return Nest("dict", tuple(map(Nest.of, value.values())), tuple(value))
        raise RefusedError(
            "describing a network's outputs",
            got=f"a {type(value).__name__}",
            expected="tensors in tuples, lists, and dictionaries with strings as keys",
        )

    @property
    def size(self) -> int:
        """How many tensors there are."""
        return 1 if self.kind == "tensor" else sum(part.size for part in self.parts)

    def fill(self, leaves: Iterator[Any]) -> Any:
        """The same nest with ``leaves`` in the place of its tensors, in order."""
        if self.kind == "tensor":
            return next(leaves)
        parts = [part.fill(leaves) for part in self.parts]
        if self.kind == "dict":
            return dict(zip(self.keys, parts, strict=True))
        return tuple(parts) if self.kind == "tuple" else parts
