"""Train at randomly moved weights, so that minima must be wide to count."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from gracile.algebra import Noise, add_noise_
from gracile.algebra.noise import require_noise
from gracile.errors import UsageError
from gracile.train.method import Method, Run
from gracile.train.randomness import mixed
from gracile.train.schedule import Schedule, constant


@contextmanager
def smoothout(
    model: nn.Module, strength: float, kind: Noise = "uniform", *, seed: int, without: Iterable[str] = ()
) -> Iterator[None]:
    """Within the block the weights carry noise; after it they are what they were, bit for bit.

    Compute loss and gradients inside, take the step outside: the step goes from the clean weights with the
    gradient found at the noisy ones. They are put back from a copy, also when the block raises; adding and
    subtracting the noise, as the authors do, would round. Noise is drawn from generators of its own.

    Args:
        model: its trained parameters are moved, except those of normalization layers.
        strength: see :func:`gracile.algebra.add_noise_`; 0 does nothing.
        kind: ``uniform``, ``gaussian``, ``weight`` or ``filter``.
        seed: one for each draw, e.g. the number of the step.
        without: names of further parameters or modules to leave quiet.

    Raises:
        UsageError: an unknown kind or name, a strength that is negative or not finite.

    Source: T1 (SmoothOut).

    >>> model = nn.Linear(2, 2); before = model.weight.detach().clone()
    >>> with smoothout(model, 0.1, seed=0):
    ...     moved = bool((model.weight != before).all())
    >>> moved, torch.equal(model.weight, before)
    (True, True)
    """
    require_noise("SmoothOut", strength, kind)
    weights = list(noisy_parameters(model, without).values()) if strength else []
    clean = [weight.detach().clone() for weight in weights]
    try:
        add_noise_(weights, strength, kind, seed=seed)
        yield
    finally:
        if weights:
            with torch.no_grad():
                torch._foreach_copy_(weights, clean)


def noisy_parameters(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Tensor]:
    """The trained parameters by name, except those named and those of normalization layers.

    A normalization layer is one whose class has ``Norm`` in its name: noise on its scale would act on whole
    channels at once.

    Args:
        model: any network.
        without: names of parameters, or of modules with all that is in them.

    Raises:
        UsageError: a name that the model does not have.

    >>> model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    >>> list(noisy_parameters(model, without=["2"]))
    ['0.weight', '0.bias']
    """
    modules = dict(model.named_modules())
    quiet = {
        id(parameter)
        for module in modules.values()
        if "Norm" in type(module).__name__
        for parameter in module.parameters(recurse=False)
    }
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in without:
        if name not in parameters and name not in modules:
            raise UsageError(
                "SmoothOut",
                got=f"without='{name}'",
                expected="the name of a parameter or a module",
                hint="names are those of model.named_parameters() and model.named_modules()",
            )
        inside = modules[name].parameters() if name in modules else [parameters[name]]
        quiet.update(map(id, inside))
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in quiet}


@final
class SmoothOut(Method):
    """Minimize the loss averaged over a box around the weights, E_n[L(w + n)] (T1 (SmoothOut)).

    For every forward and backward pass new noise n is added to the weights and taken off again: the
    optimizer, its momentum and its weight decay see the clean weights and the gradient at w + n. Where the
    loss is sharp, the neighbors of a minimum are bad and pull away from it. Every part of a batch has a draw
    of its own (``fit(ghost_batch=...)``), so that a large batch averages over many, as the authors do.

    The noise follows from (seed, step, part). All ranks draw the same, so that a run on many ranks is a run
    on one: more ranks do not mean more draws. Batch-norm statistics are collected under noise. Penalties that
    other methods add to the loss are taken at the noisy weights, those added to the gradients at the clean.

    Strength 0 leaves training bit-identical.

    Args:
        strength: see :func:`gracile.algebra.add_noise_`.
        kind: ``uniform``, ``gaussian``, ``weight`` or ``filter``.
        schedule: multiplies the strength, e.g. ``tanh_ramp()`` or ``sqrt_decay(steps)``.
        without: names of parameters or modules that stay quiet beside those of normalization layers.
        seed: 0 or more.

    Raises:
        UsageError: see :func:`smoothout`; a wrong name is told when training starts.

    >>> model = nn.Linear(2, 2)
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    >>> method = SmoothOut(0.1); method.start(run)
    >>> clean = model.weight.detach().clone()
    >>> method.before_forward(run); noisy = model.weight.detach().clone(); method.undo(run)
    >>> bool((noisy - clean).abs().max() <= 0.1), torch.equal(model.weight, clean)
    (True, True)
    """

    def __init__(
        self,
        strength: float,
        kind: Noise = "uniform",
        *,
        schedule: Schedule | None = None,
        without: Iterable[str] = (),
        seed: int = 0,
    ) -> None:
        require_noise("SmoothOut", strength, kind)
        if not isinstance(seed, int) or seed < 0:
            raise UsageError("SmoothOut", got=f"seed={seed!r}", expected="a whole number, 0 or more")
        self.strength, self.kind, self.seed = float(strength), kind, seed
        self.schedule = schedule or constant()
        self.without = tuple(without)
        self._noise = ExitStack()
        self._step, self._part = -1, 0

    def start(self, run: Run) -> None:
        self._step, self._part = -1, 0
        if not noisy_parameters(run.model, self.without) and self.strength:
            raise UsageError("SmoothOut", got="no parameter to move", expected="a model with trained weights")

    def before_forward(self, run: Run) -> None:
        strength = self.strength * self.schedule(run.progress)
        self._part = self._part + 1 if run.step == self._step else 0
        self._step = run.step
        if strength:
            seed = mixed(self.seed, self._step, self._part)
            noise = smoothout(run.model, strength, self.kind, seed=seed, without=self.without)
            self._noise.enter_context(noise)

    def undo(self, run: Run) -> None:
        self._noise.close()

    def state_dict(self) -> dict[str, Any]:
        return {
            "strength": self.strength,
            "kind": self.kind,
            "seed": self.seed,
            "without": list(self.without),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raise UsageError when the run was started with other noise."""
        for name, value in self.state_dict().items():
            if state.get(name) != value:
                raise UsageError(
                    "resuming SmoothOut",
                    got=f"{name} {value}",
                    expected=f"{state.get(name)}, as the run was started",
                    hint="use another folder for another run",
                )
