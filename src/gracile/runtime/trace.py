"""A network as a list of operators: exported once, with what never changes worked out beforehand."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from gracile.errors import GraphError, UsageError
from gracile.runtime.values import Value

aten = torch.ops.aten
# In a graph without side effects a copy is the value itself, and so is what only evaluation mode makes of it.
_COPIES = (aten.clone.default, aten.alias.default, aten.detach.default, aten.dropout.default)


@final
@dataclass(frozen=True)
class Traced:
    """Operators of one forward pass, in order, without side effects.

    Attributes:
        graph: its placeholders are the inputs that are tensors; ``get_attr`` nodes name ``constants``. What
            is known of a node's answer is ``node.meta["val"]``, a :class:`gracile.runtime.values.Value`.
        constants: parameters, buffers, and whatever follows from them alone.
        owners: constant -> name of the parameter or buffer that it is, or comes from.
        taken, given: how inputs and outputs are nested.
        fixed: inputs that are no tensors, by position; they are part of the program.
        sizes: shapes of the example's tensors.
        bound: why the first dimension of the inputs may not change; empty if it may.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    owners: dict[str, str]
    taken: pytree.TreeSpec
    given: pytree.TreeSpec
    fixed: Mapping[int, Any]
    sizes: tuple[tuple[int, ...], ...]
    bound: str


def trace(model: nn.Module, *example: Any) -> Traced:
    """Export the model in evaluation mode; the first dimension of every input stays free if it can.

    Args:
        model: left as it is.
        example: inputs; tensors, or tuples, lists and dictionaries of tensors.

    Raises:
        GraphError: the model cannot be exported, writes into its buffers, draws random numbers, or chooses.
        UsageError: there is no tensor among the inputs.

    >>> traced = trace(nn.Sequential(nn.Linear(4, 3), nn.Dropout(), nn.ReLU()), torch.zeros(1, 4))
    >>> [str(node.target) for node in traced.graph.nodes if node.op == "call_function"]
    ['aten.linear.default', 'aten.relu.default']
    """
    leaves = pytree.tree_leaves(example)
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise UsageError(
            "tracing a network",
            got=f"{len(leaves)} inputs, none a tensor",
            expected="an example to run it on",
        )
    exported, bound = _export(model, example)
    program = exported.graph_module
    constants: dict[str, Tensor] = {}
    owners: dict[str, str] = {}
    state = {**exported.state_dict, **exported.constants}
    fixed: dict[int, Any] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            continue
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise _refused(model, f"an object of its own, '{spec.target}'", "tensors only")
        constants[spec.arg.name], owners[spec.arg.name] = state[spec.target].detach(), spec.target
    for spec in exported.graph_signature.output_specs:
        if spec.kind != OutputKind.USER_OUTPUT:
            raise _refused(model, f"a pass that writes into '{spec.target}'", "a pass that changes nothing")
    inputs = [spec for spec in exported.graph_signature.input_specs if spec.kind == InputKind.USER_INPUT]
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for position, spec in enumerate(inputs):
        node = placeholders[spec.arg.name]
        if not isinstance(node.meta.get("val"), Tensor):
            fixed[position] = leaves[position]
            if not node.users:
                program.graph.erase_node(node)
    graph = program.graph
    for node in list(graph.nodes):
        if node.name in constants:
            _replace(graph, node, "get_attr", node.name)
        elif node.op == "get_attr":
            raise _refused(model, f"a choice between programs ('{node.target}')", "one list of operators")
        elif _draws(node):
            raise _refused(model, f"random numbers ({node.target})", "the same answer to the same input")
        elif node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    for node in reversed(list(graph.nodes)):  # what is left of checks on sizes has no users
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    _settle(graph, constants, owners)
    for node in graph.nodes:
        node.meta = {"val": Value.of(node.meta["val"])} if "val" in node.meta else {}
    graph = copied(graph)
    spec = exported.call_spec
    sizes = tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
    return Traced(graph, constants, owners, spec.in_spec, spec.out_spec, fixed, sizes, bound)


