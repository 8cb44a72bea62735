"""Named axes: how a pattern such as ``"(gate:4 unit) in"`` reads a tensor's shape.

The syntax is that of einops, with sizes written where they are needed:

===================  ==============================================================
``out in kh kw``     one name for each dimension
``(gate:4 unit) in`` a dimension split into named axes; at most one size is inferred
``...``              all dimensions not named, each an axis called ``...``
``...(tile in:64)``  the same dimensions as ONE flattened dimension, then split
===================  ==============================================================
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

from gracile.errors import PatternError

_TOKEN = re.compile(r"\s*(?:(\.\.\.\()|(\.\.\.)|(\()|(\))|([A-Za-z_]\w*)(?::(\d+))?)")
_HINT = "write names separated by spaces, e.g. 'out in kh kw' or '(gate:4 unit) in'"


@dataclass(frozen=True)
class Layout:
    """What a pattern makes of one shape: the shape with every axis apart, and the axes' names."""

    shape: tuple[int, ...]
    names: tuple[str, ...]

    def positions(self, by: tuple[str, ...]) -> tuple[int, ...]:
        """Positions of the axes called ``by``, in the order of the pattern."""
        return tuple(i for i, name in enumerate(self.names) if name in by)


@dataclass(frozen=True)
class _Axis:
    name: str
    size: int | None


@dataclass(frozen=True)
class _Dimension:
    axes: tuple[_Axis, ...]
    ellipsis: bool  # it stands for all dimensions that are not named


@lru_cache(maxsize=1024)
def layout(pattern: str, shape: tuple[int, ...]) -> Layout:
    """Read ``shape`` by ``pattern``.

    Args:
        pattern: named axes, see the module's table.
        shape: sizes of the tensor's dimensions.

    Raises:
        PatternError: the pattern cannot be read or the shape does not fit it.

    >>> layout("(gate:4 unit) in", (512, 64))
    Layout(shape=(4, 128, 64), names=('gate', 'unit', 'in'))
    >>> layout("out ...(tile in:25)", (8, 4, 5, 5))
    Layout(shape=(8, 4, 25), names=('out', 'tile', 'in'))
    """
    sizes: list[int] = []
    names: list[str] = []
    for dimension, own in _matched(pattern, shape):
        if dimension.axes:
            sizes += _split(pattern, dimension.axes, math.prod(own), shape)
            names += [axis.name for axis in dimension.axes]
        else:
            sizes += own
            names += ["..."] * len(own)
    return Layout(tuple(sizes), tuple(names))


@lru_cache(maxsize=1024)
def flattened(pattern: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape once the dimensions of ``...(`` are one, before any is split.

    >>> flattened("out ...(tile in:64)", (8, 20, 5, 5))
    (8, 500)
    """
    parts = ((math.prod(own),) if dimension.axes else own for dimension, own in _matched(pattern, shape))
    return tuple(size for part in parts for size in part)


def _matched(pattern: str, shape: tuple[int, ...]) -> list[tuple[_Dimension, tuple[int, ...]]]:
    """The dimensions of the pattern, and which sizes each of them stands for."""
    dimensions = _parse(pattern)
    named = sum(not d.ellipsis for d in dimensions)
    spare = len(shape) - named
    open_ended = named < len(dimensions)
    if spare < 0 or (spare > 0 and not open_ended):
        raise PatternError(
            f"pattern '{pattern}'",
            got=f"a tensor of shape {shape} ({len(shape)} dimensions)",
            expected=f"{named} {'or more ' if open_ended else ''}dimensions",
            hint="'...' stands for all dimensions that have no name",
        )
    matched, start = [], 0
    for dimension in dimensions:
        stop = start + (spare if dimension.ellipsis else 1)
        matched.append((dimension, shape[start:stop]))
        start = stop
    return matched


def _split(pattern: str, axes: tuple[_Axis, ...], length: int, shape: tuple[int, ...]) -> list[int]:
    known = math.prod(axis.size for axis in axes if axis.size is not None)
    inferred = any(axis.size is None for axis in axes)
    if known == 0 or length % known or (not inferred and known != length):
        spelled = " ".join(a.name if a.size is None else f"{a.name}:{a.size}" for a in axes)
        raise PatternError(
            f"pattern '{pattern}'",
            got=f"a dimension of length {length} in shape {shape}",
            expected=f"a {'multiple' if inferred else 'length'} of {known} for ({spelled})",
            hint="tiles must cover the dimension exactly",
        )
    return [length // known if axis.size is None else axis.size for axis in axes]


@lru_cache(maxsize=1024)
def _parse(pattern: str) -> tuple[_Dimension, ...]:
    dimensions: list[_Dimension] = []
    inside: list[_Axis] | None = None
    flattened = False
    position = 0
    while position < len(pattern.rstrip()):
        token = _TOKEN.match(pattern, position)
        if token is None:
            raise _unreadable(pattern, f"'{pattern[position:].strip()}'", "a name, '(', ')' or '...'")
        position = token.end()
        opened_flat, ellipsis, opened, closed, name, size = token.groups()
        if (opened or opened_flat or ellipsis) and inside is not None:
            raise _unreadable(pattern, "a parenthesis or '...' inside a parenthesis", "names only")
        if opened or opened_flat:
            inside, flattened = [], bool(opened_flat)
        elif ellipsis:
            dimensions.append(_Dimension((), ellipsis=True))
        elif closed:
            if not inside:
                raise _unreadable(pattern, "')' without names before it", "'(name ...)'")
            if sum(axis.size is None for axis in inside) > 1:
                unsized = ", ".join(a.name for a in inside if a.size is None)
                raise _unreadable(pattern, f"no size for any of {unsized}", "at most one axis without size")
            dimensions.append(_Dimension(tuple(inside), ellipsis=flattened))
            inside, flattened = None, False
        else:
            axis = _Axis(name, int(size) if size else None)
            if inside is not None:
                inside.append(axis)
            else:
                dimensions.append(_Dimension((axis,), ellipsis=False))
    if inside is not None:
        raise _unreadable(pattern, "a '(' that is never closed", "')'")
    names = [axis.name for dimension in dimensions for axis in dimension.axes]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _unreadable(pattern, f"the name '{twice}' twice", "each name once")
    if sum(dimension.ellipsis for dimension in dimensions) > 1:
        raise _unreadable(pattern, "'...' twice", "'...' at most once")
    return tuple(dimensions)


def _unreadable(pattern: str, got: str, expected: str) -> PatternError:
    return PatternError(f"pattern '{pattern}'", got=got, expected=expected, hint=_HINT)
