"""Sizes that depend on those of the inputs, as plain data."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import sympy  # type: ignore[import-untyped]
from torch.utils._sympy import functions

from gracile.errors import FileError, RefusedError

Plain = Any
"""A number, ``{"symbol": name}`` or ``{"function": name, "of": [...]}``."""

_MOST = 200  # parts of one formula
_NAMES = ("Add", "Mul", "Rational", "Float", "Pow")
FUNCTIONS: Mapping[str, Any] = {
    **{name: getattr(sympy, name) for name in _NAMES},
    **{
        name: value
        for name, value in vars(functions).items()
        if inspect.isclass(value)
        and issubclass(value, sympy.Basic)
        and value.__module__ == functions.__name__
    },
}
"""What formulas are made of; nothing else is ever called."""


def plain(value: Any) -> Plain:
    """A formula as numbers, strings, lists and dictionaries.

    Raises:
        RefusedError: there is something in it that files have no name for.

    >>> plain(2 * sympy.Symbol("s0", integer=True, positive=True))
    {'function': 'Mul', 'of': [2, {'symbol': 's0'}]}
    """
    if isinstance(value, sympy.Symbol):
        return {"symbol": value.name}
    if isinstance(value, sympy.Integer):
        return int(value)
    if isinstance(value, sympy.Float):
        return float(value)
    if isinstance(value, sympy.Rational):
        return {"function": "Rational", "of": [int(value.p), int(value.q)]}
    if not isinstance(value, sympy.Basic):
        return value
    name = type(value).__name__
    if FUNCTIONS.get(name) is not type(value):
        raise RefusedError(
            "saving a program", got=f"a size of the form {value}", expected="sums and products"
        )
    return {"function": name, "of": [plain(part) for part in value.args]}


def formula(value: Plain, left: list[int] | None = None) -> Any:
    """The formula that :func:`plain` wrote.

    Raises:
        FileError: it is none.

    >>> formula({"function": "Mul", "of": [2, {"symbol": "s0"}]})
    2*s0
    """
    left = left or [_MOST]
    left[0] -= 1
    if isinstance(value, bool | int | float):
        return value
    if left[0] > 0 and isinstance(value, dict) and isinstance(value.get("symbol"), str):
        return sympy.Symbol(value["symbol"], integer=True, positive=True)
    parts = value.get("of") if isinstance(value, dict) else None
    if left[0] > 0 and isinstance(parts, list) and value.get("function") in FUNCTIONS:
        of = [formula(part, left) for part in parts]
        # A power of a power of a number would be worked out at once, however long it is.
        if value["function"] != "Pow" or (
            isinstance(of[-1], int) and -4 <= of[-1] <= 4 and _has_symbol(of[0])
        ):
            try:
                return FUNCTIONS[value["function"]](*of)
            except Exception as error:  # whatever sympy makes of it
                raise _wrong(value) from error
    raise _wrong(value)


def _has_symbol(value: Any) -> bool:
    return isinstance(value, sympy.Basic) and bool(value.free_symbols)


def _wrong(value: Any) -> FileError:
    return FileError("reading a program", got=f"the size {value!r:.80}", expected="a number or a formula")
