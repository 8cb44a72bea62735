"""Keep what is zero at zero: fine-tuning after structure has been learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from gracile.algebra import Grouping
from gracile.errors import FileError
from gracile.train.method import Method, Run


@final
class Freeze(Method):
    """Hold the weights that are zero when training starts at zero, so that a sparse network stays sparse.

    w' = 0 where w was 0 at the start, and its gradient is 0. Two forms, as in C6 (SSL):
    without arguments every zero *element* of a weight is held; with groupings only the members of
    groups that are zero as a whole, and other zeros may come back.

    Which weights are held is stored, not read off ``w == 0`` later: a weight may pass through zero.
    Without arguments parameters with fewer than two dimensions (biases, norms) are left alone: a
    fresh bias is zero and means to move.

    Args:
        groupings: groups to hold; none for single elements.

    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.0, 1.0]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=1.0), steps=1)
    >>> freeze = Freeze(); freeze.start(run)
    >>> _ = model.weight.data.fill_(5.0); freeze.mask(run); model.weight.data
    tensor([[0., 5.]])
    """

    def __init__(self, groupings: Iterable[Grouping] = ()) -> None:
        self.groupings = tuple(groupings)
        self.held: dict[str, Tensor] = {}
        self._known: dict[str, Tensor] = {}

    def start(self, run: Run) -> None:
        parameters = {name: p.detach() for name, p in run.parameters.items()}
        if self.groupings:
            masks = _zero_groups(self.groupings, parameters)
        else:
            masks = {name: p == 0 for name, p in parameters.items() if p.dim() > 1}
        self.held = {name: mask for name, mask in masks.items() if mask.any()}
        self._known = parameters

    def after_backward(self, run: Run) -> None:
        """Zero the gradients first, so that held weights do not count when gradients are clipped."""
        parameters = run.parameters
        for name, mask in self.held.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def mask(self, run: Run) -> None:
        parameters = run.parameters
        for name, mask in self.held.items():
            parameters[name].masked_fill_(mask, 0.0)  # multiplying would keep NaN and make -0

    def state_dict(self) -> dict[str, Any]:
        return {"held": dict(self.held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the stored masks; raises FileError when they are not masks of this model."""
        held = state.get("held")
        if not isinstance(held, dict) or not all(self._fits(name, mask) for name, mask in held.items()):
            raise FileError(
                "restoring Freeze", got="other state", expected="a mask for each parameter's name"
            )
        self.held = {name: mask.to(self._known[name].device) for name, mask in held.items()}

    def _fits(self, name: object, mask: object) -> bool:
        known = self._known.get(name) if isinstance(name, str) else None
        return (
            isinstance(mask, Tensor)
            and known is not None
            and (mask.dtype, mask.shape) == (torch.bool, known.shape)
        )


def _zero_groups(groupings: Iterable[Grouping], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Where the members of zero groups are: mark every number with 1, then scale zero groups by 0."""
    masks: dict[str, Tensor] = {}
    for grouping in groupings:
        groups = grouping.of(parameters)
        names = {view.tensor for view in grouping.views}
        marks = {name: torch.ones_like(parameters[name]) for name in names}
        grouping.of(marks).scale_((groups.norms > 0).to(groups.norms.dtype))
        for name, mark in marks.items():
            dead = mark == 0
            masks[name] = masks[name] | dead if name in masks else dead
    return masks
