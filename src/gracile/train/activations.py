"""Penalties on activations while training: quiet neurons cost no multiplications."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from gracile.algebra import Term, mean_loss_of
from gracile.errors import UsageError
from gracile.train.capture import Captured, captured, check_modules
from gracile.train.method import Method, Run
from gracile.train.schedule import Schedule, constant


@final
class Activations(Method):
    """Add penalties on what modules put out to the loss (C13 (JPnet)).

    loss' = loss + sum over terms of strength * penalty(activations), each as a mean over the samples of the
    batch (:func:`gracile.algebra.mean_loss_of` says how), so that a strength means the same at every batch
    size. For penalties on weights beside them use :class:`Structure`.

    With several ranks every rank takes the mean over its own samples and the ranks' gradients are averaged:
    the same as on one rank, except for norms *across* samples (a channel of the whole batch as one group).

    At strength 0 nothing is captured and nothing added. Hooks are there during the forward pass only.

    Args:
        terms: groupings name modules: ``Term(elements("relu1"), L1(), 1e-4)``; for parts of tuples and for
            modules that run several times see :class:`Captured` and :func:`mean_loss_of`.
        schedule: multiplies all strengths, e.g. ``warmup(0.2)``.

    Raises:
        UsageError: a negative strength; when training starts, a name that is not that of a module; in the
            first step, an activation that has no gradient or was changed in place.

    >>> from gracile.algebra import L1, elements
    >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU())
    >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0], [-1.0]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    >>> method = Activations([Term(elements("1"), L1(), 0.5)]); method.start(run)
    >>> method.before_forward(run); output = model(torch.tensor([[1.0], [2.0]])); method.after_forward(run)
    >>> method.loss(run, torch.tensor(1.0)), method.undo(run)
    (tensor(3.2500, grad_fn=<AddBackward0>), None)
    """

    def __init__(self, terms: Iterable[Term], schedule: Schedule | None = None) -> None:
        self.terms = tuple(terms)
        self.schedule = schedule or constant()
        self._captured: Captured | None = None
        self._hooks = ExitStack()
        for term in self.terms:
            if not term.strength >= 0:  # also true for NaN
                raise UsageError("Activations", got=f"strength={term.strength}", expected="0 or more")

    def start(self, run: Run) -> None:
        check_modules(run.model, _names(self.terms))

    def before_forward(self, run: Run) -> None:
        terms = self._active(run)
        if terms:
            self._captured = self._hooks.enter_context(captured(run.model, _names(terms)))

    def after_forward(self, run: Run) -> None:
        """Remove the hooks: the model may run again, for another method or to recompute what was not kept."""
        self._hooks.close()

    def loss(self, run: Run, loss: Tensor) -> Tensor:
        if self._captured is None:
            return loss
        calls = self._captured.calls
        self.undo(run)
        fixed = [name for name, found in calls.items() if not all(t.requires_grad for t in found)]
        if fixed and torch.is_grad_enabled():
            raise UsageError(
                "penalty on activations",
                got=f"'{fixed[0]}' without a gradient",
                expected="activations that depend on trained parameters",
                hint="leave frozen layers out; checkpoint(..., use_reentrant=False) keeps gradients",
            )
        return loss + mean_loss_of(self._active(run), calls)

    def undo(self, run: Run) -> None:
        """Remove the hooks, also when the forward pass failed."""
        self._hooks.close()
        self._captured = None

    def finish(self, run: Run) -> None:
        self.undo(run)

    def state_dict(self) -> dict[str, Any]:
        return {"strengths": [float(term.strength) for term in self.terms]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise UsageError when the run was started with other strengths."""
        if state.get("strengths") != self.state_dict()["strengths"]:
            raise UsageError(
                "resuming Activations",
                got=f"strengths {self.state_dict()['strengths']}",
                expected=f"{state.get('strengths')}, as the run was started",
                hint="use another folder for another run",
            )

    def _active(self, run: Run) -> tuple[Term, ...]:
        factor = self.schedule(run.progress)
        return tuple(replace(t, strength=factor * t.strength) for t in self.terms if factor * t.strength)


def _names(terms: Iterable[Term]) -> list[str]:
    return list(dict.fromkeys(view.tensor for term in terms for view in term.grouping.views))
