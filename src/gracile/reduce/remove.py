"""The whole job: watch, choose, fold constants, cut, verify; and refuse what cannot be proven."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gracile.errors import RefusedError, UsageError
from gracile.graph import Cut, Graph, Outputs, everything, watch
from gracile.graph.counts import Kept
from gracile.graph.network import unit_numbers
from gracile.reduce.apply import apply_, check, named_tensors, take
from gracile.reduce.attention import make_attention_explicit_
from gracile.reduce.copies import duplicate
from gracile.reduce.fold import Fold, fold
from gracile.reduce.probes import Inputs, copied
from gracile.reduce.refusal import Refusal
from gracile.reduce.retry import narrow
from gracile.reduce.select import dead
from gracile.reduce.verify import Verdict, verify

Choice = Callable[[Graph, nn.Module], Iterable[int]]


@dataclass(frozen=True)
class Reduction:
    """What :func:`remove` made: the smaller model and the evidence.

    ``cut`` can be saved and replayed; ``refused`` says what was chosen and had to stay; ``folded`` holds the
    biases and running means (full size) that took up constants; ``attention`` the places where attention was
    made explicit.
    """

    model: nn.Module
    cut: Cut
    verdict: Verdict
    refused: tuple[Refusal, ...]
    graph: Graph
    folded: dict[str, Tensor]
    attention: tuple[str, ...]

    def apply_(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Do the same to the original model, in place, and let its optimizer follow.

        Raises:
            UsageError, ShapeError: the model is not the one that was reduced; it is left as it was, but for
                attention that was made explicit.
        """
        make_attention_explicit_(model, self.attention)
        check(model, self.cut)
        apply_(model, self.cut, optimizer)
        tensors = dict(named_tensors(model))
        with torch.no_grad():
            for name, value in self.folded.items():
                kept = self.cut.tensors.get(name, {})
                tensors[name].copy_(take(value, {dim: torch.tensor(list(i)) for dim, i in kept.items()}))


@torch.inference_mode(False)  # whose tensors could not be trained any more
def remove(
    model: nn.Module,
    *inputs: Any,
    units: Choice = dead,
    norms: Literal["renormalize", "keep"] = "renormalize",
    tolerance: float | None = None,
    outputs: Outputs = everything,
    **named: Any,
) -> Reduction:
    """Remove units from a copy of ``model`` and prove that the result computes the same.

    If all chosen units are dead, the same means the original function: constants that dead units emit are
    folded into biases and running means, exactly. Otherwise it means the masked model, in which the removed
    slices are zero. A cut that fails is narrowed; what had to stay, and why, is in ``refused``.

    Args:
        model: any module whose forward is Python; it is left untouched.
        inputs: an example to call it with; ``named`` likewise.
        units: (graph, model) -> units to remove, e.g. :func:`gracile.reduce.dead` or
            ``partial(smallest, fraction=0.5)``. It is called again when a cut has to be narrowed.
        norms: ``"renormalize"`` lets operators that count along a cut axis (LayerNorm, softmax, mean) see the
            narrower axis, as in a narrower network; ``"keep"`` leaves such axes alone.
        tolerance: largest error relative to the largest output; by default it depends on the dtype.
        outputs: from what the model returns, the part that matters and stays as it is, e.g.
            ``lambda out: out.logits``; anything else may become narrower.

    Raises:
        RefusedError: units were chosen and none of them could go.
        UsageError: what is given is no model, cannot be copied, or the choice is no numbers of units.
        GraphError: the model cannot be watched.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with torch.no_grad():
    ...     _ = model[0].weight[3:].zero_()
    >>> reduction = remove(model, torch.randn(5, 4))
    >>> reduction.model[0], reduction.verdict.kind
    (Linear(in_features=4, out_features=3, bias=True), 'exact')
    """
    _check_arguments(model, units, tolerance)
    work = duplicate(model)
    attention = tuple(make_attention_explicit_(work))
    given: Inputs = copied((inputs, named))
    args, kwargs = copied(given)
    graph = watch(work, *args, norms=norms, outputs=outputs, **kwargs)

    tied: list[Refusal] = []  # what stays in the present round for the sake of a size

    def choose(narrowed: Graph) -> Collection[int]:
        ordered = units(narrowed, work)
        ordered = list(ordered) if isinstance(ordered, Iterable) else [ordered]
        chosen = unit_numbers(ordered)
        if not chosen or (chosen[0] >= 0 and chosen[-1] < len(narrowed.units)):
            going, kept = narrowed.balanced(map(int, ordered))
            tied[:] = [_tied(narrowed, stays) for stays in kept]
            return sorted(going)
        if narrowed is not graph:
            return []  # a choice that does not follow what is left is at its end
        raise UsageError(
            "removing units",
            got=f"unit {chosen[0] if chosen[0] < 0 else chosen[-1]}",
            expected=f"numbers from 0 to {len(graph.units) - 1}",
        )

    def attempt(graph: Graph, chosen: Collection[int]) -> Reduction:
        return _attempt(work, graph, chosen, given, tolerance, attention)

    outcome = narrow(graph, choose, attempt)
    result = outcome.result
    refused = (*outcome.refused, *tied)
    if result is None:
        if refused:
            raise _nothing_left(refused)
        return Reduction(duplicate(model), Cut(), Verdict("exact", 0.0, 0.0), (), outcome.graph, {}, ())
    if result.refused and not result.cut.tensors:
        raise _nothing_left((*refused, *result.refused))
    return Reduction(
        result.model,
        result.cut,
        result.verdict,
        (*refused, *result.refused),
        outcome.graph,
        result.folded,
        attention,
    )


