"""Learn structured sparsity while training: penalties on groups, in one of three ways."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal, final

from torch import Tensor

from gracile.algebra import Term, add_gradient_, loss_of, proximal_, threshold_
from gracile.errors import UsageError
from gracile.train.method import Method, Run
from gracile.train.schedule import Schedule, constant


@final
class Structure(Method):
    """Make whole groups of weights zero: group Lasso and its relatives (C6 (SSL), C9 (DeepHoyer)).

    ``gradient``: w' = optimizer(g + strength * dR/dw), then |w'| <= threshold becomes 0. This is what
    the authors of C6 do: the penalty's gradient is added after clipping and inside the momentum.
    Any penalties, also overlapping ones (rows and columns of one matrix).

    ``proximal``: w' = prox_{s R}(optimizer(g)) with s = strength * lr * (1 - dampening) / (1 - momentum),
    for each parameter group. It makes exact zeros and needs no threshold; groups must not overlap.
    The momentum factor is there because momentum m repeats a steady gradient 1 + m + m^2 + ... times:
    with it a strength means the same as in ``gradient`` mode; without it next to no group dies.

    ``loss``: the penalty is added to the loss, is clipped with it, and works with any optimizer.

    ``strength`` has the unit of loss per unit of penalty, so it belongs to one loss and one size of
    network. In ``gradient`` and ``loss`` mode an optimizer that rescales gradients (Adam, RMSprop)
    rescales the penalty as well: a strength then says little about its share of the update. Use
    SGD as C6 does, or ``proximal`` mode, whose step an adaptive optimizer does not rescale.

    Strength 0 leaves training bit-identical in every mode: nothing is added, nothing thresholded.

    Args:
        terms: what is penalized, how, and how strongly.
        mode: see above.
        threshold: numbers of the penalized tensors with |w| up to this become 0 after every step.
            By default 1e-4 in ``gradient`` mode (C6) and none in the others. C6 thresholds every tensor
            of the network; here those without a penalty are left alone.
        schedule: multiplies all strengths, e.g. ``warmup(0.2)``.

    Raises:
        UsageError: an unknown mode, a negative strength or threshold; in ``proximal`` mode (when
            training starts) overlapping groups or a penalty without a proximal step.

    >>> import torch
    >>> from gracile.algebra import Lasso, filters
    >>> model = torch.nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.1, 0.1]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.5), steps=1)
    >>> method = Structure([Term(filters("weight"), Lasso(), 2.0)], mode="proximal")
    >>> method.start(run); method.after_step(run); model.weight.data
    tensor([[2.4000, 3.2000],
            [0.0000, 0.0000]])
    """

    def __init__(
        self,
        terms: Iterable[Term],
        mode: Literal["gradient", "proximal", "loss"] = "gradient",
        threshold: float | None = None,
        schedule: Schedule | None = None,
    ) -> None:
        self.terms = tuple(terms)
        self.mode = mode
        self.schedule = schedule or constant()
        self.threshold = (1e-4 if mode == "gradient" else 0.0) if threshold is None else threshold
        if mode not in ("gradient", "proximal", "loss"):
            raise UsageError("Structure", got=f"mode={mode!r}", expected="'gradient', 'proximal' or 'loss'")
        for name, value in [("threshold", self.threshold), *(("strength", t.strength) for t in self.terms)]:
            if not value >= 0:  # also true for NaN
                raise UsageError("Structure", got=f"{name}={value}", expected="0 or more")

    def start(self, run: Run) -> None:
        """Apply the penalties to copies, so that a wrong name or pattern is told before training."""
        parameters, steps = run.parameters, steps_of(run)
        names = _names(self.terms)
        copies = {name: parameters[name].detach().clone() for name in names if name in parameters}
        loss_of(self.terms, copies)
        if self.mode == "proximal":
            missing = [name for name in names if name not in steps]
            if missing:
                raise UsageError(
                    "proximal step",
                    got=f"'{missing[0]}', which is not trained",
                    expected="a parameter of the optimizer",
                )
            proximal_(self.terms, copies, steps)

    def loss(self, run: Run, loss: Tensor) -> Tensor:
        terms = self._active(run) if self.mode == "loss" else ()
        return loss + loss_of(terms, run.parameters) if terms else loss

    def gradients(self, run: Run) -> None:
        terms = self._active(run) if self.mode == "gradient" else ()
        if terms:
            add_gradient_(terms, run.parameters)

    def after_step(self, run: Run) -> None:
        terms = self._active(run)
        if self.mode == "proximal":
            proximal_(terms, run.parameters, step=steps_of(run))
        if self.threshold:
            parameters = run.parameters
            threshold_([parameters[name] for name in _names(terms)], self.threshold)

    def state_dict(self) -> dict[str, Any]:
        return {
            "mode": self.mode,
            "threshold": float(self.threshold),
            "strengths": [float(term.strength) for term in self.terms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise UsageError when the run was started with another mode, threshold or strengths."""
        for name, value in self.state_dict().items():
            if state.get(name) != value:
                raise UsageError(
                    "resuming Structure",
                    got=f"{name} {value}",
                    expected=f"{state.get(name)}, as the run was started",
                    hint="use another folder for another run",
                )

    def _active(self, run: Run) -> tuple[Term, ...]:
        factor = self.schedule(run.progress)
        return tuple(replace(t, strength=factor * t.strength) for t in self.terms if factor * t.strength)


def steps_of(run: Run) -> dict[str, float]:
    """How far a steady gradient of 1 moves each parameter in one step, by the parameter's name.

    lr * (1 - dampening) / (1 - momentum) of its parameter group; lr where a group has neither.

    >>> import torch
    >>> model = torch.nn.Linear(1, 1, bias=False)
    >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.75)
    >>> steps_of(Run(model, sgd, steps=1))
    {'weight': 0.4}
    """
    names = {parameter: name for name, parameter in run.parameters.items()}
    return {
        names[parameter]: _length(group)
        for group in run.optimizer.param_groups
        for parameter in group["params"]
        if parameter in names
    }


def _length(group: dict[str, Any]) -> float:
    momentum, dampening = group.get("momentum", 0.0), group.get("dampening", 0.0)
    # torch.optim.SGD ignores dampening where there is no momentum.
    return float(group["lr"]) * (1.0 - dampening if momentum else 1.0) / (1.0 - momentum)


def _names(terms: Iterable[Term]) -> list[str]:
    return list(dict.fromkeys(view.tensor for term in terms for view in term.grouping.views))
