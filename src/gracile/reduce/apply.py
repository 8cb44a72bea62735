"""Carrying out a cut on a model: slice what it names, all of it or nothing.

Everything that can fail is computed first (:class:`_Plan`); only then is the model touched, by assignments
that cannot fail. Parameter objects keep their identity, so tied weights stay tied and whoever holds a
parameter (an optimizer, the flat list of an LSTM) holds the smaller one afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.weight_norm import WeightNorm

from gracile.errors import ShapeError, UsageError
from gracile.graph.attributes import IGNORED, plain_tensors
from gracile.graph.cut import Cut
from gracile.reduce.bypass import lost_parameters, stumps
from gracile.reduce.optimizer import sliced_states, without
from gracile.reduce.owners import owner_of
from gracile.reduce.sizes import stated_sizes
from gracile.reduce.slices import Kept, take


def apply_(model: nn.Module, cut: Cut, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Slice ``model`` in place as ``cut`` says, and the optimizer's state with it.

    Modules that go whole are replaced, and the optimizer forgets their parameters. Otherwise parameters,
    buffers and gradients are sliced; integer attributes take the values of the cut; the stated sizes of
    ``torch.nn`` modules (``in_features``...) follow. In the optimizer's state every tensor of the
    parameter's shape, or of size 1 in some of its dimensions (factored moments), is sliced alike; scalars
    stay. Nothing changes unless everything can.

    Graphs recorded by autograd before the call cannot be back-propagated after it.

    Raises:
        UsageError: the cut names a tensor or attribute that the model does not have, or contradicts itself,
            or the optimizer keeps state that cannot be sliced.
        ShapeError: indices are out of range, repeated, out of order, or none would stay.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    >>> apply_(model, Cut({"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}, "1.weight": {1: [0, 2]}}))
    >>> model[0], model[1].weight.shape
    (Linear(in_features=4, out_features=2, bias=True), torch.Size([2, 2]))
    """
    _Plan.of(model, cut, optimizer).carry_out()


def check(model: nn.Module, cut: Cut) -> None:
    """Raise what :func:`apply_` would raise, and change nothing."""
    list(stumps(model, cut))
    _kept(model, cut)
    list(_attributes(model, cut))


@dataclass
class _Plan:
    """New values, computed and ready: nothing in here can fail any more."""

    model: nn.Module
    tensors: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    states: list[tuple[dict[Any, Any], Any, Tensor]] = field(default_factory=list)
    forgotten: list[tuple[dict[Any, Any], Any]] = field(default_factory=list)
    values: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)

    @classmethod
    @torch.no_grad()
    def of(cls, model: nn.Module, cut: Cut, optimizer: torch.optim.Optimizer | None) -> _Plan:
        plan = cls(model)
        if cut.dropped:
            return plan._drop(cut, optimizer)
        kept = _kept(model, cut)
        shapes: dict[int, tuple[int, ...]] = {}
        for tensor, dims in kept.values():
            grad = None if tensor.grad is None else take(tensor.grad, dims)
            sliced = take(tensor.detach(), dims)
            shapes[id(tensor)] = tuple(sliced.shape)
            plan.tensors.append((tensor, sliced, grad))
        if optimizer is not None:
            plan.states = list(sliced_states(optimizer, kept))
        plan.values = list(_attributes(model, cut))
        plan.values += _stated(model, cut, shapes)
        return plan

    def _drop(self, cut: Cut, optimizer: torch.optim.Optimizer | None) -> _Plan:
        self.values += stumps(self.model, cut)
        if optimizer is not None:
            gone = lost_parameters(self.model, cut)
            self.values += without(optimizer, gone)
            self.forgotten = [(optimizer.state, p) for p in optimizer.state if id(p) in gone]
        return self

    def carry_out(self) -> None:
        for tensor, sliced, grad in self.tensors:
            tensor.grad = None  # its shape is checked against the tensor's
            tensor.data = sliced
            tensor.grad = grad
        for state, key, value in self.states:
            state[key] = value
        for state, key in self.forgotten:
            del state[key]
        for owner, name, value in self.values:
            owner[name] = value
        refresh_(self.model)


@torch.no_grad()
def refresh_(model: nn.Module) -> None:
    """Recompute the plain ``weight`` that :func:`torch.nn.utils.weight_norm` leaves on its module."""
    for module in model.modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                setattr(module, hook.name, hook.compute_weight(module))


