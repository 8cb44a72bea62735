"""Fewer and bigger steps: batch norm goes into weights; bias, shortcut and ReLU into the layer before."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from gracile.runtime.layers import Convolution, Layer, Product, Recurrence
from gracile.runtime.trace import Traced, arguments, is_constant, prune
from gracile.runtime.values import Value

aten = torch.ops.aten
_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """What batch norm is once it has learned; scale and shift are shaped so that they broadcast."""
    return torch.addcmul(shift, x, scale)


def fuse(traced: Traced) -> list[fx.Node]:
    """Rewrite the graph in place; return the nodes whose target is a :class:`Layer`, in order.

    >>> from torch import nn
    >>> from gracile.runtime.trace import trace
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    >>> traced = trace(net, torch.zeros(1, 3, 8, 8))
    >>> [node.target.kind for node in fuse(traced)], [node.op for node in traced.graph.nodes]
    (['conv 3-4 3x3'], ['placeholder', 'call_function', 'output'])
    """
    # Kernels copy matrices and keep biases; a program has to have its own.
    traced.constants.update({name: t.clone() for name, t in traced.constants.items() if t.dim() == 1})
    names: Counter[str] = Counter()
    for node in list(traced.graph.nodes):
        found = _recognized(traced, node)
        if found is not None:
            layer, inputs = found
            names[layer.name] += 1
            if names[layer.name] > 1:
                layer = replace(layer, name=f"{layer.name}@{names[layer.name]}")
            _put(traced.graph, node, layer, inputs)
    for node in list(traced.graph.nodes):
        while isinstance(node.target, Layer) and (absorbed := _absorbed(traced, node)) is not None:
            node = absorbed
    for node in list(traced.graph.nodes):
        if node.target is _BATCH_NORM:
            _plain_batch_norm(traced, node)
    prune(traced.graph, traced.constants)
    return [node for node in traced.graph.nodes if isinstance(node.target, Layer)]


def _recognized(traced: Traced, node: fx.Node) -> tuple[Layer, tuple[Any, ...]] | None:
    """The layer that an operator is, and its inputs."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return None
    given = arguments(node)
    if node.target in (aten.conv2d.default, aten.conv2d.padding):
        return _convolution(traced, given)
    if node.target is aten.linear.default:
        return _product(traced, given["input"], given["weight"], given["bias"], False)
    if node.target is aten.addmm.default and given["beta"] == 1 and given["alpha"] == 1:
        return _product(traced, given["mat1"], given["mat2"], given["self"], True)
    if node.target is aten.mm.default:
        return _product(traced, given["self"], given["mat2"], None, True)
    if node.target is aten.matmul.default:
        return _product(traced, given["self"], given["other"], None, True)
    if node.target is aten.lstm.input:
        return _recurrence(traced, given)
    return None


def _convolution(traced: Traced, given: dict[str, Any]) -> tuple[Layer, tuple[Any, ...]] | None:
    x, weight = given["input"], given["weight"]
    if not (_floats(x, 4) and _fixed(traced, weight, 4) and _fixed(traced, given["bias"], 1)):
        return None
    tensor = traced.constants[weight.name]
    stride, dilation = _pair(given["stride"]), _pair(given["dilation"])
    padding = given["padding"]
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, tensor.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    elif padding == "valid":
        padding = 0
    height, width = x.meta["val"].shape[2:]
    layer = Convolution(
        _name(traced, weight),
        tensor,
        _value(traced, given["bias"]),
        stride=stride,
        padding=_pair(padding),
        dilation=dilation,
        groups=given["groups"],
        size=(height, width) if isinstance(height, int) and isinstance(width, int) else None,
    )
    return layer, (x,)


def _product(traced: Traced, x: Any, weight: Any, bias: Any, turned: bool) -> tuple[Layer, Any] | None:
    if not (_floats(x) and not is_constant(x) and _fixed(traced, weight, 2) and _fixed(traced, bias, 1)):
        return None
    if x.meta["val"].dim() < 2:
        return None
    tensor = traced.constants[weight.name]
    return Product(_name(traced, weight), tensor.t() if turned else tensor, _value(traced, bias)), (x,)


def _recurrence(traced: Traced, given: dict[str, Any]) -> tuple[Layer, Any] | None:
    x, (h, c), parameters = given["input"], given["hx"], given["params"]
    each = (4 if given["has_biases"] else 2) * (2 if given["bidirectional"] else 1)
    if len(parameters) != each * given["num_layers"] or not _floats(x, 3):  # more of them: a projection
        return None
    if not all(_fixed(traced, p, 2) or _fixed(traced, p, 1) for p in parameters):
        return None
    tensors = tuple(traced.constants[p.name] for p in parameters)
    layer = Recurrence(
        _name(traced, parameters[0]),
        tensors[0],
        None,
        parameters=tensors,
        biased=given["has_biases"],
        layers=given["num_layers"],
        both=given["bidirectional"],
        batch_first=given["batch_first"],
    )
    return layer, (x, h, c)


