"""How much a unit matters: one number for every unit, by weights, gradients or activations.

An importance is a function ``(graph, model) -> Tensor`` of shape (units,); larger matters more. Only its
order within a block, and its share of the block, are ever used (see :mod:`gracile.reduce.budget`): the norms
of a first layer and of a last one say nothing about each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn.utils.prune import BasePruningMethod
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.algebra import View
from gracile.errors import UsageError
from gracile.graph import Graph, Step
from gracile.reduce.copies import undisturbed
from gracile.reduce.probes import copied
from gracile.reduce.replay import UnprovenError, in_step

Importance = Callable[[Graph, nn.Module], Tensor]

_BATCH_NORMS = (
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
)
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "_trilinear")


def magnitude(graph: Graph, model: nn.Module) -> Tensor:
    """Euclidean norm of every unit over all its slices, shape (units,).

    Weights under a mask of :mod:`torch.nn.utils.prune` count as what they are multiplied to.

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> magnitude(watch(model, torch.zeros(1, 4)), model).shape
    torch.Size([3])
    """
    weights = effective(model)
    scratch: dict[tuple[torch.device, torch.dtype], Tensor] = {}
    return _totals(graph, lambda name: _square(weights[name], scratch)).sqrt()


def batch_norm_scale(graph: Graph, model: nn.Module) -> Tensor:
    """Mean of abs(gamma) over the batch norms that a unit passes through, shape (units,).

    Blocks without a batch norm are ranked by :func:`magnitude`.

    Raises:
        UsageError: the network has no batch norm with a scale.

    Source: network slimming (Liu et al., 2017).

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 1, 1)).eval()
    >>> model[1].weight.data = torch.tensor([-3.0, 0.5])
    >>> batch_norm_scale(watch(model, torch.zeros(1, 1, 4, 4)), model).tolist()
    [3.0, 0.5]
    """
    weights = effective(model)
    scales = {
        step.args[1].name: step.args[1].labels[0]
        for step in graph.steps
        if _name(step) in _BATCH_NORMS and step.args[1] is not None and step.args[1].name in weights
    }
    if not scales:
        raise UsageError(
            "ranking by batch-norm scales",
            got="a network without batch norms that have a scale",
            expected="at least one",
            hint="take importance=magnitude",
        )
    sums = _Sums(len(graph.units))
    for name, axis in scales.items():
        sums.add(graph, axis, weights[name].abs())
    return sums.means(graph, model)


def taylor(loss: Callable[[nn.Module, Any], Tensor], batches: Iterable[Any]) -> Importance:
    """First-order Taylor: how much the loss would change if a unit's weights became zero.

    |sum over the unit's slices of w * dL/dw|, averaged over the batches; the network is in evaluation mode.

    Args:
        loss: (model, batch) -> 0-d tensor, e.g.
            ``lambda model, batch: task.loss(model(batch[0]), batch[1])``.
        batches: what to call it with; all of them are used each time.

    Raises:
        UsageError: no batch, or a loss that is no finite 0-d tensor (when the importance is called).

    Source: importance estimation for neural network pruning (Molchanov et al., 2019).

    >>> from gracile.graph import watch
    >>> model, x = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)), torch.ones(1, 1)
    >>> for layer, values in zip(model, ([[1.0], [2.0]], [[3.0, 0.0]]), strict=True):
    ...     layer.weight.data = torch.tensor(values)
    >>> taylor(lambda m, x: m(x).sum(), [x])(watch(model, x), model).tolist()  # 1*3 made + 1*3 used; nothing
    [6.0, 0.0]
    """
    kept = _kept(batches, "ranking by first-order Taylor")

    def importance(graph: Graph, model: nn.Module) -> Tensor:
        parameters = {n: p for n, p in model.named_parameters() if p.is_floating_point()}
        frozen = [p for p in parameters.values() if not p.requires_grad]
        total = torch.zeros(len(graph.units), dtype=torch.float64)
        for p in frozen:
            p.requires_grad_(True)
        try:
            for batch in kept:
                gradients = dict(zip(parameters, _gradients(loss, model, batch, parameters), strict=True))
                total += _totals(
                    graph, lambda name, g=gradients: (parameters[name].detach() * g[name]).float()
                ).abs()
        finally:
            for p in frozen:
                p.requires_grad_(False)
        return total / len(kept)

    return importance


def activation(batches: Iterable[Any]) -> Importance:
    """Mean absolute value of a unit's channels where a weight uses them: after norms and nonlinearities.

    The network runs on the batches operator by operator, in step with what the graph saw. Blocks that no
    product with a weight uses are ranked by :func:`magnitude`.

    Args:
        batches: inputs (a tensor, or a tuple of arguments) that take the same path through the network as
            the example did; the batch size is free.

    Raises:
        UsageError: no batch, or the network does other things on it than on the example.

    >>> from gracile.graph import watch
    >>> model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
    >>> model[0].weight.data = torch.tensor([[2.0], [-1.0]])
    >>> activation([torch.ones(4, 1)])(watch(model, torch.ones(1, 1)), model).tolist()
    [2.0, 0.0]
    """
    kept = _kept(batches, "ranking by activations")

    def importance(graph: Graph, model: nn.Module) -> Tensor:
        sums = _Sums(len(graph.units))
        for batch in kept:
            args, _ = copied((batch if isinstance(batch, tuple) else (batch,), {}))
            try:
                with undisturbed(model), _Listen(graph, sums):
                    model(*args)
            except UnprovenError as lost:
                raise UsageError(
                    "ranking by activations",
                    got=lost.reason,
                    expected="the operators that the example called",
                    hint="inputs may differ from the example in batch size only",
                ) from lost
        return sums.means(graph, model)

    return importance


def effective(model: nn.Module) -> dict[str, Tensor]:
    """Parameters by name, without gradients; those under a mask of ``torch.nn.utils.prune`` masked."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for path, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                name = f"{path}.{hook._tensor_name}_orig".lstrip(".")
                if name in found:  # a tied one goes by its first name
                    found[name] = found[name] * getattr(module, f"{hook._tensor_name}_mask")
    return found