def is_constant(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def arguments(node: fx.Node) -> dict[str, Any]:
    """Arguments of an operator by name, defaults included."""
    declared = node.target._schema.arguments  # type: ignore[union-attr]
    values = {a.name: a.default_value for a in declared if a.has_default_value()}
    values |= {a.name: value for a, value in zip(declared, node.args, strict=False)}
    return values | node.kwargs


def copied(graph: fx.Graph) -> fx.Graph:
    """The same nodes alone: a graph remembers all targets it ever had, and others remember the graph."""
    copy = fx.Graph()
    copy.output(copy.graph_copy(graph, {}))
    return copy


def prune(graph: fx.Graph, constants: dict[str, Tensor]) -> None:
    """Forget constants, and operators, that nobody uses."""
    for node in reversed(list(graph.nodes)):
        if node.op in ("get_attr", "call_function") and not node.users:
            graph.erase_node(node)
            constants.pop(node.name, None)


def _settle(graph: fx.Graph, constants: dict[str, Tensor], owners: dict[str, str]) -> None:
    """Work out everything that depends on constants alone, such as the weight of a weight norm."""
    results: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            results[node] = constants[node.name]
            continue
        sources = node.all_input_nodes
        if node.op != "call_function" or not sources or any(source not in results for source in sources):
            continue
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), results.__getitem__)
        with torch.no_grad():
            results[node] = node.target(*args, **kwargs)
        if isinstance(results[node], Tensor):
            constants[node.name] = results[node]
            owners[node.name] = next(owners[s.name] for s in sources if s.name in owners)
        elif node.target is not operator.getitem:
            owners[node.name] = next((owners[s.name] for s in sources if s.name in owners), node.name)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.name in constants:
            _replace(graph, node, "get_attr", node.name)
    prune(graph, constants)


def _draws(node: fx.Node) -> bool:
    """Whether an operator draws random numbers, and not only would in training."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    given = arguments(node)
    idle = [given[name] for name in ("train", "training", "dropout_p") if name in given]
    return not idle or any(idle)


def _replace(graph: fx.Graph, node: fx.Node, op: str, target: str) -> None:
    with graph.inserting_before(node):
        new = graph.create_node(op, target, name=None)
    new.meta = node.meta
    node.replace_all_uses_with(new)
    name = node.name
    graph.erase_node(node)
    new.name = name


def _export(model: nn.Module, example: tuple[Any, ...]) -> tuple[Any, str]:
    """The exported program, and why its first dimension is fixed if it is."""
    leaves = [x for x in pytree.tree_leaves(example) if _has_batch(x)]
    one = any(x.shape[0] == 1 for x in leaves)
    # A size of 1 would be taken for a fact about the network, as it is where 1 means that it is repeated.
    doubled = pytree.tree_map(_doubled, example) if one else example
    free = pytree.tree_map(lambda x: {0: torch.export.Dim.AUTO} if _has_batch(x) else None, example)
    reason = ""
    with _still(model):
        for inputs, shapes in ((doubled, free), (example, None)):
            try:
                exported = torch.export.export(model, inputs, dynamic_shapes=shapes)
                fixed = _fixed_sizes(exported) if shapes else []
                if not fixed or (len(fixed) < len(leaves) and not one):
                    return exported.run_decompositions({}), reason
                reason = f"the network takes it for the number {fixed[0]}, as len(x) and int(x) do"
            except Exception as error:  # whatever the model's code and the tracer make of each other
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    raise _refused(
        model,
        reason,
        "a network that torch.export can trace",
        "no branches on values and no data-dependent sizes; or compile the part that computes",
    )


def _fixed_sizes(exported: Any) -> list[str]:
    """First dimensions of inputs that became numbers."""
    names = set(exported.graph_signature.user_inputs)
    values = [n.meta.get("val") for n in exported.graph.nodes if n.op == "placeholder" and n.name in names]
    sizes = [str(value.shape[0]) for value in values if _has_batch(value)]
    return [size for size in sizes if size.isdigit()]


def _refused(model: nn.Module, got: str, expected: str, hint: str = "") -> GraphError:
    return GraphError(f"tracing {type(model).__name__}", got=got, expected=expected, hint=hint)


def _has_batch(x: object) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0


def _doubled(x: Any) -> Any:
    return torch.cat([x, x]) if _has_batch(x) else x


@contextmanager
def _still(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no fused attention; fused recurrence stays: there are kernels for it."""
    modules: Sequence[tuple[nn.Module, bool]] = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # the exporter warns about itself
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for module, _ in modules:
                module.training = False
            yield
        finally:
            for module, training in modules:
                module.training = training
