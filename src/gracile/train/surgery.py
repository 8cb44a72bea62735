"""Learn element-wise sparsity by cutting small weights while training, for good or until they are missed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch
from torch import Tensor

from gracile.algebra import Rule, prune_
from gracile.errors import FileError, UsageError
from gracile.train.method import Method, Run


@final
class Prune(Method):
    """After every step w' = 0 where a rule says so; what w was is forgotten (C23: ESL).

    A rule alone cuts what the loss lets shrink; together with L1, ``Structure([Term(elements(name), Lasso(),
    strength)], threshold=0)``, whose gradient the rule then sees, it is the authors' way to sparse layers.

    Args:
        names: parameters, e.g. ``"conv2.weight"``.
        rule: :class:`gracile.algebra.GradientThreshold` or another.

    Raises:
        UsageError: when training starts, a name that is not that of a parameter.

    >>> from gracile.algebra import Threshold
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.1, 1.0]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=1.0), steps=1)
    >>> method = Prune(["weight"], Threshold(0.5)); method.start(run); method.after_step(run)
    >>> model.weight.data
    tensor([[0., 1.]])
    """

    def __init__(self, names: Iterable[str], rule: Rule) -> None:
        self.names, self.rule = tuple(names), rule

    def start(self, run: Run) -> None:
        _require_parameters("Prune", run, self.names)

    def after_step(self, run: Run) -> None:
        parameters = run.parameters
        for name in self.names:
            prune_(parameters[name].detach(), parameters[name].grad, self.rule)

    def state_dict(self) -> dict[str, Any]:
        return {"rule": repr(self.rule)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise UsageError when the run was started with another rule."""
        _require_same_rule("Prune", state, self.rule)


@final
class Surgery(Method):
    """Dynamic network surgery: cut weights go on learning behind the scenes and may come back (C23: DNS).

    Every forward pass and every evaluation sees w * alive. The gradient of that network updates the full
    weights, cut ones included; then the rule decides anew on the full weights. So a weight that was cut by
    mistake grows until it is spliced in again. Penalties and weight decay of other methods act on the full
    weights: with L1 and ``GradientThreshold`` it is the authors' L1_DNS.

    It costs a second copy of the named weights. The network that comes out is sparse, without what is hidden.

    Args:
        names: parameters, e.g. ``"conv2.weight"``.
        rule: :class:`gracile.algebra.Hysteresis` or another.

    Raises:
        UsageError: when training starts, a name that is not that of a parameter.

    >>> from gracile.algebra import Threshold
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> _ = model.weight.data.copy_(torch.tensor([[0.1, 1.0]]))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=1.0), steps=1)
    >>> method = Surgery(["weight"], Threshold(0.5)); method.start(run); method.mask(run)
    >>> model.weight.data, method.full(run)["weight"]
    (tensor([[0., 1.]]), tensor([[0.1000, 1.0000]]))
    """

    def __init__(self, names: Iterable[str], rule: Rule) -> None:
        self.names, self.rule = tuple(names), rule
        self._alive: dict[str, Tensor] = {}
        self._hidden: dict[str, Tensor] = {}  # the full weights where they are cut
        self._masked = True  # whether the parameters are the cut ones now

    def full(self, run: Run) -> dict[str, Tensor]:
        """Copies of the full weights."""
        return {
            name: self._restored(name, p) if self._masked else p.detach().clone()
            for name, p in self._parameters(run).items()
        }

    def start(self, run: Run) -> None:
        _require_parameters("Surgery", run, self.names)
        parameters = self._parameters(run)
        self._alive = {name: torch.ones_like(p, dtype=torch.bool) for name, p in parameters.items()}
        self._hidden = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self._masked = True

    def before_forward(self, run: Run) -> None:
        if not self._masked:  # a later part of the batch: the mask was taken off after the one before
            self._hide(run)

    @torch.no_grad()
    def undo(self, run: Run) -> None:
        """Put the full weights back, for the optimizer."""
        if self._masked:
            for name, parameter in self._parameters(run).items():
                parameter.copy_(self._restored(name, parameter))
        self._masked = False

    def mask(self, run: Run) -> None:
        self.undo(run)  # a loop that has no undo must not lose what is hidden
        for name, parameter in self._parameters(run).items():
            self._alive[name] = self.rule.alive(parameter.detach(), parameter.grad, self._alive[name])
        self._hide(run)

    def state_dict(self) -> dict[str, Any]:
        return {"rule": repr(self.rule), "alive": dict(self._alive), "hidden": dict(self._hidden)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what was stored; UsageError for another rule, FileError for other weights."""
        _require_same_rule("Surgery", state, self.rule)
        for name in ("alive", "hidden"):
            mine, stored = getattr(self, f"_{name}"), state.get(name)
            if not isinstance(stored, dict) or _kinds(stored) != _kinds(mine):
                raise FileError("restoring Surgery", got=f"other {name}", expected="a tensor for each weight")
            setattr(self, f"_{name}", {key: stored[key].to(old.device) for key, old in mine.items()})
        self._masked = True

    def _parameters(self, run: Run) -> dict[str, Tensor]:
        parameters = run.parameters
        return {name: parameters[name] for name in self.names}

    def _restored(self, name: str, parameter: Tensor) -> Tensor:
        return torch.where(self._alive[name], parameter.detach(), self._hidden[name])

    @torch.no_grad()
    def _hide(self, run: Run) -> None:
        for name, parameter in self._parameters(run).items():
            dead = ~self._alive[name]
            self._hidden[name] = torch.where(dead, parameter, 0.0)
            parameter.masked_fill_(dead, 0.0)
        self._masked = True


def _kinds(tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {n: (t.dtype, t.shape) if isinstance(t, Tensor) else type(t) for n, t in tensors.items()}


def _require_parameters(method: str, run: Run, names: Iterable[str]) -> None:
    known = run.parameters
    for name in names:
        if name not in known or not known[name].is_floating_point():
            raise UsageError(
                method,
                got=f"'{name}', no parameter of {type(run.model).__name__}",
                expected=f"one of {', '.join(known)}",
            )


def _require_same_rule(method: str, state: Mapping[str, Any], rule: Rule) -> None:
    if state.get("rule") != repr(rule):
        raise UsageError(
            f"resuming {method}",
            got=f"{rule}",
            expected=f"{state.get('rule')}, as the run was started",
            hint="use another folder for another run",
        )
