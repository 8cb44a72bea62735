"""The fastest kernel for every layer, found by measuring each on inputs of the example's size."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx

from gracile.cost import measure, time_on_thread
from gracile.errors import GracileError, UsageError
from gracile.runtime.layers import Chosen, Kernel, Layer
from gracile.runtime.plan import Choice
from gracile.runtime.sizes import Sizes
from gracile.runtime.values import Value


@final
@dataclass(frozen=True)
class Search:
    """How kernels are chosen.

    Attributes:
        threads: that they may use.
        rounds: samples of each candidate.
        instruction_set: of the kernels; the best one that the machine has by default.
        force: layer, or pattern such as ``"layer1.*"``, -> kernel; those are not measured.
    """

    threads: int
    rounds: int
    instruction_set: str | None
    force: Mapping[str, str]


def choose(nodes: Sequence[fx.Node], sizes: Sizes, search: Search) -> tuple[Choice, ...]:
    """Put packed layers into the graph, in place of those that describe; return what was chosen, and why.

    The dense weights of a layer that runs sparse are let go.

    Raises:
        UsageError: ``force`` names a layer or kernel that does not exist.
    """
    layers: list[Any] = [node.target for node in nodes]
    names = [layer.name for layer in layers]
    unknown = [name for name in search.force if not fnmatch.filter(names, name)]
    if unknown:
        raise UsageError(
            "choosing kernels",
            got=f"the layer {unknown[0]!r}",
            expected=f"one of {', '.join(names) or 'none: there is none'}",
        )
    done: dict[Any, tuple[Choice, Kernel]] = {}
    choices = []
    # The list keeps all layers alive: while ids are compared, nothing may take the place of another.
    for node, layer in zip(nodes, layers, strict=True):
        key = (_identity(layer), _forced(layer, search))
        if key not in done:  # a module that is used twice is packed once
            inputs = [_like(source, sizes) for source in node.all_input_nodes]
            choice, kernel = _fastest(layer, inputs, _empty(node, sizes), search)
            done[key] = replace(choice, macs=layer.macs(_answer(node, sizes))), kernel
        choice, kernel = done[key]
        choices.append(replace(choice, layer=layer.name))
        node.target = Chosen(layer.bare(), kernel, layer.biases)
    return tuple(choices)


def _fastest(
    layer: Layer, inputs: Sequence[Tensor], out: Tensor | None, search: Search
) -> tuple[Choice, Kernel]:
    makers = layer.kernels(search.instruction_set)
    forced = _forced(layer, search)
    candidates: dict[str, Kernel] = {}
    for name in [forced] if forced is not None else makers:
        try:
            candidates[name] = makers[name]()
        except GracileError:  # weights that are not finite, say
            if name == forced:
                raise
    times: dict[str, float] = {}
    if len(candidates) > 1:
        calls = {name: _bound(kernel, inputs, out, search.threads) for name, kernel in candidates.items()}
        # What else the machine does is not in a thread's own time; nor is what other threads do for it.
        timer = time_on_thread if search.threads == 1 else None
        found = measure(calls, rounds=search.rounds, threads=search.threads, timer=timer)
        times = {name: timing.median_s for name, timing in found.items()}
    best = min(times, key=times.__getitem__) if times else next(iter(candidates))
    shape = tuple(inputs[0].shape)
    choice = Choice(layer.name, layer.kind, shape, layer.density, layer.block_density, best, times)
    return choice, candidates[best]


def _forced(layer: Layer, search: Search) -> str | None:
    """A layer's own name counts before a pattern, and a pattern only where there is such a kernel."""
    makers = layer.kernels()
    wanted = search.force.get(layer.name)
    if wanted is not None:
        if wanted not in makers:
            raise UsageError(
                f"choosing a kernel for '{layer.name}'",
                got=f"{wanted!r}",
                expected=f"one of {', '.join(makers)}",
            )
        return wanted
    found = [kernel for name, kernel in search.force.items() if fnmatch.fnmatchcase(layer.name, name)]
    return found[0] if found and found[0] in makers else None


def _bound(kernel: Any, inputs: Sequence[Tensor], out: Tensor | None, threads: int) -> Any:
    if out is None or not hasattr(kernel, "bind"):
        return partial(kernel, *inputs, threads=threads)
    return kernel.bind(inputs[0], out, *inputs[1:], threads=threads)


def _like(node: fx.Node, sizes: Sizes) -> Tensor:
    return torch.randn(sizes(node.meta["val"].shape))


def _empty(node: fx.Node, sizes: Sizes) -> Tensor | None:
    return (
        torch.empty_like(_answer(node, sizes), device="cpu") if isinstance(node.meta["val"], Value) else None
    )


def _answer(node: fx.Node, sizes: Sizes) -> Tensor:
    value = node.meta["val"]
    first = value if isinstance(value, Value) else value[0]
    return torch.empty(sizes(first.shape), device="meta")


def _identity(layer: Layer) -> tuple[Any, ...]:
    """The same for layers that compute the same with the same tensors."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return id(value)
        return tuple(map(part, value)) if isinstance(value, tuple) else value

    return (type(layer), *(part(getattr(layer, f.name)) for f in fields(layer) if f.name != "name"))
