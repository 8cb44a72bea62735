"""Depth: whole modules go where a shortcut leads around them, and the result is proven.

    y = act(x + f(x))   becomes   act(x + c)

with c = 0, or, where the weights of f are zero, the constant that it still emits: the bias of its last layer,
the shift of its batch norm. Which modules qualify is read off the log by :func:`gracile.graph.droppable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.errors import RefusedError, UsageError
from gracile.graph import Cut, Detour, Dropped, Graph, Outputs, Step, droppable, everything, watch
from gracile.graph.bypass import nested, packet_of, writes
from gracile.reduce.apply import apply_
from gracile.reduce.attention import Attention
from gracile.reduce.copies import duplicate, undisturbed
from gracile.reduce.probes import Inputs, copied, leaves
from gracile.reduce.refusal import Refusal
from gracile.reduce.remove import Reduction
from gracile.reduce.replay import UnprovenError, in_step
from gracile.reduce.silence import constant_ones, dead_blocks
from gracile.reduce.verify import CLEARLY, Verdict, difference, other_weights, run, tolerance_of, trials

BlockChoice = Callable[[Graph, nn.Module], Iterable[str]]


def drop(
    model: nn.Module,
    *inputs: Any,
    blocks: BlockChoice | Iterable[str] = dead_blocks,
    tolerance: float | None = None,
    outputs: Outputs = everything,
    **named: Any,
) -> Reduction:
    """Remove modules that a shortcut bypasses from a copy of ``model`` and prove the result.

    A module whose branches are constant because their weights are zero leaves that constant behind: the
    result equals the original. Any other is removed with all that it adds: the result equals the model in
    which its branches are zero.

    Args:
        model: any module whose forward is Python; it is left untouched.
        inputs: an example to call it with; ``named`` likewise.
        blocks: paths of modules among ``droppable(watch(model, ...))``, or (graph, model) -> paths; by
            default those that are dead. A path inside of another one goes with it.
        tolerance: largest error relative to the largest output; by default it depends on the dtype.
        outputs: picks the part that matters from what the model returns, e.g. ``lambda out: out.logits``.

    Raises:
        RefusedError: modules were chosen and none of them could go.
        UsageError: the model has no module of that name.
        GraphError: the model cannot be watched.

    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.f = nn.Linear(3, 3)
    ...     def forward(self, x):
    ...         return x + self.f(x)
    >>> model = nn.Sequential(nn.Linear(3, 3), Block(), nn.Linear(3, 2))
    >>> _ = nn.init.zeros_(model[1].f.weight)
    >>> result = drop(model, torch.randn(2, 3))
    >>> result.model[1].shift.shape, list(result.cut.dropped)
    (torch.Size([1, 3]), ['1'])
    """
    work = duplicate(model)
    given: Inputs = copied((inputs, named))
    args, kwargs = copied(given)
    graph = watch(work, *args, outputs=outputs, **kwargs)
    names = list(blocks(graph, work) if callable(blocks) else blocks)
    chosen, refused = _chosen(graph, work, names)
    dead = {detour.module for detour in constant_ones(graph, work)}

    def attempt(detours: Sequence[Detour]) -> Reduction:
        return _attempt(work, graph, [(d, d.module in dead) for d in detours], given, tolerance)

    result = None
    try:
        result = attempt(chosen) if chosen else None
    except UnprovenError as error:
        able: list[Detour] = []
        for detour in chosen if len(chosen) > 1 else ():  # as many as can go together
            try:
                result = attempt([*able, detour])
            except UnprovenError as this:
                refused.append(_refusal(graph, detour, this.reason))
            else:
                able.append(detour)
        if len(chosen) == 1:
            refused.append(_refusal(graph, chosen[0], error.reason))
    if result is not None:
        return replace(result, refused=tuple(refused))
    if refused:
        raise RefusedError(
            "dropping blocks",
            got=f"{len(refused)} chosen of which none can go; the first: {refused[0]}",
            expected="modules that a shortcut bypasses",
            hint=f"these are: {', '.join(d.module for d in droppable(graph)) or 'none'}"[:400],
        )
    return _reduction(duplicate(model), Cut(), Verdict("exact", 0.0, 0.0), graph, {})


def _chosen(graph: Graph, model: nn.Module, names: Sequence[str]) -> tuple[list[Detour], list[Refusal]]:
    """The detours that go by these names, each once and none inside another, and what is no detour."""
    modules = dict(model.named_modules(remove_duplicate=False))
    known: dict[str, Detour] = {}
    for detour in droppable(graph):
        for name in (detour.module, *detour.unheard):
            if name == detour.module or name not in known:
                known[name] = detour
    found: dict[str, Detour] = {}
    refused: list[Refusal] = []
    for name in names:
        if not isinstance(name, str) or name not in modules:
            raise UsageError(
                "dropping blocks", got=f"{name!r}"[:200], expected="the path of a module of the model"
            )
        if name in known:
            found[known[name].module] = known[name]
        else:
            refused.append(Refusal(name, "", "", "is not bypassed by a shortcut, or not as a whole"))
    inside = set(nested(found))
    return [detour for name, detour in found.items() if name not in inside], refused


def _refusal(graph: Graph, detour: Detour, reason: str) -> Refusal:
    step = graph.steps[detour.joins[0][0]]
    return Refusal(detour.module, step.op, step.source, reason)


def _attempt(
    work: nn.Module,
    graph: Graph,
    chosen: Sequence[tuple[Detour, bool]],
    inputs: Inputs,
    tolerance: float | None,
) -> Reduction:
    """Drop and verify; raises UnprovenError."""
    shifts = {
        detour.module: shift
        for detour, dead in chosen
        if dead and (shift := _constant(work, graph, detour, inputs)) is not None
    }
    detours = [detour for detour, _ in chosen]
    bare, cut = _cut(work, graph, detours, {}), _cut(work, graph, detours, shifts)
    small = duplicate(work)
    apply_(small, cut)
    buffers = dict(small.named_buffers(remove_duplicate=False))
    folded = {f"{name}.shift": shift for name, shift in shifts.items()}
    with torch.no_grad():
        for name, value in folded.items():
            buffers[name].copy_(value)
    joins = [join for detour in detours for join in detour.joins]
    for weights in other_weights(work):
        simple = duplicate(weights)
        apply_(simple, bare)
        verdict = _compare(weights, simple, graph, joins, inputs, tolerance)
        if verdict.moved > CLEARLY * verdict.error:
            break
    else:
        raise UnprovenError("an output that does not depend on what was dropped: nothing is proven", graph)
    living = [join for detour, dead in chosen if not dead for join in detour.joins]
    final = _compare(work, small, graph, living, inputs, tolerance)
    return _reduction(small, cut, replace(verdict, error=max(verdict.error, final.error)), graph, folded)


def _reduction(
    model: nn.Module, cut: Cut, verdict: Verdict, graph: Graph, folded: dict[str, Tensor]
) -> Reduction:
    return Reduction(model, cut, verdict, (), graph, folded, ())


def _cut(model: nn.Module, graph: Graph, detours: Iterable[Detour], shifts: dict[str, Tensor]) -> Cut:
    calls = {call.module: call for call in graph.calls}
    dropped: dict[str, Dropped] = {}
    for detour in detours:
        for name in detour.unheard:
            result = calls[name].returned
            length = len(result) if isinstance(result, tuple) else 0
            dropped.setdefault(name, Dropped("bypass", None, "", next(iter(calls[name].given)), length))
    for detour in detours:
        shift = shifts.get(detour.module)
        kind = "bypass" if detour.kind == "block" else "silent" if detour.full else "constant"
        silent = detour.activation < 0 or (shift is None and detour.settled)
        dropped[detour.module] = Dropped(
            kind,
            None if shift is None else list(shift.shape),
            "" if silent else _activation(graph, graph.steps[detour.activation]),
            detour.given,
            detour.returned,
        )
    inside = set(nested(dropped))
    modules = dict(model.named_modules(remove_duplicate=False))
    return Cut(
        dropped={
            path: replace(dropped[name], attention=_attention(path, modules[path]))
            for name in dropped
            if name not in inside
            for path, module in modules.items()
            if module is modules[name]
        }
    )


def _attention(path: str, module: nn.Module) -> list[str]:
    found = (name for name, inner in module.named_modules() if isinstance(inner, Attention))
    return [f"{path}.{name}" if name else path for name in found]


def _activation(graph: Graph, step: Step) -> str:
    packet = packet_of(step)
    if packet == "hardtanh":
        if [*step.args[1:], *step.kwargs.values()] != [0, 6]:
            raise UnprovenError("a clamp behind the sum that is no relu6", graph)
        return "relu6"
    if packet == "gelu":
        return "gelu_tanh" if "tanh" in (*step.args[1:], *step.kwargs.values()) else "gelu"
    return packet


def _compare(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    joins: Sequence[tuple[int, int]],
    inputs: Inputs,
    tolerance: float | None,
) -> Verdict:
    """The dropped model against the full one with zeros at the joins."""
    error, moved = 0.0, 0.0
    for number, (probe, before) in enumerate(trials(model, graph, inputs)):
        try:
            reference = _silenced(model, graph, joins, probe) if joins else before
        except UnprovenError:  # a larger batch may be a longer sequence, which the log cannot follow
            if number:
                break
            raise
        try:
            found = run(small, probe, graph.outputs)
        except Exception as failure:
            reason = f"the reduced model fails ({type(failure).__name__}: {str(failure)[:200]})"
            raise UnprovenError(reason, graph) from failure
        this = difference(reference, found)
        if not this <= (tolerance if tolerance is not None else tolerance_of(reference)):
            raise UnprovenError(f"a relative error of {this:.1e}", graph)
        if not number and _deaf(model, small, graph, inputs, before, found):
            raise UnprovenError("an output that no longer depends on the input", graph)
        error, moved = max(error, this), max(moved, difference(before, reference))
    return Verdict("exact", error, moved)


def _deaf(
    model: nn.Module,
    small: nn.Module,
    graph: Graph,
    inputs: Inputs,
    before: list[Tensor],
    found: list[Tensor],
) -> bool:
    """Whether only the full model answers differently to the example than to the probe."""
    if difference(run(model, inputs, graph.outputs), before) == 0:
        return False
    return difference(run(small, inputs, graph.outputs), found) == 0


def _silenced(
    model: nn.Module, graph: Graph, joins: Iterable[tuple[int, int]], inputs: Inputs
) -> list[Tensor]:
    args, named = copied(inputs)
    with undisturbed(model), _Silence(graph, joins):
        output = model(*args, **named)
    return [y.clone() for y in leaves(graph.outputs(output))]


@final
class _Silence(TorchDispatchMode):
    """Puts zeros in the place of what is added at the joins."""

    def __init__(self, graph: Graph, joins: Iterable[tuple[int, int]]) -> None:
        super().__init__()
        self.graph, self.number = graph, 0
        self.joins = dict(joins)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        step = in_step(self.graph, self.number, func)
        at = self.joins.get(self.number, -1)
        if at == 0 and writes(step):  # the caller holds on to the tensor that is written
            args[0].zero_()
        elif at >= 0:
            args = (*args[:at], torch.zeros_like(args[at]), *args[at + 1 :])
        self.number += 1
        return func(*args, **(kwargs or {}))


def _constant(model: nn.Module, graph: Graph, detour: Detour, inputs: Inputs) -> Tensor | None:
    """What the branches of a dead module add; None for nothing.

    A block is asked with x = 0, where act(x + c) shows c before the activation.

    Raises:
        UnprovenError: it is not the same over batch and space.
    """
    module = dict(model.named_modules())[detour.module]
    found: list[Tensor] = []

    def ask(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        if found:
            return
        found.append(torch.empty(0))  # the call below comes here, too
        if detour.kind == "block":
            place: Any = dict(enumerate(args)) | named
            place[detour.given] = torch.zeros_like(place[detour.given])
            args, named = tuple(place[n] for n in range(len(args))), {key: place[key] for key in named}
        with _Peek(detour.activation - detour.start) as peek:
            result = module(*args, **named)
        value = peek.seen if detour.activation >= 0 else result
        found[0] = (value[0] if isinstance(value, tuple) else value).clone()

    hook = module.register_forward_pre_hook(ask, with_kwargs=True)
    try:
        with undisturbed(model):
            args, named = copied(inputs)
            model(*args, **named)
    finally:
        hook.remove()
    value = found[0]
    for dim in range(value.dim()):
        first = value.narrow(dim, 0, 1)
        if bool((value == first).all()):
            value = first
    if sum(n > 1 for n in value.shape) > 1 or (value.dim() > 1 and value.shape[0] > 1):
        raise UnprovenError("a constant that is not the same over batch and space", graph)
    return value.clone() if bool(value.any()) else None


@final
class _Peek(TorchDispatchMode):
    """Keeps a copy of the first argument of one operator."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.at = 0, number
        self.seen = torch.empty(0)

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if self.number == self.at:
            self.seen = args[0].clone()
        self.number += 1
        return func(*args, **(kwargs or {}))
