"""Modules that were not called though others like them were: experts that no token of the example chose.

What happens to their weights was not seen. But they stand in one list with modules of the same class and
shapes, of which the network's own data calls one or the other, so they must go on fitting where those fit.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from gracile.graph.labels import Labels
from gracile.graph.rules.registry import operand


def tie_alike(model: nn.Module, touched: Collection[str], labels: Labels) -> None:
    """Let each index of an uncalled module live as long as the same index of its first called likeness.

    Args:
        model: what is watched; its tensors carry labels.
        touched: names of the parameters and buffers that operators have seen.
        labels: in which they meet.
    """
    for module in model.modules():
        if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
            continue
        called: dict[object, dict[str, Tensor]] = {}
        waiting: list[tuple[object, dict[str, Tensor]]] = []
        for child in module.children():
            tensors = {**dict(child.named_parameters()), **dict(child.named_buffers())}
            if not tensors:
                continue
            kind = (type(child), tuple((name, tuple(x.shape)) for name, x in tensors.items()))
            if any(_name(x) in touched for x in tensors.values()):
                called.setdefault(kind, tensors)
            else:
                waiting.append((kind, tensors))
        for like, tensors in waiting:
            for name, given in called.get(like, {}).items():
                mine, theirs = operand(tensors[name]), operand(given)
                if mine is not None and theirs is not None:
                    for a, b in zip(theirs.labels, mine.labels, strict=True):
                        labels.unify(a, b)


def _name(x: Tensor) -> str | None:
    found = operand(x)
    return None if found is None else found.name
