"""Watch one forward pass: the door to this folder."""

from __future__ import annotations

import sys
from typing import Any, Literal

import torch
from torch import nn

from gracile.errors import GracileError, GraphError, UsageError
from gracile.graph.attributes import shown, tracing
from gracile.graph.calls import SizeMode
from gracile.graph.network import Graph, Outputs, everything
from gracile.graph.observer import Observer, leaves
from gracile.graph.sizes import Book
from gracile.graph.still import still


def watch(
    model: nn.Module,
    *inputs: Any,
    norms: Literal["renormalize", "keep"] = "renormalize",
    outputs: Outputs = everything,
    **named: Any,
) -> Graph:
    """Run the model once on an example and learn which slices of which tensors live and die together.

    Args:
        model: any module whose forward is Python; it is left as it was.
        inputs: what to call it with; `named` likewise. Everything given and everything returned is pinned.
        outputs: from what the model returns, the part that matters, e.g. ``lambda out: out.logits``. The
            rest is not pinned: encoder states that are returned beside the logits may become narrower.
        norms: ``"keep"`` pins the dimensions along which an operator counts (the mean of LayerNorm, a
            softmax), so that removing equals zeroing; ``"renormalize"`` leaves them free.

    Raises:
        UsageError: ``outputs`` fails on what the model returns, or picks no tensor.
        GraphError: the model does not run on the example, or has no Python forward to follow because it is
            compiled, scripted or sharded.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> graph = watch(model, torch.zeros(1, 4))
    >>> [(s.tensor, s.dim, s.indices, s.role) for s in graph.units[0].slices]
    [('0.weight', 0, (0,), 'out'), ('0.bias', 0, (0,), 'out'), ('2.weight', 1, (0,), 'in')]
    """
    if norms not in ("renormalize", "keep"):
        raise UsageError("watch", got=f"norms={norms!r}", expected="'renormalize' or 'keep'")
    _refuse_opaque(model)
    book, observer = Book(), Observer(model, keep_norms=norms == "keep")
    book.where, book.pin = observer.where, observer.pin
    with still(model):  # looking at a parametrized weight computes it, which in training mode has effects
        follows = shown(model, {id(tensor): name for name, tensor in observer.seeds})
    observer.source.top = sys._getframe()
    try:
        with still(model), tracing(model, book), observer.seeded((inputs, named)), observer:
            with SizeMode(book, observer.site):
                output = _called(model, inputs, named)
            observer.finish(output, _selected(model, outputs, output))
            observer.tie_alike(model)
    finally:
        observer.source.top = None
    return Graph(
        observer.labels,
        tuple(observer.steps),
        observer.tensors,
        frozenset(name for name, _ in model.named_parameters()),
        observer.site.contracted,
        observer.reasons,
        book,
        follows,
        tuple(observer.calls),
        outputs,
    )


def _selected(model: nn.Module, outputs: Outputs, output: Any) -> Any:
    try:
        found = outputs(output)
    except Exception as error:
        raise _no_output(model, f"{type(error).__name__}: {error}", output) from error
    if not leaves(found):
        raise _no_output(model, f"a {type(found).__name__} without tensors", output)
    return found


def _no_output(model: nn.Module, got: str, output: Any) -> UsageError:
    return UsageError(
        f"selecting outputs of {type(model).__name__}",
        got=got,
        expected="a tensor, or several, of what the model returns",
        hint=f"it returns a {type(output).__name__}",
    )


def _called(model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    try:
        return model(*inputs, **named)
    except GracileError:
        raise
    except Exception as error:
        raise GraphError(
            f"watching {type(model).__name__}",
            got=f"{type(error).__name__}: {error}",
            expected="a forward pass that runs on the example",
        ) from error


def _refuse_opaque(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError("watch", got=f"a {type(model).__name__}", expected="an nn.Module")
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, torch.jit.ScriptModule) or kind in (
            "OptimizedModule",
            "FullyShardedDataParallel",
        ):
            raise GraphError(
                f"watching '{name}'",
                got=f"a {kind}, which has no Python forward to follow",
                expected="the plain module",
                hint="watch and reduce first, then compile or shard",
            )
        if any(nn.parameter.is_lazy(p) for p in module.parameters(recurse=False)):
            raise GraphError(
                f"watching '{name}'",
                got="parameters without a shape yet",
                expected="an initialized module",
                hint="run the model once on an example",
            )
