"""Sizes of a traced network that depend on those of its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gracile.errors import GraphError, ShapeError
from gracile.runtime.trace import Traced


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
            expected = node.meta["val"]
            if tensor.dtype != expected.dtype or tensor.dim() != expected.dim() or not tensor.is_cpu:
                raise _wrong(node, tensor, expected, bound)
            for size, wanted in zip(tensor.shape, expected.shape, strict=True):
                if not isinstance(wanted, int) and wanted.node.expr.is_Symbol:
                    self._numbers.setdefault(wanted.node.expr, sympy.Integer(size))
        for node, tensor in zip(inputs, given, strict=True):
            expected = node.meta["val"]
            if self(list(expected.shape)) != list(tensor.shape):
                raise _wrong(node, tensor, expected, bound)

    def __call__(self, value: Any) -> Any:
        """The same value with every symbol replaced; lists and tuples are gone through."""
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            found = value.node.expr.xreplace(self._numbers)
            if not (found.is_number or found.is_Boolean):
                raise GraphError(
                    "sizing a program",
                    got=f"a size that depends on values ({found})",
                    expected="sizes that depend on those of the inputs",
                )
            kind: Any = int if isinstance(value, torch.SymInt) else float
            return bool(found) if isinstance(value, torch.SymBool) else kind(found)
        return value


def sizes_for(traced: Traced, example: tuple[Any, ...]) -> Sizes:
    """Sizes as an example sets them."""
    given = [x for k, x in enumerate(pytree.tree_leaves(example)) if k not in traced.fixed]
    return Sizes([node for node in traced.graph.nodes if node.op == "placeholder"], given, traced.bound)


def described(value: Tensor) -> str:
    """A shape and dtype for people, with ``*`` where any size will do.

    >>> described(torch.zeros(2, 3))
    'float32 (2, 3)'
    """
    sizes = ", ".join(str(size) if str(size).isdigit() else "*" for size in value.shape)
    return f"{str(value.dtype).removeprefix('torch.')} ({sizes}{',' if value.dim() == 1 else ''})"


def _wrong(node: fx.Node, tensor: Tensor, expected: Tensor, bound: str) -> ShapeError:
    place = "" if tensor.is_cpu else f" on {tensor.device}"
    return ShapeError(
        "running a program",
        got=f"input '{node.name}' of {described(tensor)}{place}",
        expected=described(expected) + ("" if tensor.is_cpu else " on the CPU"),
        hint=f"the first dimension is fixed because: {bound}" if bound else "compile for this shape",
    )
