"""Who holds an attribute: found by looking paths up, never by evaluating them."""

from __future__ import annotations

import types
from typing import Any

from torch import nn

from gracile.errors import UsageError
from gracile.graph.attributes import fields_of


def owner_of(model: nn.Module, path: str) -> tuple[dict[str, Any], str]:
    """The dictionary that holds an attribute, and its name in there.

    The path is looked up in dictionaries and never evaluated, so that no code can run.

    Raises:
        UsageError: nothing of the model's own is found there.
    """
    *steps, name = path.split(".")
    place: Any = model
    for step in steps:
        if isinstance(place, nn.Module) and step in place._modules:
            place = place._modules[step]
        else:
            place = _fields(place).get(step) if not step.startswith("__") else None
    if name.startswith("__") or name not in _fields(place):
        raise UsageError(
            "applying a cut",
            got=f"attribute {path[:200]!r}",
            expected="an integer, or list of integers, that the model's objects hold",
            hint="the cut was made for another class, or for this one built with other arguments",
        )
    return _fields(place), name


def _fields(place: Any) -> dict[str, Any]:
    shared = (type, types.ModuleType, types.FunctionType, types.MethodType)
    return {} if isinstance(place, shared) else fields_of(place)