def named_tensors(model: nn.Module, *, once: bool = False) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers; tied ones under each of their names, or ``once``."""
    yield from model.named_parameters(remove_duplicate=once)
    yield from model.named_buffers(remove_duplicate=once)


def plain_of(model: nn.Module, cuts: Iterable[Cut]) -> dict[str, Tensor]:
    """The tensors that a cut names although the model holds them as plain attributes only."""
    named = {name for cut in cuts for name in cut.tensors}
    return {name: tensor for name, tensor in plain_tensors(model) if name in named}


def _kept(model: nn.Module, cut: Cut) -> dict[int, tuple[Tensor, Kept]]:
    """Checked indices by identity of the tensor, so that tied names are one."""
    tensors = dict(named_tensors(model)) | plain_of(model, [cut])
    found: dict[int, tuple[Tensor, Kept]] = {}
    for name, dims in cut.tensors.items():
        if name not in tensors:
            raise UsageError(
                "applying a cut",
                got=f"tensor {name!r}",
                expected="a parameter or buffer of the model",
                hint="the cut was made for another class, or for this one built with other arguments",
            )
        tensor = tensors[name]
        kept = found.setdefault(id(tensor), (tensor, {}))[1]
        for dim, indices in dims.items():
            checked = _indices(name, tensor, dim, indices)
            if dim in kept and not torch.equal(kept[dim], checked):
                raise UsageError(
                    "applying a cut",
                    got=f"other indices for dimension {dim} of {name!r} than for a tensor it is tied to",
                    expected="the same indices under every name",
                )
            kept[dim] = checked
    return found


def _indices(name: str, tensor: Tensor, dim: int, indices: Iterable[int]) -> Tensor:
    indices = list(indices)
    if type(dim) is not int or not 0 <= dim < tensor.ndim:
        raise ShapeError(
            "applying a cut", got=f"dimension {dim} of {name!r}", expected=f"0 to {tensor.ndim - 1}"
        )
    size = tensor.shape[dim]
    rising = all(type(i) is int for i in indices) and all(a < b for a, b in pairwise(indices))
    if not indices or not rising or indices[0] < 0 or indices[-1] >= size:
        raise ShapeError(
            "applying a cut",
            got=f"{_excerpt(indices)} for dimension {dim} of {name!r}, which has {size} indices",
            expected=f"at least one index, rising, from 0 to {size - 1}",
        )
    return torch.tensor(indices, dtype=torch.long)


def _excerpt(indices: list[int]) -> str:
    shown = ", ".join(str(i)[:24] for i in indices[:6])
    return f"[{shown}{', ...' if len(indices) > 6 else ''}]"


def _attributes(model: nn.Module, cut: Cut) -> Iterator[tuple[dict[str, Any], str, Any]]:
    for path, value in cut.attributes.items():
        owner, name = owner_of(model, path)
        if name in IGNORED:
            raise UsageError(
                "applying a cut",
                got=f"attribute {path[:200]!r}",
                expected="one that says how large something is",
            )
        yield owner, name, _successor(path, owner[name], value)


def _successor(path: str, old: Any, new: Any) -> Any:
    """``new`` in the type of ``old``; sizes only ever fall."""
    if _is_size(old) and _is_size(new) and 0 <= new <= old:
        return int(new)
    if (
        isinstance(old, (list, tuple))
        and isinstance(new, (list, tuple))
        and len(old) == len(new)
        and all(_is_size(a) and _is_size(b) and 0 <= b <= a for a, b in zip(old, new, strict=True))
    ):
        return type(old)(new)
    raise UsageError(
        "applying a cut",
        got=f"{str(new)[:80]} for attribute {path[:200]!r}, which is {str(old)[:80]}",
        expected="non-negative integers, as many as there were and none larger",
    )


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _stated(
    model: nn.Module, cut: Cut, shapes: Mapping[int, tuple[int, ...]]
) -> Iterator[tuple[dict[str, Any], str, Any]]:
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        seen: list[bool] = []

        def shape_of(
            name: str, module: nn.Module = module, seen: list[bool] = seen
        ) -> tuple[int, ...] | None:
            tensor = _tensor(module, name)
            if tensor is None:
                return None
            seen.append(id(tensor) in shapes)
            return shapes.get(id(tensor), tuple(tensor.shape))

        new = {
            name: cut.attributes[prefix + name] for name in vars(module) if prefix + name in cut.attributes
        }
        sizes = stated_sizes(module, shape_of, new)
        if any(seen):
            yield from (
                (vars(module), name, value)
                for name, value in sizes.items()
                if name not in new and name in vars(module)
            )


def _tensor(module: nn.Module | None, name: str) -> Tensor | None:
    *steps, last = name.split(".")
    for step in steps:
        module = None if module is None else module._modules.get(step)
    if module is None:
        return None
    parameter = module._parameters.get(last)
    return module._buffers.get(last) if parameter is None else parameter
