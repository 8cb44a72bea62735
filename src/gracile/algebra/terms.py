"""Penalties on a whole network: as a loss, as a gradient, or as a proximal step.

All three take the same list of :class:`Term`. The loss works in any training loop. The explicit
gradient and the proximal step do the same work in a few fused operations over all tensors, because
the gradient of a norm penalty is the weights times one factor for each group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from gracile.algebra.grouping import Grouping, Groups, Slices
from gracile.algebra.penalty import NormPenalty, Penalty, Proximal, Scaled, Sum
from gracile.errors import UsageError


@final
@dataclass(frozen=True)
class Term:
    """``strength * penalty(grouping)``.

    Args:
        grouping: which numbers share one fate.
        penalty: what having them costs.
        strength: lambda, in units of loss for each unit of penalty.
    """

    grouping: Grouping
    penalty: Penalty
    strength: float = 1.0


def loss_of(terms: Iterable[Term], tensors: Mapping[str, Tensor]) -> Tensor:
    """Sum of all terms, a 0-d differentiable tensor to add to a loss.

    >>> from gracile.algebra import Lasso, filters
    >>> loss_of([Term(filters("w"), Lasso(), 0.1)], {"w": torch.tensor([[3.0, 4.0]])})
    tensor(0.5000)
    """
    values = [t.strength * t.penalty(t.grouping.of(tensors)) for t in terms if t.grouping.views]
    return torch.stack(values).sum() if values else torch.zeros(())


@torch.no_grad()
def add_gradient_(terms: Iterable[Term], tensors: Mapping[str, Tensor]) -> None:
    """Add the gradient of all terms to ``tensor.grad``, without building a graph.

    The gradient at a member w of group g is strength * slope_g * w / ||w_g||, and 0 where the group
    is 0 (C6 (SSL): as in the authors' code, no epsilon). Tensors without a gradient get one.

    >>> from gracile.algebra import Lasso, filters
    >>> w = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    >>> add_gradient_([Term(filters("w"), Lasso(), 1.0)], {"w": w}); w.grad
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    norms: list[Tensor] = []
    strengths: list[float] = []
    slopes: list[Tensor | float] = []
    applied: list[Groups] = []
    for term in simple_terms(terms):
        if not isinstance(term.penalty, NormPenalty):
            _add_autograd_(term, tensors)
            continue
        groups = term.grouping.of(tensors)
        applied.append(groups)
        norms.append(groups.broadcastable)
        strengths.append(term.strength)
        slopes.append(term.penalty.slope(norms[-1]))
    if not norms:
        return
    factors = torch._foreach_reciprocal(_floored(norms))
    torch._foreach_mul_(factors, strengths)
    # Factors of one tensor are added up first: one pass over the weights, however many penalties.
    merged: dict[tuple[str, torch.Size, tuple[int, int, int] | None], tuple[Slices, Tensor]] = {}
    for groups, factor, slope in zip(applied, factors, slopes, strict=True):
        if isinstance(slope, Tensor):
            factor.mul_(slope)
        for s, spread in groups.spread(factor, fill=0.0):
            key = (s.view.tensor, s.tensor.shape, s.view.narrow)
            merged[key] = (s, merged[key][1] + spread if key in merged else spread)
    apart = {name for name, shape, _ in merged if shape != tensors[name].shape}
    gradients = [
        s.view.seen(_gradient(tensors[name], name in apart), shape)
        for (name, shape, _), (s, _) in merged.items()
    ]
    torch._foreach_addcmul_(
        gradients, [s.tensor for s, _ in merged.values()], [f for _, f in merged.values()]
    )


@torch.no_grad()
def proximal_(
    terms: Iterable[Term], tensors: Mapping[str, Tensor], step: float | Mapping[str, float]
) -> None:
    """Take the proximal step of all terms: every group's norm n becomes shrink(n, step * strength).

    With momentum m pass ``step = lr / (1 - m)``: that is how far a constant gradient moves the
    weights, so that the strength means the same as in :func:`add_gradient_` (measured: without the
    factor no group dies).

    Args:
        terms: proximal penalties; no tensor may be viewed twice, over all terms.
        tensors: tensors by name.
        step: one step length, or one for each tensor name.

    Raises:
        UsageError: groups overlap, or a penalty has no proximal step.

    >>> from gracile.algebra import Lasso, filters
    >>> w = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    >>> proximal_([Term(filters("w"), Lasso(), 1.0)], {"w": w}, step=1.0); w
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """
    simple = [term for term in simple_terms(terms) if term.strength]
    _refuse_overlap([term.grouping for term in simple])
    applied = [term.grouping.of(tensors) for term in simple]
    before = [groups.broadcastable for groups in applied]
    after: list[Tensor] = []
    for term, norms in zip(simple, before, strict=True):
        if not isinstance(term.penalty, Proximal):
            raise UsageError(
                "proximal step",
                got=f"{term.penalty}",
                expected="a proximal penalty such as Lasso() or Ridge()",
                hint="use mode 'gradient' or 'loss'",
            )
        after.append(term.penalty.shrink(norms, _length(step, term.grouping) * term.strength))
    if not simple:
        return
    torch._foreach_div_(after, _floored(before))
    spread = [
        pair for groups, ratio in zip(applied, after, strict=True) for pair in groups.spread(ratio, 1.0)
    ]
    torch._foreach_mul_([s.tensor for s, _ in spread], [ratio for _, ratio in spread])


@torch.no_grad()
def threshold_(tensors: Iterable[Tensor], value: float) -> None:
    """Set every number with ``|w| <= value`` to zero, in place (C6 (SSL): 1e-4 after every step).

    >>> w = torch.tensor([1.0, 1e-5, -1e-5]); threshold_([w], 1e-4); w
    tensor([1., 0., 0.])
    """
    listed = list(tensors)
    if listed:
        torch._foreach_copy_(listed, [torch.nn.functional.hardshrink(t, value) for t in listed])


def simple_terms(terms: Iterable[Term]) -> Iterator[Term]:
    """Terms without sums or factors: those become several terms and part of the strength."""
    for term in terms:
        penalty = term.penalty
        if not term.grouping.views:  # a network without units
            continue
        if isinstance(penalty, Sum):
            yield from simple_terms(replace(term, penalty=part) for part in penalty.parts)
        elif isinstance(penalty, Scaled):
            strength = term.strength * penalty.factor
            yield from simple_terms([replace(term, penalty=penalty.penalty, strength=strength)])
        else:
            yield term


def _refuse_overlap(groupings: Iterable[Grouping]) -> None:
    together = Grouping(tuple(view for grouping in groupings for view in grouping.views))
    if not together.disjoint:
        seen = Counter(view.tensor for view in together.views)
        name, count = seen.most_common(1)[0]
        raise UsageError(
            "proximal step",
            got=f"'{name}' in {count} views",
            expected="groups that do not overlap",
            hint="use mode 'gradient', which adds overlapping penalties up",
        )


def _length(step: float | Mapping[str, float], grouping: Grouping) -> float:
    if not isinstance(step, Mapping):
        return step
    missing = [view.tensor for view in grouping.views if view.tensor not in step]
    if missing:
        raise UsageError(
            "proximal step", got=f"no step for '{missing[0]}'", expected="one for every tensor of a group"
        )
    lengths = {step[view.tensor] for view in grouping.views}
    if len(lengths) > 1:
        raise UsageError(
            "proximal step",
            got=f"steps {sorted(lengths)} for the tensors of one group",
            expected="one learning rate and momentum for all tensors of a group",
        )
    return lengths.pop()


def _floored(norms: list[Tensor]) -> tuple[Tensor, ...]:
    """Norms made safe to divide by: where one is 0 its members are 0 too, and 0 * (1 / floor) is 0."""
    return torch._foreach_clamp_min(norms, [max(1e-30, torch.finfo(n.dtype).tiny) for n in norms])


def _gradient(tensor: Tensor, viewed: bool) -> Tensor:
    if tensor.grad is None:
        tensor.grad = torch.zeros_like(tensor)
    # What is a view of the tensor may be none of its gradient.
    if viewed and tensor.grad.stride() != tensor.stride():
        tensor.grad = torch.empty_like(tensor).copy_(tensor.grad)
    return tensor.grad


def _add_autograd_(term: Term, tensors: Mapping[str, Tensor]) -> None:
    names = list({view.tensor for view in term.grouping.views})
    with torch.enable_grad():
        leaves = {name: tensors[name].detach().requires_grad_() for name in names}
        value = term.strength * term.penalty(term.grouping.of(leaves))
        gradients = torch.autograd.grad(value, list(leaves.values()))
    for name, gradient in zip(names, gradients, strict=True):
        _gradient(tensors[name], viewed=False).add_(gradient)
