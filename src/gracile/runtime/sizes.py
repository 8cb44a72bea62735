"""Sizes of a traced network that depend on those of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx

from gracile.errors import GraphError, ShapeError
from gracile.runtime.trace import Traced
from gracile.runtime.values import Value


@final
class Sizes:
    """Numbers for the symbols of a traced graph, as given inputs set them.

    Args:
        inputs: placeholders of the graph.
        given: a tensor for each.
        bound: why the first dimension is fixed; empty if it is not.

    Raises:
        ShapeError: a shape, dtype or device that the program was not made for.
    """

    def __init__(self, inputs: Sequence[fx.Node], given: Sequence[Tensor], bound: str) -> None:
        self._numbers: dict[Any, Any] = {}
        for node, tensor in zip(inputs, given, strict=True):
            expected: Value = node.meta["val"]
            if tensor.dtype != expected.dtype or tensor.dim() != expected.dim() or not tensor.is_cpu:
                raise _wrong(node, tensor, bound)
            for size, wanted in zip(tensor.shape, expected.shape, strict=True):
                if isinstance(wanted, sympy.Symbol):
                    self._numbers.setdefault(wanted, sympy.Integer(size))
        for node, tensor in zip(inputs, given, strict=True):
            if self(node.meta["val"].shape) != tuple(tensor.shape):
                raise _wrong(node, tensor, bound)

    def __call__(self, value: Any) -> Any:
        """The same value with every symbol replaced; tuples are gone through.

        Raises:
            GraphError: it depends on more than the inputs' sizes.
        """
        if isinstance(value, tuple):
            return tuple(self(item) for item in value)
        if not isinstance(value, sympy.Basic):
            return value
        found = value.xreplace(self._numbers)
        if found.free_symbols:
            raise GraphError(
                "sizing a program",
                got=f"a size that depends on values ({found})",
                expected="sizes that depend on those of the inputs",
            )
        if found.is_Boolean:
            return bool(found)
        return int(found) if found.is_integer else float(found)


def sizes_for(traced: Traced) -> Sizes:
    """Sizes as the example sets them.

    Raises:
        ShapeError: it does not fit the graph.
    """
    inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
    given = [
        torch.empty(size, dtype=node.meta["val"].dtype)
        for node, size in zip(inputs, traced.sizes, strict=True)
    ]
    return Sizes(inputs, given, traced.bound)


def _wrong(node: fx.Node, tensor: Tensor, bound: str) -> ShapeError:
    expected: Value = node.meta["val"]
    place = "" if tensor.is_cpu else f" on {tensor.device}"
    return ShapeError(
        "running a program",
        got=f"input '{node.name}' of {Value.of(tensor)}{place}",
        expected=str(expected) + ("" if tensor.is_cpu else " on the CPU"),
        hint=f"the first dimension is fixed because: {bound}" if bound else "compile for this shape",
    )
