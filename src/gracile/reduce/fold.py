"""Folding what dead units say: a constant goes into the bias of whoever listens.

A unit whose producing weights are zero still emits a constant: a bias, or the shift of a batch norm, through
the activation. What its consumers receive is observed on forward passes, found to be constant over batch,
space and inputs, pushed through the consumer alone, and added to the consumer's bias; a consumer without
bias hands it to the running mean of the batch norm that follows. That is exact unless the consumer pads:
then the border sees less of the constant, and the unit stays.

    W x + b  =  W_kept x_kept + (b + W_dead c),    c = x_dead constant
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gracile.graph import Axis, Graph, Operand, Step
from gracile.reduce.copies import undisturbed
from gracile.reduce.probes import Inputs, copied, fresh, leaves
from gracile.reduce.refusal import Refusal
from gracile.reduce.replay import Replay, Survivors, adds, tensors_in

_CONVOLUTIONS = ("aten.convolution.default", "aten._convolution.default")
# operator: positions of bias, left and right factor
_PRODUCTS = {
    "aten.addmm.default": (0, 1, 2),
    "aten.baddbmm.default": (0, 1, 2),
    "aten.addmv.default": (0, 1, 2),
    "aten.mm.default": (None, 0, 1),
    "aten.bmm.default": (None, 0, 1),
    "aten.mv.default": (None, 0, 1),
    "aten.linear.default": (2, 0, 1),
}
_BATCH_NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "_batch_norm_no_update")


@dataclass(frozen=True)
class Fold:
    """New full-size values of biases and running means, and the units that cannot be folded away."""

    tensors: dict[str, Tensor]
    refused: dict[int, Refusal]


@dataclass
class _Site:
    """A weighted operator that receives dead units: which, what values, and where a constant could go."""

    step: int
    units: list[int]  # one for every dead index
    values: Tensor  # (dead indices,)
    steady: Tensor  # (dead indices,) bool: constant over everything but the index
    heard: Tensor  # (dead indices,) bool: the weight there is not zero
    padded: bool
    push: Callable[[Tensor], Tensor] | None  # values -> what they add to each output channel
    bias: str | None
    out: Tensor
    listeners: list[tuple[int, str | None]] = field(default_factory=list)  # of the output: step, running mean


def fold(model: nn.Module, graph: Graph, units: Iterable[int], inputs: Inputs) -> Fold:
    """Where the constants of dead ``units`` go; the model is not changed.

    Args:
        model: the full-size model that was watched.
        graph: what was learned of it.
        units: dead ones, all to be removed together.
        inputs: the watched example; a second pass runs on other numbers.

    Raises:
        UnprovenError: the model does not repeat the operators that were watched.
    """
    units = sorted(units)
    passes = [_observe(model, graph, units, given) for given in (inputs, fresh(inputs, seed=21))]
    refused: dict[int, Refusal] = {}
    for sites, others in passes:
        for unit, step, reason in others:
            refused.setdefault(unit, _refusal(graph, unit, step, reason))
        for site in sites.values():
            _check(graph, site, refused)
    for number, site in passes[0][0].items():
        twin = passes[1][0].get(number)
        if twin is None or len(twin.units) != len(site.units):
            continue
        for k in _unequal(site, twin):
            refused.setdefault(
                site.units[k], _refusal(graph, site.units[k], number, "emits what depends on the input")
            )
    while True:
        tensors, clash = _deltas(model, graph, passes[0][0], refused)
        if not clash:
            return Fold(tensors, refused)
        refused.update(clash)


def name_of(graph: Graph, unit: int) -> str:
    """The slice that makes a unit, such as ``"conv1.weight[3]"``."""
    slices = graph.units[unit].slices
    made = next((s for s in slices if s.role == "out"), slices[0])
    return f"{made.tensor}[{':, ' * made.dim}{made.indices[0]}]"


def _refusal(graph: Graph, unit: int, step: int, reason: str) -> Refusal:
    where = graph.steps[step]
    return Refusal(name_of(graph, unit), where.op, where.source, reason)


def _observe(
    model: nn.Module, graph: Graph, units: list[int], inputs: Inputs
) -> tuple[dict[int, _Site], list[tuple[int, int, str]]]:
    survivors = Survivors(graph, units)
    sites: dict[int, _Site] = {}
    others: list[tuple[int, int, str]] = []
    waiting: dict[int, _Site] = {}  # by identity of the output

    def visit(number: int, step: Step, args: tuple[Any, ...], outputs: list[Tensor]) -> None:
        for value in tensors_in(args):
            if id(value) in waiting:
                mean = _running_mean(step) if value is args[0] else None
                waiting[id(value)].listeners.append((number, mean))
        found = _contraction(step, args, survivors)
        if found is None:
            others.extend(
                (unit, number, "emits a constant that is added up") for unit in _added(step, args, survivors)
            )
            return
        site, problem = _site(number, step, args, outputs, survivors, *found)
        others.extend((unit, number, problem) for unit in (site.units if site and problem else ()))
        if site is not None and not problem:
            sites[number] = waiting[id(site.out)] = site

    args, named = copied(inputs)
    with undisturbed(model), Replay(graph, survivors, visit):
        output = model(*args, **named)
    for value in leaves(graph.outputs(output)):  # the user listens, too
        if id(value) in waiting:
            waiting[id(value)].listeners.append((len(graph.steps), None))
    return sites, others


def _contraction(step: Step, args: tuple[Any, ...], survivors: Survivors) -> tuple[int, int, int, int] | None:
    """Where dead indices are summed over: position and dimension of x, then of the weight."""
    if step.op in _CONVOLUTIONS:
        pair = (0, 1, 1, 0 if args[6] else 1)
    elif step.op in _PRODUCTS:
        _, left, right = _PRODUCTS[step.op]
        pair = (left, args[left].dim() - 1, right, max(args[right].dim() - 2, 0))
        if step.op == "aten.linear.default":
            pair = (left, args[left].dim() - 1, right, args[right].dim() - 1)
        if step.args[left].weight and not step.args[right].weight:
            pair = (*pair[2:], *pair[:2])
    elif "scaled_dot_product" in step.op:
        pair = (0, 3, 1, 3)
    else:
        return None
    return pair if survivors.of(step.args[pair[0]].labels[pair[1]]) is not None else None


def _added(step: Step, args: tuple[Any, ...], survivors: Survivors) -> list[int]:
    """Dead units that a sum runs over and that are not zero."""
    found: list[int] = []
    for position, dim in step.counted if adds(step) else ():
        x, axis = tensors_in(args)[position], step.inputs[position].labels[dim]
        if survivors.of(axis) is not None:
            dead = _dead(axis, x.shape[dim], survivors)
            speaks = _rows(x, dim, dead).ne(0).any(1).cpu()
            found += _units(axis, dead[speaks], survivors)
    return found


def _site(
    number: int, step: Step, args: tuple[Any, ...], outputs: list[Tensor], survivors: Survivors,
    x_at: int, x_dim: int, w_at: int, w_dim: int,
) -> tuple[_Site | None, str]:  # fmt: skip
    """What is received here; with a problem if nothing can be done about it."""
    x, w = args[x_at], args[w_at]
    dead = _dead(step.args[x_at].labels[x_dim], x.shape[x_dim], survivors)
    units = _units(step.args[x_at].labels[x_dim], dead, survivors)
    received = _rows(x, x_dim, dead)
    low, high = received.amin(1), received.amax(1)
    steady = (high - low) <= 16 * torch.finfo(x.dtype).eps * torch.maximum(high.abs(), low.abs())
    heard = torch.ones(len(dead), dtype=torch.bool)
    if not (step.op in _CONVOLUTIONS and args[8] > 1):  # grouped: the weight's own index is another one
        heard = _rows(w, w_dim, dead).ne(0).any(1).cpu()
    speaks = (low.ne(0) | high.ne(0)).cpu()
    values = received[:, 0].clone()
    site = _Site(number, units, values, steady.cpu(), heard & speaks, False, None, None, outputs[0])
    if not site.heard.any():
        return None, ""
    if not step.args[w_at].weight:
        return site, "meets another activation, not a weight"
    if step.op in _CONVOLUTIONS:
        transposed = bool(args[6])
        site.padded = any(p != 0 for p in args[4]) or transposed
        site.push = _push_convolution(args, dead)
        site.bias = _parameter(step.args[2])
    elif x_dim == x.dim() - 1 and x_at < w_at:
        bias_at = _PRODUCTS[step.op][0] if step.op in _PRODUCTS else None
        site.push = _push_product(w, w_dim, dead)
        site.bias = (
            _parameter(step.args[bias_at]) if bias_at is not None and len(step.args) > bias_at else None
        )
        if step.kwargs.get("beta", 1) != 1 or step.kwargs.get("alpha", 1) != 1:
            return site, "is scaled by its consumer"
    else:
        return site, "is consumed in a way that has no bias"
    return site, ""


def _push_convolution(args: tuple[Any, ...], dead: Tensor) -> Callable[[Tensor], Tensor]:
    x, w, dilation, groups = args[0], args[1], args[5], args[8]

    def push(values: Tensor) -> Tensor:
        size = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
        patch = x.new_zeros((1, x.shape[1], *size))
        patch[0, dead.to(x.device)] = values.reshape(-1, *[1] * len(size)).expand(-1, *size)
        ones, zeros = [1] * len(size), [0] * len(size)
        return torch.ops.aten.convolution(
            patch, w, None, ones, zeros, dilation, False, zeros, groups
        ).reshape(-1)

    return push


def _push_product(w: Tensor, w_dim: int, dead: Tensor) -> Callable[[Tensor], Tensor]:
    weights = w.index_select(w_dim, dead.to(w.device)).movedim(w_dim, 0)
    return lambda values: torch.tensordot(values, weights, dims=1)


def _check(graph: Graph, site: _Site, refused: dict[int, Refusal]) -> None:
    target, why = _target(site)
    for k, unit in enumerate(site.units):
        if not site.heard[k] or unit in refused:
            continue
        if not site.steady[k]:
            problem = "emits what is not constant over batch and space"
        elif site.padded:
            problem = f"emits the constant {float(site.values[k]):.3g}, and the consumer pads"
        elif target is None:
            problem = f"emits the constant {float(site.values[k]):.3g}, and {why}"
        else:
            continue
        refused[unit] = _refusal(graph, unit, site.step, problem)


def _target(site: _Site) -> tuple[str | None, str]:
    """The tensor that can take the constant, or why none can."""
    if site.bias is not None:
        return site.bias, ""
    means = {mean for _, mean in site.listeners}
    if len(means) == 1 and (mean := next(iter(means))) is not None:
        return mean, ""
    return None, "the consumer has neither a bias nor a batch norm behind it"


def _unequal(site: _Site, twin: _Site) -> list[int]:
    eps = torch.finfo(site.values.dtype).eps
    same = ((site.values - twin.values).abs() <= 16 * eps * site.values.abs()).cpu()
    return (~(same | ~site.heard)).nonzero().flatten().tolist()


def _deltas(
    model: nn.Module, graph: Graph, sites: dict[int, _Site], refused: dict[int, Refusal]
) -> tuple[dict[str, Tensor], dict[int, Refusal]]:
    """The sum of what every target receives; units whose target is used elsewhere with another sum clash."""
    received: dict[str, list[tuple[_Site, Tensor]]] = {}
    for site in sites.values():
        live = torch.tensor([unit not in refused for unit in site.units]) & site.heard
        target, _ = _target(site)
        if target is not None and site.push is not None and live.any():
            received.setdefault(target, []).append(
                (site, site.push(site.values * live.to(site.values.device)))
            )
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    result: dict[str, Tensor] = {}
    for name, found in received.items():
        site, delta = found[0]
        uses = sum(1 for step in graph.steps for given in step.inputs if given.name == name)
        alike = all(torch.allclose(delta, other, rtol=1e-6, atol=0) for _, other in found[1:])
        if delta.shape != tensors[name].shape or uses != len(found) or not alike:
            units = {
                u for s, _ in found for u, h in zip(s.units, s.heard, strict=True) if h and u not in refused
            }
            why = f"emits a constant, and '{name}' that would take it serves other places too"
            return {}, {unit: _refusal(graph, unit, site.step, why) for unit in units}
        result[name] = tensors[name].detach() + (delta if site.bias is not None else -delta)
    return result, {}


def _parameter(given: Any) -> str | None:
    return given.name if isinstance(given, Operand) else None


def _running_mean(step: Step) -> str | None:
    """The running mean that a batch norm subtracts, if this step is one in evaluation mode."""
    if step.op.split(".")[1] not in _BATCH_NORMS or (
        step.op.split(".")[1] == "native_batch_norm" and step.args[5]
    ):
        return None
    return _parameter(step.args[3])


def _rows(x: Tensor, dim: int, indices: Tensor) -> Tensor:
    """(indices, everything else)"""
    return x.index_select(dim, indices.to(x.device)).movedim(dim, 0).reshape(len(indices), -1)


def _dead(axis: Axis, size: int, survivors: Survivors) -> Tensor:
    gone = torch.ones(size, dtype=torch.bool)
    gone[survivors.of(axis)] = False
    return gone.nonzero().flatten()


def _units(axis: Axis, indices: Tensor, survivors: Survivors) -> list[int]:
    owners = survivors.graph.owners(axis)
    return [] if owners is None else [int(unit) for unit in owners[indices.numpy()]]
