"""A second opinion on a reduction, which shares no code with the library's own verification.

Where the verdict says that the reduced network equals the masked one as it is, an ordinary full-size copy
with zeros in the place of what was removed must give the same outputs, on inputs and with a batch that
nothing before has seen.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reducible.architecture import Built
from reducible.readying import fresh, tensors

Kept = Mapping[str, Mapping[int, list[int]]]


@torch.no_grad()
def masked(model: nn.Module, kept: Kept) -> nn.Module:
    """A full-size copy with zeros where ``kept`` keeps nothing; the direction of a weight norm stays."""
    full = copy.deepcopy(model)
    parameters = dict(full.named_parameters(remove_duplicate=False))
    for name, dims in kept.items():
        if name not in parameters:
            continue  # statistics of channels that are zero and that nobody listens to
        for dim, indices in dims.items():
            if _is_direction(name, dim, parameters):
                continue
            gone = torch.ones(parameters[name].shape[dim], dtype=torch.bool)
            gone[indices] = False
            parameters[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return full


def _is_direction(name: str, dim: int, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a tensor is v of a weight norm g v / |v|, of which every slice of ``dim`` has a length."""
    for v, g in (("weight_v", "weight_g"), ("original1", "original0")):
        lengths = parameters.get(name.removesuffix(v) + g) if name.endswith(v) else None
        if lengths is not None:
            return lengths.dim() > dim and lengths.shape[dim] > 1
    return False


@torch.no_grad()
def outputs(model: nn.Module, inputs: tuple[tuple[Any, ...], dict[str, Any]], built: Built) -> list[Tensor]:
    """The tensors of an output that matter, in numbers."""
    args, kwargs = copy.deepcopy(inputs)
    result = model(*args, **kwargs)
    return [y.detach().clone() for y in tensors(result if built.outputs is None else built.outputs(result))]


def distance(reference: list[Tensor], found: list[Tensor]) -> float:
    """Largest difference over the largest reference value, over all floating-point outputs."""
    if len(reference) != len(found):
        return float("inf")
    worst = 0.0
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return float("inf")
        if not a.numel():
            continue
        if a.is_floating_point():
            same = (a == b) | (a.isnan() & b.isnan())
            if bool(same.all()):
                continue
            scale = float(a[a.isfinite()].abs().max()) if bool(a.isfinite().any()) else 1.0
            gap = float((a - b)[~same].abs().max())
            worst = max(worst, gap / (scale or 1.0)) if gap == gap else float("inf")
        elif not torch.equal(a, b):
            worst = float("inf")
    return worst


def against_masked(full: nn.Module, reduced: nn.Module, kept: Kept, built: Built) -> tuple[float, float]:
    """Error in float32 and, where that is above 1e-5, in float64, of the reduced against the masked model.

    ``built`` holds the example to draw fresh inputs from; its model is not looked at.
    """
    inputs = _taken(full, built)
    reference = masked(full, kept)
    single = distance(outputs(reference, inputs, built), outputs(reduced, inputs, built))
    if single <= 1e-5:
        return single, single
    try:
        wide = _double(inputs)
        double = distance(
            outputs(reference.double(), wide, built), outputs(copy.deepcopy(reduced).double(), wide, built)
        )
    except (RuntimeError, TypeError, ValueError):  # code that insists on float32
        double = single
    return single, double


def _taken(model: nn.Module, built: Built) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Fresh inputs if the model takes them, else the example (lengths and positions may not be shuffled)."""
    for inputs in (fresh(built, seed=7), (built.args, built.kwargs)):
        try:
            if all(bool(y.isfinite().all()) for y in outputs(model, inputs, built) if y.is_floating_point()):
                return inputs
        except (RuntimeError, IndexError, ValueError):
            continue
    return built.args, built.kwargs


def _double(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(map(_double, value))
    if isinstance(value, Mapping):
        return {key: _double(item) for key, item in value.items()}
    return value
