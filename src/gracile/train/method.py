"""Something that takes part in training: hooks that default to nothing, called in one fixed order.

A Method holds no mathematics: it calls pure functions of :mod:`gracile.algebra` at the right
moment. So everything that a Method does can also be done by hand in any loop.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn


@final
@dataclass
class Run:
    """Where a training run stands; what every hook gets to see, and may change.

    Args:
        model: the network itself, never a distributed wrapper around it.
        optimizer: its optimizer.
        steps: optimizer steps that the whole run will take.
        device: where the parameters live.
        rank: number of this process, 0 to ``ranks - 1``.
        ranks: number of processes that train together.
        epoch: epochs completed.
        step: optimizer steps completed; all hooks of one step see the same value.
        stop: set to a reason to end the run after the current epoch.
        wrapper: what is called to run the model, where that is a distributed wrapper.

    >>> model = nn.Linear(2, 2)
    >>> Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=8, step=2).progress
    0.25
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    rank: int = 0
    ranks: int = 1
    epoch: int = 0
    step: int = 0
    stop: str = ""
    wrapper: nn.Module | None = None

    @property
    def progress(self) -> float:
        """The share of the run that is done, in [0, 1]: what schedules are functions of."""
        return min(1.0, self.step / max(1, self.steps))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The model's parameters by name, as groupings want them."""
        return dict(self.model.named_parameters())


class Method:
    """One technique that works while a network is trained.

    The order of one step is fixed::

        before_forward -> forward -> after_forward -> loss -> backward -> undo -> after_backward
        -> [average, clip] -> gradients -> [optimizer step] -> after_step -> mask

    A batch that is taken in parts (``fit(ghost_batch=...)``) goes through the first line once for every
    part, with gradients that add up, and through the second line once.

    ``start`` comes once before the first step, also when a run is resumed; what ``load_state_dict``
    brings back comes after it. ``after_epoch`` and ``finish`` close an epoch and the run. With
    several ranks every rank calls every hook, with the same parameters and gradients from
    ``gradients`` on, so a deterministic hook keeps the ranks identical.
    """

    def start(self, run: Run) -> None:
        """Prepare; read the model as it is before the first step."""

    def before_forward(self, run: Run) -> None:
        """Change the model for this forward and backward pass, e.g. add noise to its weights."""

    def after_forward(self, run: Run) -> None:
        """Stop watching the forward pass: in ``loss`` other methods may run the model once more."""

    def loss(self, run: Run, loss: Tensor) -> Tensor:
        """Return the loss to differentiate: ``loss`` plus what this method adds to it."""
        return loss

    def undo(self, run: Run) -> None:
        """Take back what ``before_forward`` changed, once the gradients have been computed.

        Also called when the forward or backward pass raised or was interrupted, and then perhaps without
        ``before_forward`` having come to its end. The methods are called in reverse order: what was put on
        last comes off first.
        """

    def after_backward(self, run: Run) -> None:
        """Change gradients, which are those of all parts so far, before they are clipped."""

    def gradients(self, run: Run) -> None:
        """Add to the gradients, averaged and clipped; what is added enters the momentum."""

    def after_step(self, run: Run) -> None:
        """Change the weights after the optimizer: thresholds and proximal steps."""

    def mask(self, run: Run) -> None:
        """Hold weights at fixed values: the last word of every step."""

    def after_epoch(self, run: Run, metrics: Mapping[str, float]) -> None:
        """React to the train and validation ``metrics`` of the epoch; may set ``run.stop``."""

    def finish(self, run: Run) -> None:
        """Change the selected weights once more, before the test set is looked at."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: dicts, lists, numbers, strings and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what ``state_dict`` returned; tensors arrive on the CPU."""
