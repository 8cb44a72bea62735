"""Any nested state as two things that can be read back safely: JSON and named tensors.

``state_dict`` of models, optimizers and loaders are trees of dicts, lists, tuples, numbers, strings
and tensors. A tree is split into a skeleton (JSON that says where which tensor belongs) and the
tensors. Reading builds nothing but those types: no class is looked up, no code is run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gracile.errors import FileError, UsageError

# JSON has no tuples, no keys but strings, no infinities and no integers above 64 bits, so whatever
# is not itself in JSON is written as an object with one key, its type.
_EXACT = 2**53


def pack(tree: Any, name: str = "") -> tuple[Any, dict[str, Tensor]]:
    """Split ``tree`` into (skeleton, tensors); a tensor's name is its path in the tree.

    Raises:
        UsageError: the tree holds something else than None, bool, int, float, str, tensor, dict,
            list and tuple.

    >>> pack({"step": 3, "w": torch.zeros(2)})
    ({'dict': [['step', 3], ['w', {'tensor': 'w'}]]}, {'w': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _pack(tree, name, tensors), tensors


def unpack(skeleton: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Put together what :func:`pack` split.

    Raises:
        FileError: the skeleton is malformed, or names a tensor that is not there.

    >>> unpack(*pack({0: (1.5, float("inf"))}))
    {0: (1.5, inf)}
    """
    try:
        return _unpack(skeleton, tensors)
    except (TypeError, ValueError, KeyError, RecursionError, UsageError) as error:
        raise _damaged(str(error) or type(error).__name__) from error


def _pack(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    kind = type(node)
    if node is None or kind in (bool, str):
        return node
    if kind is int:
        return node if abs(node) < _EXACT else {"int": str(node)}
    if isinstance(node, float):
        return float(node) if math.isfinite(node) else {"float": str(float(node))}
    if isinstance(node, Tensor):
        return {"tensor": _add(tensors, path, node)}
    if isinstance(node, Mapping):
        pairs = [[_key(key, path), _pack(value, _join(path, key), tensors)] for key, value in node.items()]
        return {"dict": pairs}
    if kind in (list, tuple):
        parts = [_pack(value, _join(path, i), tensors) for i, value in enumerate(node)]
        return {kind.__name__: parts}
    raise UsageError(
        f"saving state at '{path}'",
        got=f"a {kind.__module__}.{kind.__qualname__}",
        expected="None, bool, int, float, str, tensor, dict, list or tuple",
        hint="a checkpoint is JSON and safetensors; give state_dict() plain types",
    )


def _unpack(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if not isinstance(node, dict) or len(node) != 1:
        raise ValueError("an untagged value")
    ((kind, value),) = node.items()
    match kind:
        case "int":
            return int(_typed(value, str))
        case "float":
            return float(_typed(value, str))
        case "tensor":
            return tensors[_typed(value, str)]
        case "list":
            return [_unpack(part, tensors) for part in _typed(value, list)]
        case "tuple":
            return tuple(_unpack(part, tensors) for part in _typed(value, list))
        case "dict":
            pairs = [_typed(pair, list) for pair in _typed(value, list)]
            return {_key(key, "file"): _unpack(part, tensors) for key, part in pairs}
    raise ValueError(f"a value of kind '{kind}'")


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _key(key: Any, path: str) -> Any:
    if type(key) not in (str, int, bool) or (type(key) is int and abs(key) >= _EXACT):
        raise UsageError(
            f"saving state at '{path}'", got=f"the key {key!r}", expected="a string or an integer"
        )
    return key


def _join(path: str, part: object) -> str:
    return f"{path}/{part}" if path else str(part)


def _add(tensors: dict[str, Tensor], path: str, tensor: Tensor) -> str:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise UsageError(
            f"saving state at '{path}'", got=f"a {tensor.layout} tensor", expected="a dense tensor"
        )
    name = path or "tensor"
    while name in tensors:  # {"a/b": x, "a": {"b": y}} spells one path twice
        name += "'"
    tensors[name] = tensor
    return name


def _damaged(got: str) -> FileError:
    return FileError(
        "reading saved state",
        got=got,
        expected="state written by gracile",
        hint="the file may be damaged or written by another version",
    )
