"""A program's operators as plain data, and back.

A file names operators; which of them may be called is decided here: torch's own, without side effects, that
take tensors. Everything else that is read is a number, a name or a list of these.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, final, get_type_hints

import msgspec
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from gracile.errors import FileError, RefusedError
from gracile.runtime import layers
from gracile.runtime.formulas import formula, plain
from gracile.runtime.fuse import scale_shift
from gracile.runtime.layers import Chosen, Layer
from gracile.runtime.nest import Nest
from gracile.runtime.trace import Traced
from gracile.runtime.values import Value

_TORCH = {"dtype": torch.dtype, "layout": torch.layout, "memory_format": torch.memory_format}
_OWN: Mapping[str, Any] = {"scale_shift": scale_shift, "getitem": operator.getitem}
_LAYERS: Mapping[str, type[Layer]] = {
    kind.__name__: kind for kind in (layers.Convolution, layers.Product, layers.Recurrence)
}
_LAYER = "layer "
_TENSORS = ("weight", "bias", "parameters")


@final
@dataclass(frozen=True)
class Line:
    """One node of a graph.

    Attributes:
        name: of the node; others refer to it.
        op: as in ``torch.fx``.
        target: ``"aten.relu.default"``, ``"layer conv1"``; ``"size"`` for a number that ``value`` says.
        args, kwargs: numbers, strings, lists, ``{"node": name}`` and the like.
        value: what is known of the answer.
    """

    name: str
    op: str
    target: str = ""
    args: list[Any] = field(default_factory=list)
    kwargs: dict[str, Any] = field(default_factory=dict)
    value: Any = None


@final
@dataclass(frozen=True)
class Described:
    """A layer without its numbers: fields of its class, and the shapes of those that are tensors."""

    kind: str
    settings: dict[str, Any]
    shapes: dict[str, Any]


@final
@dataclass(frozen=True)
class Listing:
    """All that a program is, but for its numbers.

    Attributes:
        lines: nodes in order.
        layers: by name.
        constants: shape and dtype of other tensors, by name.
        taken: how positional inputs are nested.
        given: how outputs are nested.
        fixed: inputs that are no tensors: position in order -> value.
        sizes: shapes of the example's tensors.
        bound: why the first dimension is fixed; empty if it is not.
    """

    lines: list[Line]
    layers: dict[str, Described]
    constants: dict[str, Any]
    taken: Nest
    given: Nest
    fixed: dict[str, bool | int | float | str | None]
    sizes: list[list[int]]
    bound: str


def listed(traced: Traced) -> Listing:
    """Write down a graph of :class:`Chosen` layers.

    Raises:
        RefusedError: it has an operator, size or nesting that files have no form for.
    """
    nodes = list(traced.graph.nodes)
    chosen = [node.target for node in nodes if isinstance(node.target, Chosen)]
    for value in traced.fixed.values():
        if not isinstance(value, None | bool | int | float | str):
            raise _refused(f"an input that is a {type(value).__name__}")
    return Listing(
        [
            Line(n.name, n.op, _name(n), _encoded(n.args), _encoded(n.kwargs), _value(n.meta.get("val")))
            for n in nodes
        ],
        {c.layer.name: _described(c.layer) for c in chosen},
        {name: _value(Value.of(tensor)) for name, tensor in traced.constants.items()},
        _nest(traced.taken.child(0)),
        _nest(traced.given),
        {str(position): value for position, value in traced.fixed.items()},
        [list(size) for size in traced.sizes],
        traced.bound,
    )


def unlisted(listing: Listing) -> Traced:
    """The graph, with layers and constants that have no numbers yet.

    Raises:
        FileError: it is not one that may be run.
    """
    constants = {name: _bare(_valued(value)) for name, value in listing.constants.items()}
    named = {name: _layer(name, each) for name, each in listing.layers.items()}
    graph = fx.Graph()
    known: dict[str, fx.Node] = {}
    for line in listing.lines:
        if line.name in known or not line.name.isidentifier():
            raise _wrong(f"the name {line.name!r:.80}")
        args, kwargs = _decoded(line.args, known), _decoded(line.kwargs, known)
        value = _valued(line.value)
        target: Any = line.name
        if line.op == "call_function":
            target = _target(line.target, value, named)
        elif line.op == "get_attr":
            target = line.target
            if target not in constants:
                raise _wrong(f"the constant {target!r:.80}")
        elif line.op not in ("placeholder", "output"):
            raise _wrong(f"a node of kind {line.op!r:.80}")
        node = graph.create_node(line.op, target, tuple(args), kwargs, name=line.name)
        if node.name != line.name:
            raise _wrong(f"the name {line.name!r:.80}")
        node.meta = {} if line.value is None else {"val": value}
        known[line.name] = node
    if (
        not listing.lines
        or listing.lines[-1].op != "output"
        or sum(n.op == "output" for n in graph.nodes) != 1
    ):
        raise _wrong("operators without an end")
    fixed = {int(position): value for position, value in listing.fixed.items() if position.isdecimal()}
    taken = pytree.tree_structure((_filled(listing.taken), {}))
    sizes = tuple(map(tuple, listing.sizes))
    return Traced(
        graph,
        constants,
        {},
        taken,
        pytree.tree_structure(_filled(listing.given)),
        fixed,
        sizes,
        listing.bound,
    )


def _name(node: fx.Node) -> str:
    target: Any = node.target
    if node.op != "call_function":
        return str(target)
    if isinstance(target, Chosen):
        return _LAYER + target.layer.name
    value = node.meta.get("val")
    if value is not None and not isinstance(value, Value | list):
        return "size"
    own = [name for name, function in _OWN.items() if function is target]
    if own:
        return own[0]
    if _harmless(target):
        return str(target)
    raise _refused(f"the operator {target}")


def _target(name: str, value: Any, named: Mapping[str, Layer]) -> Any:
    if name.startswith(_LAYER) and name.removeprefix(_LAYER) in named:
        return named[name.removeprefix(_LAYER)]
    if name == "size" and value is not None and not isinstance(value, Value | list):
        return _never
    if name in _OWN:
        return _OWN[name]
    found: Any = torch.ops
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except (AttributeError, RuntimeError):
            raise _wrong(f"the operator {name!r:.80}") from None
    if not (name.startswith("aten.") and _harmless(found)):
        raise _wrong(f"the operator {name!r:.80}")
    return found


def _never(*args: Any) -> None:
    raise AssertionError("sizes are worked out from formulas")


def _harmless(target: Any) -> bool:
    """One of torch's operators that computes, and does nothing else: no file, no chance, no writing."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return False
    schema = target._schema
    tensors = any("Tensor" in str(a.type) for a in schema.arguments)
    sizes = any(a.name in ("size", "end") for a in schema.arguments)  # zeros, arange
    return (
        not schema.is_mutable and (tensors or sizes) and not any("file" in a.name for a in schema.arguments)
    )


