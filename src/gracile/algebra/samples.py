"""Penalties on activations: the same groupings and penalties, with means over samples in place of sums.

An activation has an axis that a weight does not have, the samples of the batch. A strength must not
depend on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gracile.algebra.grouping import Slices
from gracile.algebra.penalty import NormPenalty
from gracile.algebra.terms import Term, simple_terms
from gracile.errors import UsageError

_BATCH = "batch"


def mean_loss_of(terms: Iterable[Term], calls: Mapping[str, Sequence[Tensor]]) -> Tensor:
    """Sum of all terms, each as a mean over samples: a 0-d differentiable tensor to add to a loss.

    Every sum over samples becomes a mean, so that a strength means the same at every batch size:

    - where the axis of samples tells groups apart, and for penalties of members (L1, Hoyer-Square), the
      penalty is divided by the number of samples N: R / N;
    - where a norm runs across the samples (a channel of the whole batch as one group), it becomes a root
      mean square: R(norms / sqrt(N)).

    The axis of samples is the one called ``batch`` in the pattern, or else the first.

    Args:
        terms: strength * penalty(grouping); tensors are named as in ``calls``.
        calls: activations by name. A module that ran several times has several, and each counts like a
            layer of its own: a network does not change its penalty when its layers share one ``nn.ReLU``.

    Raises:
        UsageError: a name is missing, or the names of one term ran unequally often.
        ShapeError, PatternError: a grouping does not fit its activation.

    Source: C13 (JPnet) regularizes weights and activations together; its term could not be confirmed. Ours is
    the mean over samples of the sum over activations.

    >>> from gracile.algebra import L1, elements
    >>> a = torch.tensor([[1.0, -2.0], [3.0, 0.0]])
    >>> mean_loss_of([Term(elements("relu"), L1(), 0.5)], {"relu": [a]})
    tensor(1.5000)
    """
    values = [
        term.strength * _mean(term, tensors)
        for term in simple_terms(terms)
        for tensors in _each_call(term, calls)
    ]
    return torch.stack(values).sum() if values else torch.zeros(())


def _each_call(term: Term, calls: Mapping[str, Sequence[Tensor]]) -> list[dict[str, Tensor]]:
    names = list(dict.fromkeys(view.tensor for view in term.grouping.views))
    missing = [name for name in names if not calls.get(name)]
    if missing:
        raise UsageError(
            "penalty on activations",
            got=f"no activation '{missing[0]}'",
            expected=f"one of {', '.join(sorted(name for name in calls if calls[name])) or 'those that ran'}",
            hint="the module did not run in this forward pass, or returns several tensors: 'name[0]'",
        )
    times = {name: len(calls[name]) for name in names}
    if len(set(times.values())) > 1:
        raise UsageError(
            "penalty on activations",
            got=f"modules that ran {times} times in one grouping",
            expected="the same number of calls",
        )
    return [{name: calls[name][i] for name in names} for i in range(times[names[0]])]


def _mean(term: Term, tensors: Mapping[str, Tensor]) -> Tensor:
    groups = term.grouping.of(tensors)
    found = {_samples(slices, tensors[slices.view.tensor]) for slices in groups.slices}
    if len(found) > 1:
        raise UsageError(
            "penalty on activations",
            got=f"views with {' and '.join(f'{n} samples, apart: {apart}' for n, apart in sorted(found))}",
            expected="as many samples in every view, which tell groups apart in all of them or in none",
        )
    count, apart = found.pop()
    if not count:
        return groups.norms.sum()  # nothing: 0
    if isinstance(term.penalty, NormPenalty) and not apart:
        return term.penalty.of_norms(groups.norms / count**0.5)
    return term.penalty(groups) / count


def _samples(slices: Slices, tensor: Tensor) -> tuple[int, bool]:
    """How many samples a view has, and whether they tell groups apart."""
    names = slices.view.layout(tuple(tensor.shape)).names
    axis = names.index(_BATCH) if _BATCH in names else 0
    return slices.tensor.shape[axis], axis in slices.by
