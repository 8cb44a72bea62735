"""Under the model: every operator call passes here, is logged, and has its rule move the labels."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.graph.alike import tie_alike
from gracile.graph.attributes import plain_tensors
from gracile.graph.labels import Axis, Labels
from gracile.graph.records import Axes, Call, Operand, Reason, Step
from gracile.graph.rules import Site
from gracile.graph.rules.dispatch import Kind, kind_of, ruled
from gracile.graph.rules.recurrent import tie
from gracile.graph.rules.registry import ATTRIBUTE, Before, operand, tensors_of
from gracile.graph.source import Source


@final
class Observer(TorchDispatchMode):
    """Sees one forward pass of one model."""

    def __init__(self, model: nn.Module, keep_norms: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.labels = Labels()
        self.site = Site(self.labels, keep_norms)
        self.steps: list[Step] = []
        self.calls: list[Call] = []
        self.reasons: list[Reason] = []
        self.tensors: dict[str, Operand] = {}
        self.source = Source()
        self.seeds: list[tuple[str, Tensor]] = [
            *model.named_parameters(),
            *model.named_buffers(),
            *plain_tensors(model),
        ]
        self._modules = {id(m): name for name, m in model.named_modules()}
        self._cells = [m for m in model.modules() if isinstance(m, (nn.RNNBase, nn.RNNCellBase))]
        self._path: list[str] = [""]
        self._starts: list[int] = [0]
        self._places: dict[tuple[Any, ...], Operand] = {}
        self._written: dict[int, tuple[Tensor, Tensor]] = {}

    def where(self) -> tuple[str, str]:
        """The innermost module and the user's line."""
        return self._path[-1], self.source.line()

    def pin(self, axis: Axis, why: str) -> None:
        """Pin for a reason that is no operator."""
        self._because(Reason(why, -1, *self.where()))
        self.labels.pin(axis)

    def _because(self, reason: Reason) -> None:
        self.labels.reason = len(self.reasons)
        self.reasons.append(reason)

    @contextmanager
    def seeded(self, given: object) -> Iterator[None]:
        """Labels on every parameter and buffer, none on what is given; afterwards all is as it was."""
        hooks = self._follow_modules()
        inputs = leaves(given)
        for name, tensor in self.seeds:
            self.tensors[name] = self._seed(name, tensor)
        for cell in self._cells:
            tie(self.site, cell)
        for tensor in inputs:
            if operand(tensor) is None:
                self._give(tensor, (None,) * tensor.dim())
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
                # which torch forgets to remove, and torch.compile warns of
                nn.modules.module._global_forward_hooks_with_kwargs.pop(hook.id, None)
            for tensor in [*(seed for _, seed in self.seeds), *inputs]:
                if hasattr(tensor, ATTRIBUTE):
                    delattr(tensor, ATTRIBUTE)
            for tensor, before in self._written.values():
                tensor.copy_(before)

    def _follow_modules(self) -> list[Any]:
        thread = threading.get_ident()

        def enter(module: nn.Module, _: Any) -> None:
            if threading.get_ident() == thread and id(module) in self._modules:
                self._path.append(self._modules[id(module)])
                self._starts.append(len(self.steps))

        def leave(module: nn.Module, args: Any, *rest: Any) -> None:
            named, result = rest if len(rest) == 2 else ({}, None)  # a forward that failed has no named ones
            if threading.get_ident() == thread and id(module) in self._modules and len(self._path) > 1:
                with torch._C.DisableTorchFunction():  # our look at the shapes is none of the model's
                    self.calls.append(
                        _call(self._path.pop(), self._starts.pop(), len(self.steps), args, named, result)
                    )

        return [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, with_kwargs=True, always_call=True),
        ]

    def _seed(self, name: str, tensor: Tensor) -> Operand:
        place = _place(tensor)
        found = self._places.get(place) if place else None
        if found is None:
            axes = tuple(self.labels.fresh(n) if n > 1 else None for n in tensor.shape)
            found = Operand(tuple(tensor.shape), tensor.dtype, axes, name, weight=True)
            if place:
                self._places[place] = found
        setattr(tensor, ATTRIBUTE, found)
        return found

    def _give(self, tensor: Tensor, axes: Axes, weight: bool = False) -> Operand:
        given = Operand(tuple(tensor.shape), tensor.dtype, axes, None, weight)
        setattr(tensor, ATTRIBUTE, given)
        return given

    def _carried(self, tensor: Tensor) -> Operand:
        """What a tensor carries. One from nowhere is a constant, unless it lies where a parameter does."""
        found = operand(tensor)
        if found is None:
            found = self._places.get(_place(tensor))
            if found is None:
                return self._give(tensor, (None,) * tensor.dim(), weight=True)
            setattr(tensor, ATTRIBUTE, found)
        return found

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        kind = kind_of(func)
        inputs = tensors_of((*args, *kwargs.values()))
        operands = [self._carried(x) for x in inputs]
        before: Before = None
        if kind.writes and inputs:
            before = (inputs[0], tuple(inputs[0].shape), operands[0].labels)
            self._save(inputs[0])
        out = func(*args, **kwargs)
        self._because(Reason("", len(self.steps)))
        self.site.enter(func, args, kwargs, before)
        known = {id(x): given for x, given in zip(inputs, operands, strict=True)}
        outputs = self._outputs(kind, out, args, kwargs, operands, before)
        order = {id(x): i for i, x in reversed(list(enumerate(inputs)))}
        module, source = self.where()
        self.steps.append(
            Step(
                kind.name,
                module,
                source,
                tuple(_replaced(value, known) for value in args),
                {key: _replaced(value, known) for key, value in kwargs.items()},
                outputs,
                tuple((order[id(x)], dim) for x, dim in self.site.counted),
            )
        )
        return out

    def _outputs(
        self,
        kind: Kind,
        out: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Operand],
        before: Before,
    ) -> tuple[Operand, ...]:
        """Let the rule move the labels, and give the outputs theirs."""
        outs = tensors_of((out,))
        axes = ruled(kind, self.site, out, outs, args, kwargs)
        if isinstance(axes, str):
            self.reasons[-1] = Reason(axes, len(self.steps))
            for given in operands:
                self.site.pin(*given.labels)
            axes = [(None,) * y.dim() for y in outs]
        weight = bool(operands) and all(given.weight for given in operands)
        return tuple(
            # A tensor that was written in place keeps its own labels: they have met those of the result.
            self._carried(y)
            if before is not None and y is before[0] and before[1] == y.shape
            else self._give(y, labels, weight)
            for y, labels in zip(outs, axes, strict=True)
        )

    def _save(self, tensor: Tensor) -> None:
        """Remember the parameters and buffers in a storage that is about to be written to."""
        start = tensor.untyped_storage().data_ptr()
        for _, seed in self.seeds:
            if seed.untyped_storage().data_ptr() == start and id(seed) not in self._written:
                self._written[id(seed)] = (seed, seed.clone())

    def tie_alike(self, model: nn.Module) -> None:
        """Tie modules that were not called to others like them that were."""
        self._because(Reason("not called, as others like it were"))
        touched = {given.name for step in self.steps for given in step.inputs if given.name is not None}
        tie_alike(model, touched, self.labels)

    def finish(self, output: object, selected: object) -> None:
        """Pin what is selected of what the model returns, and take the labels off all of it."""
        self._because(Reason("returned by the model"))
        for tensor in leaves(selected):
            given = operand(tensor)
            if given is not None:
                self.site.pin(*given.labels)
        for tensor in leaves((output, selected)):
            given = operand(tensor)
            if given is not None and given.name is None:
                delattr(tensor, ATTRIBUTE)