def _encoded(given: Any) -> Any:
    if isinstance(given, fx.Node):
        return {"node": given.name}
    if isinstance(given, tuple | list):
        return [_encoded(each) for each in given]
    if isinstance(given, dict):
        return {name: _encoded(each) for name, each in given.items()}
    for name, kind in _TORCH.items():
        if isinstance(given, kind):
            return {name: str(given).removeprefix("torch.")}
    if isinstance(given, torch.device):
        return {"device": str(given)}
    if isinstance(given, float) and (given != given or abs(given) == float("inf")):
        return {"float": str(given)}
    if given is None or isinstance(given, bool | int | float | str):
        return given
    raise _refused(f"an argument that is a {type(given).__name__}")


def _decoded(given: Any, known: Mapping[str, fx.Node]) -> Any:
    if isinstance(given, list):
        return [_decoded(each, known) for each in given]
    if not isinstance(given, dict):
        return given
    if len(given) == 1:
        ((key, value),) = given.items()
        if key == "node" and isinstance(value, str):
            if value in known:
                return known[value]
            raise _wrong(f"the value {value!r:.80}")
        found = getattr(torch, value, None) if isinstance(value, str) else None
        if key in _TORCH and isinstance(found, _TORCH[key]):
            return found
        if key == "device" and value == "cpu":
            return torch.device("cpu")
        if key == "float" and value in ("inf", "-inf", "nan"):
            return float(value)
        if key in (*_TORCH, "device", "float"):
            raise _wrong(f"the argument {given!r:.80}")
    return {name: _decoded(each, known) for name, each in given.items()}


