"""Which values a program keeps in memory of its own, and until when.

Values that only pass through lie in buffers that are used again and again. What goes out to the caller is new
each time, and so is whatever an operator insists on making itself.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import fx

from gracile.runtime.layers import Chosen
from gracile.runtime.values import Value
from gracile.runtime.writers import writer

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Flow:
    """What happens to every value of a graph.

    Attributes:
        written: nodes whose answer can go into a buffer.
        leaving: those whose memory the caller would get to see.
        views: nodes whose answer is a window into that of their first argument.
        roots: node -> the nodes whose memory its value may lie in.
        last: node -> position of the last step that uses its memory.
        released: position -> nodes whose values nobody asks for any more.
    """

    written: frozenset[fx.Node]
    leaving: frozenset[fx.Node]
    views: frozenset[fx.Node]
    roots: dict[fx.Node, frozenset[fx.Node]]
    last: dict[fx.Node, int]
    released: dict[int, list[fx.Node]]


def flow(graph: fx.Graph) -> Flow:
    """Look at every value once."""
    nodes = list(graph.nodes)
    views = frozenset(node for node in nodes if is_view(node.target))
    roots: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in nodes:
        mine = frozenset([node])
        sources = frozenset().union(*(roots[source] for source in node.all_input_nodes))
        if node in views or node.target is operator.getitem:
            roots[node] = sources
        elif _fresh(node.target) or node.op != "call_function":
            roots[node] = mine
        else:  # it may hand on what it was given
            roots[node] = mine | sources
    last: dict[fx.Node, int] = {}
    released: dict[fx.Node, int] = {}
    for at, node in enumerate(nodes):
        for source in node.all_input_nodes:
            released[source] = at
            last.update(dict.fromkeys(roots[source], at))
    output = nodes[-1]
    leaving = frozenset().union(*(roots[source] for source in output.all_input_nodes))
    inputs = [node.meta["val"] for node in nodes if node.op == "placeholder"]
    known = {symbol for value in inputs for symbol in value.symbols()}
    written = frozenset(n for n in nodes if _writes(n.target) and _plain(n, known))
    by_position: dict[int, list[fx.Node]] = {}
    for node, at in released.items():
        by_position.setdefault(at, []).append(node)
    return Flow(written, leaving, views, roots, last, by_position)


def is_view(target: Any) -> bool:
    if target is aten._unsafe_view.default:
        return True
    if not isinstance(target, torch._ops.OpOverload):
        return False
    returns = target._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _writes(target: Any) -> bool:
    return target.writes if isinstance(target, Chosen) else writer(target) is not None


def _fresh(target: Any) -> bool:
    """Whether an answer never shares memory with what was given."""
    return isinstance(target, Chosen) or writer(target) is not None


def _plain(node: fx.Node, known: set[Any]) -> bool:
    """A tensor whose size is known beforehand, and that depends on others."""
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(value, Value) or not node.all_input_nodes:
        return False
    return known.issuperset(value.symbols())