def _absorbed(traced: Traced, node: fx.Node) -> fx.Node | None:
    """The node of a layer together with the one step that follows it; None if that cannot be."""
    layer: Any = node.target
    if len(node.users) != 1 or isinstance(layer, Recurrence) or layer.relu:
        return None
    (user,) = node.users
    adds = len(node.args) > 1
    if user.target is aten.relu.default:
        return _put(traced.graph, user, replace(layer, relu=True), node.args, node)
    if user.target is aten.add.Tensor and not adds:
        return _with_shortcut(traced, node, user)
    if user.target is _BATCH_NORM and not adds and user.args[0] is node:
        return _with_batch_norm(traced, node, user)
    return None


def _with_shortcut(traced: Traced, node: fx.Node, user: fx.Node) -> fx.Node | None:
    others = [given for given in user.args if given is not node]
    if len(others) != 1 or user.kwargs.get("alpha", 1) != 1:
        return None
    other: Any = others[0]
    if not _floats(other) or is_constant(other) or _shape(other) != _shape(node):
        return None
    return _put(traced.graph, user, node.target, (*node.args, other), node)


def _with_batch_norm(traced: Traced, node: fx.Node, user: fx.Node) -> fx.Node | None:
    layer: Any = node.target
    found = _scale_and_shift(traced, user)
    if found is None or (isinstance(layer, Product) and node.meta["val"].dim() != 2):
        return None
    scale, shift = found
    (first,) = user.users
    bias = shift if layer.bias is None else shift + layer.bias.double() * scale
    weight = layer.weight.double() * scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    new = replace(layer, weight=weight.float(), bias=bias.float())
    return _put(traced.graph, first, new, node.args, user, node)


def _plain_batch_norm(traced: Traced, node: fx.Node) -> None:
    """A batch norm that follows no layer is a product and a sum."""
    found = _scale_and_shift(traced, node)
    arguments: Any = node.args
    x, mean = arguments[0], arguments[3]
    if found is None or not _floats(x):
        return
    (first,) = node.users
    shape = (-1, *[1] * (x.meta["val"].dim() - 2))
    with traced.graph.inserting_before(node):
        constants = []
        for part, value in zip(("scale", "shift"), found, strict=True):
            new = traced.graph.create_node("get_attr", f"{node.name}_{part}", name=None)
            new.target = new.name
            traced.constants[new.name] = value.float().reshape(shape)
            traced.owners[new.name] = f"{traced.owners[mean.name].rpartition('.')[0]}.{part}"
            new.meta = {"val": Value.of(traced.constants[new.name])}
            constants.append(new)
    _put(traced.graph, first, scale_shift, (x, *constants), node)


def _scale_and_shift(traced: Traced, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """In double, so that folding rounds once."""
    arguments: Any = node.args
    _, weight, bias, mean, variance, _, eps = arguments
    if not all(_fixed(traced, t, 1) for t in (weight, bias, mean, variance)) or mean is None:
        return None
    if len(node.users) != 1 or next(iter(node.users)).target is not operator.getitem:
        return None
    scale = (traced.constants[variance.name].double() + eps).rsqrt()
    if weight is not None:
        scale = scale * traced.constants[weight.name]
    shift = -traced.constants[mean.name] * scale
    return scale, shift if bias is None else shift + traced.constants[bias.name]


def _put(graph: fx.Graph, place: fx.Node, target: Any, inputs: tuple[Any, ...], *gone: fx.Node) -> fx.Node:
    """A new node instead of ``place``; nodes that nobody uses any more are erased."""
    with graph.inserting_before(place):
        new = graph.create_node("call_function", target, inputs, name=place.name)
    new.meta = place.meta
    place.replace_all_uses_with(new)
    for node in (place, *gone):
        graph.erase_node(node)
    return new


def _floats(x: Any, dims: int | None = None) -> bool:
    value = x.meta.get("val") if isinstance(x, fx.Node) else None
    return isinstance(value, Value) and value.dtype == torch.float32 and dims in (None, value.dim())


def _fixed(traced: Traced, x: Any, dims: int) -> bool:
    """Nothing, or a constant of float32."""
    if x is None:
        return dims == 1
    return is_constant(x) and _floats(x, dims)


def _value(traced: Traced, x: Any) -> Tensor | None:
    return None if x is None else traced.constants[x.name]


def _name(traced: Traced, weight: fx.Node) -> str:
    path = traced.owners.get(weight.name, weight.name).partition(".parametrizations.")[0]
    head, _, last = path.rpartition(".")
    return head if head and last.startswith("weight") else path.removesuffix("_weight")


def _shape(node: fx.Node) -> Any:
    return node.meta["val"].shape


def _pair(value: Any) -> tuple[int, int]:
    both = (value, value) if isinstance(value, int) else tuple(value)
    return (both[0], both[-1])
