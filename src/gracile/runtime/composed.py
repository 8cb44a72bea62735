"""A network as packed layers with torch's operators between them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from threading import Lock
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gracile.errors import UsageError
from gracile.runtime.bind import Binding
from gracile.runtime.flow import flow
from gracile.runtime.layers import Chosen
from gracile.runtime.memory import Memory
from gracile.runtime.sizes import Sizes
from gracile.runtime.trace import Traced, copied

_MOST = 8  # sizes that calls are kept prepared for


@final
class Composed:
    """Runs a traced graph whose layers are packed.

    For inputs of a size seen before, nothing is allocated but what is returned (and what torch's own dense
    convolution makes). One call runs at a time: the buffers are shared.
    """

    def __init__(self, traced: Traced, threads: int) -> None:
        # A program is not changed by what is done to the model later.
        constants = {name: tensor.clone() for name, tensor in traced.constants.items()}
        self.traced = traced = replace(traced, graph=copied(traced.graph), constants=constants)
        self._threads, self._flow = threads, flow(traced.graph)
        self._inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        self._simple = not traced.fixed and all(child.is_leaf() for child in traced.taken.child(0).children())
        self._one = traced.given.is_leaf()
        self._bindings: OrderedDict[Any, Binding] = OrderedDict()
        self._memory, self._lock = Memory(), Lock()
        self._largest = 0

    @property
    def nbytes(self) -> int:
        """Of weights and of the buffers for the sizes seen so far."""
        kernels = {id(p.kernel): p.kernel.nbytes for p in self.layers}
        return (
            sum(kernels.values())
            + sum(c.nbytes for c in self.traced.constants.values())
            + self._memory.nbytes
        )

    def __call__(self, *inputs: Any) -> Any:
        tensors = inputs if self._simple and len(inputs) == len(self._inputs) else self._tensors(inputs)
        try:
            key = tuple([(x.shape, x.dtype, x.device) for x in tensors])
        except AttributeError:
            tensors = self._tensors(inputs)  # says what is wrong
            raise
        with self._lock, torch.no_grad():
            binding = self._bindings.get(key) or self._bind(key, tensors)
            outputs = binding(tensors)
        return outputs[0] if self._one else pytree.tree_unflatten(outputs, self.traced.given)

    def rehearse(self) -> None:
        """Run once, on zeros of the example's size, so that what cannot be run shows at once."""
        values = [node.meta["val"] for node in self._inputs]
        zeros = [torch.zeros(size, dtype=v.dtype) for size, v in zip(self.traced.sizes, values, strict=True)]
        with torch.no_grad():
            self._bind(tuple([(x.shape, x.dtype, x.device) for x in zeros]), zeros)(zeros)

    def tensors(self) -> dict[str, Tensor]:
        """All numbers, by name, as a file keeps them."""
        named = dict(self.traced.constants)
        for layer in self.layers:
            for what, tensors in (("weight", layer.weights), ("bias", layer.biases)):
                named |= {f"{layer.layer.name}.{what}.{k}": tensor for k, tensor in enumerate(tensors)}
        return named

    @property
    def layers(self) -> list[Chosen]:
        """In the order in which they run; the name is that in the plan."""
        return [node.target for node in self.traced.graph.nodes if isinstance(node.target, Chosen)]

    def _bind(self, key: Any, tensors: Sequence[Tensor]) -> Binding:
        sizes = Sizes(self._inputs, tensors, self.traced.bound)
        amount = sum(x.numel() for x in tensors)
        if amount > self._largest:  # what was allotted for less is too small
            self._bindings.clear()
            self._memory.clear()
            self._largest = amount
        with torch.inference_mode(False), torch.no_grad():  # the buffers must do in any mode
            binding = Binding(self.traced, self._flow, sizes, self._memory, self._threads)
        self._bindings[key] = binding
        if len(self._bindings) > _MOST:
            self._bindings.popitem(last=False)
        return binding

    def _tensors(self, inputs: Any) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(inputs)
        expected = self.traced.taken.child(0)
        if spec != expected:
            raise UsageError(
                "running a program", got=f"inputs nested as {_short(spec)}", expected=_short(expected)
            )
        tensors = [leaf for k, leaf in enumerate(leaves) if k not in self.traced.fixed]
        for position, value in self.traced.fixed.items():
            if leaves[position] != value:
                raise UsageError(
                    "running a program",
                    got=f"input {position} = {leaves[position]!r:.80}",
                    expected=f"{value!r:.80}, as in the example: it is part of the program",
                )
        wrong = [leaf for leaf in tensors if not isinstance(leaf, Tensor)]
        if wrong:
            raise UsageError(
                "running a program", got=f"an input of type {type(wrong[0]).__name__}", expected="tensors"
            )
        return tensors


def _short(spec: pytree.TreeSpec) -> str:
    return " ".join(str(spec).split())[:200]
