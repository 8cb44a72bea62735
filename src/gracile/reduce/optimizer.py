"""What an optimizer remembers of parameters that shrink or go."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from gracile.errors import UsageError
from gracile.reduce.probes import leaves
from gracile.reduce.slices import Kept, take


def sliced_states(
    optimizer: torch.optim.Optimizer, kept: Mapping[int, tuple[Tensor, Kept]]
) -> Iterator[tuple[dict[Any, Any], Any, Tensor]]:
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise UsageError(
            "applying a cut",
            got="LBFGS, which keeps all parameters in one flat history",
            expected="an optimizer with state by parameter",
            hint="make a fresh optimizer for the reduced model",
        )
    _check_holds(optimizer, kept)
    for parameter, state in optimizer.state.items():
        if id(parameter) not in kept:
            continue
        for key, value in state.items():
            found = [x for x in leaves(value) if x.numel() > 1]
            if not found:
                continue
            dims = _fitting(parameter, value, kept[id(parameter)][1]) if found[0] is value else None
            if dims is None:
                within = "" if found[0] is value else f", a {type(value).__name__} with a tensor"
                raise UsageError(
                    "applying a cut",
                    got=f"optimizer state {key!r}{within} of shape {tuple(found[0].shape)}",
                    expected=f"the shape of its parameter, {tuple(parameter.shape)}, or a scalar",
                    hint="make a fresh optimizer for the reduced model",
                )
            yield state, key, take(value, dims)


def _fitting(parameter: Tensor, value: Tensor, kept: Kept) -> Kept | None:
    """Which dimensions of ``value`` to slice; None if it has no place for the parameter's dimensions."""
    if value.ndim != parameter.ndim or any(
        v not in (1, p) for v, p in zip(value.shape, parameter.shape, strict=True)
    ):
        return None
    return {dim: indices for dim, indices in kept.items() if value.shape[dim] == parameter.shape[dim]}


def without(
    optimizer: torch.optim.Optimizer, gone: Collection[int]
) -> Iterator[tuple[dict[str, Any], str, list[Any]]]:
    """What to set in the parameter groups so that parameters, by identity, are no longer trained.

    Raises:
        UsageError: the optimizer has none of them.
    """
    _check_holds(optimizer, gone)
    for group in optimizer.param_groups:
        stays = [id(parameter) not in gone for parameter in group["params"]]
        for key in ("params", "param_names"):
            if key in group and not all(stays):
                yield group, key, [value for value, kept in zip(group[key], stays, strict=True) if kept]


def _check_holds(optimizer: torch.optim.Optimizer, parameters: Collection[int]) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if parameters and held.isdisjoint(parameters):
        raise UsageError(
            "applying a cut",
            got="an optimizer that holds none of the parameters to be cut",
            expected="the optimizer that trains this model",
        )
