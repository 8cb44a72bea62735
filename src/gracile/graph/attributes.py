"""A model's attributes: integers, traced while it is watched and right after a cut; and plain tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from gracile.graph.sizes import Attribute, Book, Leaf, traced

# Never the size of something that can be cut, and often compared or looped over.
IGNORED: Final = frozenset(
    (
        "training", "kernel_size", "stride", "padding", "dilation", "output_padding", "eps", "p", "dim",
        "start_dim", "end_dim", "padding_idx", "num_layers", "layer_idx", "layer_index",
        "_reversed_padding_repeated_twice", "_version",
    )
)  # fmt: skip

# What torch's own modules only show: (attribute, tensor, dimension, attribute it is multiplied by).
SHOWN: Final[Mapping[type[nn.Module], tuple[tuple[str, str, int, str], ...]]] = {
    nn.Linear: (("in_features", "weight", 1, ""), ("out_features", "weight", 0, "")),
    nn.Bilinear: (
        ("in1_features", "weight", 1, ""),
        ("in2_features", "weight", 2, ""),
        ("out_features", "weight", 0, ""),
    ),
    nn.modules.conv._ConvTransposeNd: (
        ("in_channels", "weight", 0, ""),
        ("out_channels", "weight", 1, "groups"),
    ),
    nn.modules.conv._ConvNd: (("in_channels", "weight", 1, "groups"), ("out_channels", "weight", 0, "")),
    nn.modules.batchnorm._NormBase: (
        ("num_features", "weight", 0, ""),
        ("num_features", "running_mean", 0, ""),
    ),
    nn.GroupNorm: (("num_channels", "weight", 0, ""),),
    nn.Embedding: (("num_embeddings", "weight", 0, ""), ("embedding_dim", "weight", 1, "")),
    nn.EmbeddingBag: (("num_embeddings", "weight", 0, ""), ("embedding_dim", "weight", 1, "")),
    nn.PReLU: (("num_parameters", "weight", 0, ""),),
    nn.RNNBase: (
        ("input_size", "weight_ih_l0", 1, ""),
        ("hidden_size", "weight_hh_l0", 1, ""),
        ("proj_size", "weight_hr_l0", 0, ""),
    ),
    nn.RNNCellBase: (("input_size", "weight_ih", 1, ""), ("hidden_size", "weight_hh", 1, "")),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """An attribute that follows the size of a tensor's dimension."""

    path: str
    tensor: str
    dim: int
    times: str  # path of the attribute it is multiplied by, or nothing
    value: int
    factor: int


def shown(model: nn.Module, names: Mapping[int, str]) -> tuple[Shown, ...]:
    """The attributes of torch's modules that follow shapes; `names` of tensors by id."""
    found = []
    for path, module in model.named_modules():
        rows = next((rows for kind, rows in SHOWN.items() if isinstance(module, kind)), ())
        prefix = f"{path}." if path else ""
        for attribute, tensor, dim, times in rows:
            held, value = getattr(module, tensor, None), getattr(module, attribute, None)
            if isinstance(held, Tensor) and id(held) in names and type(value) is int and held.dim() > dim:
                factor = getattr(module, times) if times else 1
                if value == held.shape[dim] * factor:
                    where = f"{prefix}{times}" if times else ""
                    found.append(Shown(f"{prefix}{attribute}", names[id(held)], dim, where, value, factor))
    return tuple(found)


