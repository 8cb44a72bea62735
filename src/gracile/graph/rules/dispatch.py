"""From an operator to its rule, and from the rule's answer to axes that can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from gracile.graph.records import Axes
from gracile.graph.rules.pointwise import pointwise
from gracile.graph.rules.registry import RULES, Rule, Site


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known of an operator before it is called."""

    name: str  # "aten.add_.Tensor"
    rule: Rule | None
    writes: bool  # to one of its arguments


_kinds: dict[OpOverload, Kind] = {}


def kind_of(func: OpOverload) -> Kind:
    """The operator's rule: by its name, by its name without the underscore of in-place, or by its tag."""
    found = _kinds.get(func)
    if found is None:
        name = func._schema.name.partition("::")[2]
        rule = RULES.get(name) or RULES.get(name.removesuffix("_"))
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = pointwise
        found = _kinds[func] = Kind(str(func), rule, func._schema.is_mutable)
    return found


def ruled(
    kind: Kind, site: Site, out: Any, outs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[Axes] | str:
    """The axes of every output; or, where nothing is known of them, why."""
    if kind.rule is None:
        return "no rule for this operator"
    try:
        result = kind.rule(site, out, *args, **kwargs)
    except Exception as error:  # an overload nobody thought of; what labels have met so far does no harm
        return f"the rule does not fit this call ({type(error).__name__}: {error})"
    found = [result] if isinstance(result, list) else list(result)
    fits = len(found) == len(outs) and all(
        len(axes) == y.dim() and all(a is None or len(a) == n for a, n in zip(axes, y.shape, strict=True))
        for axes, y in zip(found, outs, strict=True)
    )
    if not fits:
        return "the rule does not fit the result of this call"
    for axes in found:
        for d, axis in enumerate(axes):
            if axis is not None and len(axis) == 1:  # the last index of a dimension never goes
                site.pin(axis)
                axes[d] = None
    return [tuple(axes) for axes in found]
