"""One step of training: the fixed order of effects, on a whole batch or on its parts in turn."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from gracile.train import ranks
from gracile.train.method import Method, Run
from gracile.train.task import Task


@final
@dataclass(frozen=True)
class Step:
    """Takes one optimizer step at every call, with the hooks of all methods in their order.

    Args:
        run: what the hooks see.
        forward: the model, or its distributed wrapper.
        task: whose loss is minimized.
        methods: called in this order at every hook, except :meth:`Method.undo`, which runs backwards.
        clip: largest total norm of the gradients.
        ghost_batch: samples of one forward and backward pass; ``None`` for all at once.

    >>> from gracile.train.task import classification
    >>> model = nn.Linear(2, 2)
    >>> step = Step(Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1), model, classification())
    >>> step(torch.eye(2), torch.arange(2)).shape
    torch.Size([])
    """

    run: Run
    forward: nn.Module
    task: Task
    methods: Sequence[Method] = ()
    clip: float | None = None
    ghost_batch: int | None = None

    def __call__(self, inputs: Tensor, target: Tensor) -> Tensor:
        """The loss without what methods add, averaged over the parts of the batch, still on the device."""
        run = self.run
        run.optimizer.zero_grad()
        parts = [(inputs, target)]
        if self.ghost_batch is not None:
            parts = list(zip(inputs.split(self.ghost_batch), target.split(self.ghost_batch), strict=True))
        losses = []
        for number, part in enumerate(parts, start=1):
            # The ranks exchange gradients once a step, when the last part has been added.
            with nullcontext() if number == len(parts) else ranks.apart(self.forward):
                losses.append(self._add_gradients(*part, share=1 / len(parts)))
        if self.clip is not None:
            nn.utils.clip_grad_norm_(run.model.parameters(), self.clip)
        for method in self.methods:
            method.gradients(run)
        run.optimizer.step()
        for method in self.methods:
            method.after_step(run)
        for method in self.methods:
            method.mask(run)
        return torch.stack(losses).mean()

    def _add_gradients(self, inputs: Tensor, target: Tensor, share: float) -> Tensor:
        """Add ``share`` of the gradients of one part; what methods did for it is undone, come what may."""
        run = self.run
        with ExitStack() as undo:
            for method in self.methods:
                undo.callback(method.undo, run)  # first, so that half a before_forward is undone as well
                method.before_forward(run)
            output = self.forward(inputs)
            for method in self.methods:
                method.after_forward(run)
            plain = loss = self.task.loss(output, target)
            for method in self.methods:
                loss = method.loss(run, loss)
            (share * loss).backward()  # with several ranks this averages the gradients
        for method in self.methods:
            method.after_backward(run)
        return plain.detach()
