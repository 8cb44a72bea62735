"""A program for inputs of one size: every buffer allotted, every window cut, every call prepared."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gracile.runtime.flow import Flow
from gracile.runtime.layers import Chosen, Kernel
from gracile.runtime.memory import Memory
from gracile.runtime.sizes import Sizes
from gracile.runtime.trace import Traced
from gracile.runtime.values import Value
from gracile.runtime.writers import Call, Writer, writer

aten = torch.ops.aten
Values = list[Any]
_SMALL = 1 << 16  # bytes of an output that are copied in less time than it takes to prepare a call anew
# Where a window cannot be cut, because strides are not those of the network that was traced, a copy will do.
_VIEWS = {aten.view.default: aten.reshape.default, aten._unsafe_view.default: aten.reshape.default}


@final
class Slot:
    """Where a value that is new at each run will be found."""

    def __init__(self, index: int) -> None:
        self.index = index


@final
class Binding:
    """Calls in order. Values that stay where they are have been put into them; the others have slots.

    Args:
        traced: a graph of :class:`Chosen` layers and operators, and its constants.
        flow: of that graph.
        sizes: of the inputs.
        memory: that buffers are taken from, and that no other program uses.
        threads: for the kernels.
    """

    def __init__(
        self,
        traced: Traced,
        flow: Flow,
        sizes: Sizes,
        memory: Memory,
        threads: int,
    ) -> None:
        self._flow, self._sizes, self._memory, self._threads = flow, sizes, memory, threads
        self._known: dict[fx.Node, Any] = {}
        self._ending: dict[int, list[Tensor]] = defaultdict(list)  # position -> buffers that are free then
        self._inputs: list[Tensor] = []
        self._steps: list[Call] = []
        self._values: Values = []
        memory.free_all()
        for at, node in enumerate(traced.graph.nodes):
            if node.op == "placeholder":
                value = node.meta["val"]
                self._known[node] = self._take(at, node, sizes(value.shape), value.dtype)
                self._inputs.append(self._known[node])
            elif node.op == "get_attr":
                self._known[node] = traced.constants[str(node.target)]
            elif node.op == "call_function":
                self._place(at, node)
                self._release(at)
            else:
                self._results = self._of(node.args[0])
        # An operator may have handed on a buffer or constant, which are the program's own.
        statics = [value for value in self._known.values() if isinstance(value, Tensor)]
        self._own = {value.untyped_storage().data_ptr() for value in statics}
        del self._known, self._ending

    def __call__(self, inputs: Sequence[Tensor]) -> list[Any]:
        """Outputs, in the order of the graph."""
        for buffer, given in zip(self._inputs, inputs, strict=True):
            buffer.copy_(given)
        for step in self._steps:
            step()
        outputs = [self._result(result) for result in self._results]
        self._values[:] = [None] * len(self._values)
        return outputs

    def _place(self, at: int, node: fx.Node) -> None:
        """Work the value out now if it stays as it is, or add the step that does at each run."""
        value = node.meta.get("val")
        if value is not None and not isinstance(value, Value | list):
            self._known[node] = self._sizes(value)
            return
        args, kwargs = self._of(node.args), self._of(node.kwargs)
        target: Any = node.target
        target = _VIEWS.get(target, target)
        if node in self._flow.written and (node not in self._flow.leaving or self._small(value)):
            self._write(at, node, args, kwargs)
        elif _slots_in((args, kwargs)):
            self._run(node, target, args, kwargs)
        elif node.target is operator.getitem:
            self._known[node] = args[0][args[1]]
        elif node in self._flow.views:
            self._window(at, node, target(*args, **kwargs), args[0])
        elif any(isinstance(self._known[source], Tensor) for source in node.all_input_nodes):
            self._run(node, target, args, kwargs)
        else:
            self._known[node] = target(*args, **kwargs)  # zeros, say: of sizes alone

    def _window(self, at: int, node: fx.Node, found: Any, base: Tensor) -> None:
        if isinstance(found, Tensor) and found.untyped_storage()._cdata != base.untyped_storage()._cdata:
            found = self._take(at, node, found.shape, found.dtype)
            self._steps.append(partial(found.view(base.shape).copy_, base))
        self._known[node] = found

    def _write(self, at: int, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if isinstance(node.target, Chosen):
            prepare: Writer = partial(_prepare, node.target.kernel, self._threads)
            args = tuple(self._contiguous(at, given) for given in args)
        else:
            found = writer(node.target)
            assert found is not None  # or it were not among the written
            prepare = found
        value = node.meta["val"]
        out = self._known[node] = self._take(at, node, self._sizes(value.shape), value.dtype)
        try:
            if _slots_in((args, kwargs)):
                if not isinstance(node.target, Chosen):
                    prepare(out, *self._sample(node.args), **self._sample(node.kwargs))  # whether it can
                self._steps.append(partial(_prepare_and_call, self._values, prepare, out, args, kwargs))
            else:
                self._steps.append(prepare(out, *args, **kwargs))
        except NotImplementedError:
            self._run(node, node.target, args, kwargs)

    def _run(self, node: fx.Node, target: Any, args: Any, kwargs: Any) -> None:
        """An answer that is new at each run."""
        slot = self._known[node] = self._slot()
        if isinstance(target, Chosen):
            target = partial(_call, target.kernel, self._threads)
        self._steps.append(partial(_into, self._values, slot.index, target, args, kwargs))

    def _contiguous(self, at: int, given: Any) -> Any:
        """Kernels read numbers in order; values that have slots are looked at when they run."""
        if not isinstance(given, Tensor) or given.is_contiguous():
            return given
        copy = self._memory.take(given.shape, given.dtype)
        self._ending[at].append(copy)
        self._steps.append(partial(copy.copy_, given))
        return copy

    def _take(self, at: int, node: fx.Node, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        out = self._memory.take(shape, dtype)
        self._ending[max(self._flow.last.get(root, at) for root in self._flow.roots[node])].append(out)
        return out

    def _release(self, at: int) -> None:
        for buffer in self._ending.pop(at, ()):
            self._memory.give(buffer)
        gone = [self._known[node] for node in self._flow.released.get(at, ()) if node.op == "call_function"]
        slots = [value.index for value in gone if type(value) is Slot]
        if slots:
            self._steps.append(partial(_forget, self._values, slots))

    def _result(self, result: Any) -> Any:
        found = self._values[result.index] if isinstance(result, Slot) else result
        if isinstance(found, Tensor) and found.untyped_storage().data_ptr() in self._own:
            return found.clone()
        return found

    def _slot(self) -> Slot:
        self._values.append(None)
        return Slot(len(self._values) - 1)

    def _small(self, value: Any) -> bool:
        count = torch.Size(self._sizes(value.shape)).numel()
        return bool(count * value.dtype.itemsize <= _SMALL)

    def _of(self, given: Any) -> Any:
        return fx.node.map_arg(given, self._known.__getitem__)

    def _sample(self, given: Any) -> Any:
        """Tensors without content for values that are new at each run."""

        def find(node: fx.Node) -> Any:
            known = self._known[node]
            if type(known) is not Slot:
                return known
            value = node.meta["val"]
            return torch.empty(self._sizes(value.shape), dtype=value.dtype, device="meta")

        return fx.node.map_arg(given, find)


def _slots_in(given: Any) -> bool:
    return any(isinstance(leaf, Slot) for leaf in pytree.tree_leaves(given))


def _filled(values: Values, given: Any) -> Any:
    return fx.node.map_aggregate(given, lambda a: values[a.index] if isinstance(a, Slot) else a)


def _prepare(kernel: Any, threads: int, out: Tensor, x: Tensor, add: Tensor | None = None) -> Call:
    call: Call = kernel.bind(x.contiguous(), out, add if add is None else add.contiguous(), threads)
    return call


def _prepare_and_call(values: Values, prepare: Writer, out: Tensor, args: Any, kwargs: Any) -> None:
    prepare(out, *_filled(values, args), **_filled(values, kwargs))()


def _call(kernel: Kernel, threads: int, x: Tensor, *others: Tensor) -> Any:
    return kernel(x.contiguous(), *(other.contiguous() for other in others), threads=threads)


def _into(values: Values, index: int, target: Any, args: Any, kwargs: Any) -> None:
    values[index] = target(*_filled(values, args), **_filled(values, kwargs))


def _forget(values: Values, slots: Sequence[int]) -> None:
    for slot in slots:
        values[slot] = None