def _value(value: Any) -> Any:
    if isinstance(value, Value):
        return {
            "shape": [plain(size) for size in value.shape],
            "dtype": str(value.dtype).removeprefix("torch."),
        }
    return [_value(each) for each in value] if isinstance(value, list) else plain(value)


def _valued(value: Any) -> Any:
    if isinstance(value, list):
        return [_valued(each) for each in value]
    if isinstance(value, dict) and isinstance(value.get("shape"), list):
        dtype = getattr(torch, str(value.get("dtype")), None)
        if not isinstance(dtype, torch.dtype):
            raise _wrong(f"the dtype {value.get('dtype')!r:.80}")
        return Value(tuple(formula(size) for size in value["shape"]), dtype)
    return None if value is None else formula(value)


def _bare(value: Any) -> Tensor:
    if not isinstance(value, Value) or not all(type(size) is int and size >= 0 for size in value.shape):
        raise _wrong(f"the constant {value}")
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _described(layer: Layer) -> Described:
    own = {f.name: getattr(layer, f.name) for f in fields(layer) if f.name != "name"}
    shapes = {
        name: [list(t.shape) for t in own[name]] if name == "parameters" else _shape(own[name])
        for name in _TENSORS
        if name in own
    }
    return Described(
        type(layer).__name__, {name: v for name, v in own.items() if name not in _TENSORS}, shapes
    )


def _layer(name: str, described: Described) -> Layer:
    kind = _LAYERS.get(described.kind)
    if kind is None:
        raise _wrong(f"a layer of kind {described.kind!r:.80}")
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)} - {"name"}
    if {*described.settings, *described.shapes} != names or not {*described.shapes} <= {*_TENSORS}:
        raise _wrong(f"the layer {name!r:.80} described otherwise than a {described.kind}")
    try:
        settings = {key: msgspec.convert(v, hints[key]) for key, v in described.settings.items()}
        tensors = {
            key: tuple(map(_meta, value)) if key == "parameters" else None if value is None else _meta(value)
            for key, value in described.shapes.items()
        }
    except (msgspec.ValidationError, TypeError, RuntimeError, ValueError) as error:
        raise _wrong(f"the layer {name!r:.80} ({error})") from error
    layer = kind(name, **settings, **tensors)
    # One tensor in a layer is one tensor: the first of a recurrence is its weight.
    parameters = tensors.get("parameters")
    return replace(layer, weight=parameters[0]) if parameters else layer


def _meta(shape: Any) -> Tensor:
    return torch.empty(msgspec.convert(shape, list[int]), dtype=torch.float32, device="meta")


def _shape(tensor: Tensor | None) -> list[int] | None:
    return None if tensor is None else list(tensor.shape)


def _nest(spec: pytree.TreeSpec) -> Nest:
    return Nest.of(pytree.tree_unflatten([torch.empty(0)] * spec.num_leaves, spec))


def _filled(nest: Nest) -> Any:
    return nest.fill(iter([torch.empty(0)] * nest.size))


def _refused(got: str) -> RefusedError:
    return RefusedError(
        "saving a program",
        got=got,
        expected="operators of torch without side effects, on tensors in tuples, lists and dictionaries",
        hint="save the network, and compile it again where it runs",
    )


def _wrong(got: str) -> FileError:
    return FileError(
        "reading a program",
        got=got,
        expected="what a program of this version is made of",
        hint="the file may be damaged",
    )