@contextmanager
def tracing(model: nn.Module, book: Book) -> Iterator[None]:
    """Replace integer attributes, and those of objects that modules point to, by traced ones."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    seen: dict[int, list[Leaf]] = {}
    waiting: list[tuple[str, Any, int]] = [(path, module, 0) for path, module in model.named_modules()]
    while waiting:
        path, thing, depth = waiting.pop(0)
        if id(thing) in seen:
            for leaf in seen[id(thing)]:
                leaf.aliases.append(f"{path}.{leaf.path.rpartition('.')[2]}")
            continue
        leaves: list[Leaf] = []
        seen[id(thing)] = leaves
        held = fields_of(thing)
        prefix = f"{path}." if path else ""
        for key, value in list(held.items()):
            if key in IGNORED or key in _INTERNAL or not _is_step(key):
                continue
            if type(value) in (int, list, tuple):
                made = _traced(f"{prefix}{key}", value, book, leaves)
                if made is not None:
                    replaced.append((held, key, value))
                    held[key] = made
            elif depth < 2 and (type(value) is dict or _is_plain_object(value)):
                waiting.append((f"{prefix}{key}", value, depth + 1))
    try:
        yield
    finally:
        book.open = False
        for mapping, key, value in reversed(replaced):
            mapping[key] = value


def _traced(path: str, value: Any, book: Book, leaves: list[Leaf]) -> Any:
    if type(value) is int:
        return _leaf(path, None, value, value, book, leaves) if value > 1 else None
    if not 0 < len(value) <= 64 or any(type(item) is not int for item in value) or max(value) < 2:
        return None
    items = [
        _leaf(path, position, item, list(value), book, leaves) if item > 1 else item
        for position, item in enumerate(value)
    ]
    return type(value)(items)


def _leaf(
    path: str, position: int | None, value: int, whole: int | list[int], book: Book, leaves: list[Leaf]
) -> int:
    leaf = Leaf(path, position, value, whole)
    leaves.append(leaf)
    book.leaves.append(leaf)
    return traced(value, Attribute(len(book.leaves) - 1), book)


def fields_of(thing: Any) -> dict[str, Any]:
    """What an object holds by name: a dictionary's entries, or attributes; nothing for anything else."""
    held = thing if type(thing) is dict else getattr(thing, "__dict__", None)
    return held if isinstance(held, dict) else {}


def plain_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that modules hold without registering them, by path (``"tables.0"``), each once.

    They may lie in lists, dictionaries and plain objects. Left out is what a hook computes anew before every
    call, and what lies in the memory of a parameter or buffer.

    >>> layer = nn.Linear(2, 2)
    >>> layer.scales = [torch.ones(2), layer.weight.data]
    >>> [name for name, _ in plain_tensors(layer)]
    ['scales.0']
    """
    registered = [*model.parameters(), *model.buffers()]
    taken = {t.untyped_storage().data_ptr() for t in registered if t.layout is torch.strided}
    seen: set[int] = set()
    for path, module in model.named_modules():
        computed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        prefix = f"{path}." if path else ""
        for key, value in vars(module).items():
            if key in _INTERNAL or key in computed:
                continue
            for name, tensor in _tensors_in(f"{prefix}{key}", value, 2):
                if id(tensor) in seen or tensor.layout is not torch.strided or not tensor.is_leaf:
                    continue
                seen.add(id(tensor))
                if tensor.numel() and tensor.untyped_storage().data_ptr() not in taken:
                    yield name, tensor


def _tensors_in(path: str, value: Any, depth: int) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
        return
    held: Mapping[Any, Any] = {}
    if depth and isinstance(value, (list, tuple)):
        held = {str(i): item for i, item in enumerate(value)}
    elif depth and (type(value) is dict or _is_plain_object(value)):
        held = fields_of(value)
    for key, item in held.items():
        if _is_step(key):
            yield from _tensors_in(f"{path}.{key}", item, depth - 1)


_INTERNAL: Final = frozenset(vars(nn.Module()))  # hooks, and what is registered


def _is_step(key: object) -> bool:
    """Whether a key can stand in a path."""
    return isinstance(key, str) and bool(key) and "." not in key


def _is_plain_object(value: Any) -> bool:
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (nn.Module, Tensor, type))
        and not callable(value)
        and type(value).__module__.partition(".")[0]
        not in ("torch", "builtins", "numpy", "collections", "threading")
    )