def _call(
    module: str, start: int, stop: int, args: tuple[Any, ...], named: dict[str, Any], result: Any
) -> Call:
    given: dict[int | str, Operand] = {
        key: found
        for key, value in (dict[Any, Any](enumerate(args)) | named).items()
        if isinstance(value, Tensor) and (found := operand(value)) is not None
    }
    returned: Any = None
    if isinstance(result, Tensor):
        returned = operand(result)
    elif type(result) is tuple:
        returned = tuple(operand(value) if isinstance(value, Tensor) else None for value in result)
    return Call(module, start, stop, given, returned)


def _place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor lies in memory; empty where that says nothing (no elements, no data)."""
    start = tensor.data_ptr() if tensor.numel() else 0
    return (start, tuple(tensor.shape), tensor.stride()) if start else ()


def _replaced(value: Any, known: dict[int, Operand]) -> Any:
    if isinstance(value, Tensor):
        return known[id(value)]
    if isinstance(value, (list, tuple)):
        return tuple(_replaced(item, known) for item in value)
    return value


def leaves(value: object) -> list[Tensor]:
    """Every tensor inside an argument or a result, whatever holds it."""
    found: list[Tensor] = []
    waiting: list[Any] = [value]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, Tensor):
            found.append(item)
        elif id(item) not in seen:
            seen.add(id(item))
            if isinstance(item, dict):
                waiting += item.values()
            elif isinstance(item, (list, tuple, set, frozenset)):
                waiting += item
            elif hasattr(item, "__dict__") and not isinstance(item, (type, nn.Module)):
                waiting += vars(item).values()
    return found