def _attempt(
    work: nn.Module,
    graph: Graph,
    chosen: Collection[int],
    inputs: Inputs,
    tolerance: float | None,
    attention: tuple[str, ...],
) -> Reduction:
    """Fold, cut and verify; raises what the retry loop understands."""
    all_dead = set(chosen) <= set(dead(graph, work))
    folded = fold(work, graph, chosen, inputs) if all_dead else Fold({}, {})
    going = sorted(set(chosen) - folded.refused.keys())
    refused = tuple(folded.refused.values())
    if not going:
        return Reduction(work, Cut(), Verdict("exact", 0.0, 0.0), refused, graph, {}, attention)
    cut = graph.cut(going)
    reduced = duplicate(work)
    tensors = dict(reduced.named_parameters()) | dict(reduced.named_buffers())
    with torch.no_grad():
        for name, value in folded.tensors.items():
            tensors[name].copy_(value)
    apply_(reduced, cut)
    verdict = verify(
        work, graph, going, cut, inputs, reduced=reduced if all_dead else None, tolerance=tolerance
    )
    return Reduction(reduced, cut, verdict, refused, graph, folded.tensors, attention)


def _tied(graph: Graph, kept: Kept) -> Refusal:
    block = graph.blocks[graph.units[kept.units[0]].block]
    need = kept.why.need
    reason = f"{kept.why.got} where it needs {kept.why.expected}"
    return Refusal(block.name, need.op, need.source, reason, len(kept.units))


def _check_arguments(model: nn.Module, units: Choice, tolerance: float | None) -> None:
    if not isinstance(model, nn.Module):
        raise UsageError("removing units", got=f"a {type(model).__name__}", expected="an nn.Module")
    if not callable(units):
        raise UsageError(
            "removing units",
            got=f"units as a {type(units).__name__}",
            expected="a function (graph, model) -> numbers of units",
            hint="units=lambda graph, model: [0, 3]",
        )
    if tolerance is not None and not (isinstance(tolerance, int | float) and 0 <= tolerance < math.inf):
        raise UsageError("removing units", got=f"tolerance={tolerance}", expected="a finite number >= 0")
    meta = next((name for name, tensor in named_tensors(model) if tensor.is_meta), None)
    if meta is not None:
        raise UsageError(
            "removing units", got=f"{meta!r} on the meta device", expected="numbers to verify the result with"
        )


def _nothing_left(refused: tuple[Refusal, ...]) -> RefusedError:
    count = sum(refusal.count for refusal in refused)
    return RefusedError(
        "removing units",
        got=f"{count} chosen of which none can go; the first: {refused[0]}",
        expected="at least one unit that can be removed and proven",
        hint="graph.pins() tells what holds the network together",
    )