@final
class _Sums:
    """Means by unit of values that come index by index."""

    def __init__(self, count: int) -> None:
        self.total = torch.zeros(count, dtype=torch.float64)
        self.number = torch.zeros(count, dtype=torch.float64)

    def add(self, graph: Graph, axis: Any, values: Tensor) -> None:
        """Add one value for every index of a labelled dimension."""
        owners = graph.owners(axis)
        if owners is not None:
            owner = torch.from_numpy(owners).long()
            self.total.index_add_(0, owner[owner >= 0], values.detach().cpu().double()[owner >= 0])
            self.number.index_add_(0, owner[owner >= 0], torch.ones(int((owner >= 0).sum())).double())

    def means(self, graph: Graph, model: nn.Module) -> Tensor:
        """Means; the units of which nothing is known have their magnitude (they are whole blocks)."""
        known = self.number > 0
        rest = torch.zeros_like(self.total) if known.all() else magnitude(graph, model)
        return torch.where(known, self.total / self.number.clamp(min=1), rest)


@final
class _Listen(TorchDispatchMode):
    """Adds up what flows into products with weights."""

    def __init__(self, graph: Graph, sums: _Sums) -> None:
        super().__init__()
        self.graph, self.sums, self.number = graph, sums, 0

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        step = in_step(self.graph, self.number, func)
        self.number += 1
        operands = step.inputs
        if _name(step) in _PRODUCTS and any(operand.weight for operand in operands):
            given = [x for x in (*args, *(kwargs or {}).values()) if isinstance(x, Tensor)]
            for x, operand in zip(given, operands, strict=True):
                for dim, axis in enumerate(operand.labels if not operand.weight else ()):
                    if axis is not None:
                        rest = [d for d in range(x.dim()) if d != dim]
                        self.sums.add(self.graph, axis, x.abs().double().mean(rest) if rest else x.abs())
        return func(*args, **(kwargs or {}))


def _name(step: Step) -> str:
    return step.op.split(".")[1] if step.op.startswith("aten.") else step.op


def _kept(batches: Iterable[Any], operation: str) -> Sequence[Any]:
    kept = list(batches)
    if not kept:
        raise UsageError(operation, got="no batch", expected="one or more")
    return kept


def _gradients(
    loss: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any, parameters: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    with undisturbed(model), torch.enable_grad():
        value = loss(model, batch)
        if not isinstance(value, Tensor) or value.dim() or not value.isfinite():
            got = value if not isinstance(value, Tensor) else f"{value.detach()}"
            raise UsageError(
                "ranking by first-order Taylor", got=f"a loss of {got}", expected="a finite 0-d tensor"
            )
        return torch.autograd.grad(value, list(parameters.values()), materialize_grads=True)


def _totals(graph: Graph, entries: Callable[[str], Tensor]) -> Tensor:
    """Sum over all slices of every unit of ``entries(name)``, which has the parameter's shape."""
    views: dict[str, list[View]] = {}
    for view in graph.grouping().views:
        views.setdefault(view.tensor, []).append(view)
    totals = torch.zeros(len(graph.units), dtype=torch.float64)
    for name, seen in views.items():
        values = entries(name)
        for view in seen:
            dim = view.pattern.split().index(view.by[0])
            owner = torch.tensor(view.index)
            # What comes before is summed up first: that runs through memory in order.
            summed = values.reshape(math.prod(values.shape[:dim]), -1).sum(0) if dim else values
            total = summed.reshape(values.shape[dim], -1).sum(1)
            totals.index_add_(0, owner[owner >= 0], total.cpu().double()[owner >= 0])
    return totals


def _square(x: Tensor, scratch: dict[tuple[torch.device, torch.dtype], Tensor]) -> Tensor:
    """x², in memory that is used again: on large layers fresh pages cost more than the arithmetic."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    room = scratch.get((x.device, dtype))
    if room is None or room.numel() < x.numel():
        room = scratch[x.device, dtype] = torch.empty(x.numel(), dtype=dtype, device=x.device)
    return torch.mul(x, x, out=room[: x.numel()].view(x.shape))
