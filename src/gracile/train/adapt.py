"""Learn from labels of one domain and from unlabeled samples of another, where the network will be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from gracile.errors import ShapeError, UsageError
from gracile.train.alignments import Alignment, Seen
from gracile.train.capture import Captured, captured, check_modules
from gracile.train.critic import Critic
from gracile.train.method import Method, Run
from gracile.train.randomness import mixed


@final
class Adapt(Method):
    """Draw the features of a labeled source and of an unlabeled target domain together (C22).

    loss' = loss(source) + sum over alignments of strength * alignment(source features, target features).

    In every step as many target samples as source samples go through the model, in the same mode: batch-norm
    layers normalize the two batches separately, and their running statistics take in both domains. (Use
    :func:`gracile.train.adapt_batch_norm` on the trained network for those of the target alone.) A step
    costs about twice one without.

    Which target samples follows from (seed, step, part), so that a resumed run draws the same. Ranks draw one
    common batch and take a share each; MMD and CORAL compare the features of all ranks, so that many ranks
    are a run on one. (Dropout and batch-norm differ between ranks, with this method as without.) Dropout
    draws anew in the target pass, from the generator that checkpoints keep.

    Where all strengths are 0 no target sample is looked at, and training is bit-identical. ``fit`` selects by
    the validation score: give it source validation data, or ``select="last"``; target labels would not be
    there in earnest.

    Args:
        target: samples, or (sample, anything) pairs, of which the first is taken: labels are never looked at.
        at: path of the module whose output is the feature, flattened to (samples, length).
        alignments: any of :class:`MMD`, :class:`Coral`, :class:`Entropy`, :class:`Adversarial`.
        seed: 0 or more; of the target batches and of critics.

    Raises:
        UsageError: no target sample, no alignments, a bad seed; when training starts, a path that is not that
            of a module or a module that does not run once; later, features that are not finite or are frozen.
        ShapeError: the module's output is no floating-point tensor of shape (samples, ...).

    Source: C22: adversarial invariance, smaller divergence of representations, and adapted prediction of
    labels at once. Its losses could not be consulted; these are the field's standard ones.

    >>> from gracile.train.alignments import MMD
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> run = Run(model, torch.optim.SGD(model.parameters(), lr=0.1), steps=1)
    >>> method = Adapt(torch.randn(20, 2), at="1", alignments=[MMD(1.0)]); method.start(run)
    >>> method.before_forward(run); output = model(torch.randn(8, 2) + 5.0); method.after_forward(run)
    >>> bool(method.loss(run, torch.tensor(1.0)) > 1.0), method.undo(run)
    (True, None)
    """

    def __init__(self, target: Any, at: str, alignments: Sequence[Alignment], seed: int = 0) -> None:
        self.target, self.at, self.alignments, self.seed = target, at, tuple(alignments), seed
        if not isinstance(seed, int) or seed < 0:
            raise UsageError("Adapt", got=f"seed={seed!r}", expected="a whole number, 0 or more")
        if not self.alignments or not all(isinstance(part, Alignment) for part in self.alignments):
            raise UsageError(
                "Adapt",
                got=f"alignments={list(self.alignments)}",
                expected="MMD, Coral, Entropy or Adversarial",
            )
        if len(target) == 0:
            raise UsageError(
                "Adapt", got="no target sample", expected="unlabeled samples of the target domain"
            )
        self._critics: dict[int, Critic] = {}
        self._captured: Captured | None = None
        self._hooks = ExitStack()
        self._step, self._part = -1, 0

    def start(self, run: Run) -> None:
        """Look at one target sample, so that mistakes are told before training; make the critics."""
        check_modules(run.model, [self.at])
        self._step, self._part, self._critics = -1, 0, {}
        if any(part.strength for part in self.alignments):
            length = _probe(run.model, self._batch([0], run), self.at).shape[1]
            for number, part in enumerate(self.alignments):
                critic = part.critic(length, mixed(self.seed, number), str(run.device))
                if critic is not None and part.strength:
                    self._critics[number] = critic

    def before_forward(self, run: Run) -> None:
        self._part = self._part + 1 if run.step == self._step else 0
        if not self._part:
            self._forget()  # gradients of critics that a failed step has left
        self._step = run.step
        if self._active(run):
            self._captured = self._hooks.enter_context(captured(run.model, [self.at]))

    def after_forward(self, run: Run) -> None:
        """Remove the hooks, so that no target pass is taken for the source."""
        self._hooks.close()

    def loss(self, run: Run, loss: Tensor) -> Tensor:
        if self._captured is None:
            return loss
        source = _features(self._captured, self.at)
        self.undo(run)
        batch = self._batch(self._indices(len(source), run), run)
        with captured(run.model, [self.at]) as seen:
            output = run.model(batch)
        both = Seen(source, _features(seen, self.at), output, run.ranks)
        if torch.is_grad_enabled() and not both.target.requires_grad:
            raise UsageError(
                "Adapt",
                got=f"'{self.at}' without a gradient",
                expected="features that depend on trained parameters",
                hint="name a module behind the frozen layers",
            )
        for number, strength in self._active(run).items():
            loss = loss + self.alignments[number].loss(both, strength, self._critics.get(number))
        return loss

    def undo(self, run: Run) -> None:
        """Remove the hooks, also when the forward pass failed."""
        self._hooks.close()
        self._captured = None

    def gradients(self, run: Run) -> None:
        """Let the critics take their steps; the model's gradients stay as they are."""
        for critic in self._critics.values():
            critic.step(run.ranks)

    def finish(self, run: Run) -> None:
        self.undo(run)

    def state_dict(self) -> dict[str, Any]:
        return {
            "settings": {
                "at": self.at,
                "seed": self.seed,
                "target samples": len(self.target),
                "alignments": [type(part).__name__ for part in self.alignments],
                "strengths": [float(part.strength) for part in self.alignments],
            },
            "critics": {number: critic.state_dict() for number, critic in self._critics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back the critics; UsageError when the run was started with other settings."""
        for name, value in self.state_dict()["settings"].items():
            started = state.get("settings", {}).get(name)
            if started != value:
                raise UsageError(
                    "resuming Adapt",
                    got=f"{name} {value}",
                    expected=f"{started}, as the run was started",
                    hint="use another folder for another run",
                )
        for number, critic in self._critics.items():
            critic.load_state_dict(state["critics"].get(number, {}))

    def _forget(self) -> None:
        for critic in self._critics.values():
            critic.forget()

    def _active(self, run: Run) -> dict[int, float]:
        """The strengths that are not 0 now, by the number of the alignment."""
        now = {number: part.now(run.progress) for number, part in enumerate(self.alignments)}
        return {number: strength for number, strength in now.items() if strength}

    def _indices(self, count: int, run: Run) -> Sequence[int]:
        """This rank's share of the target samples of this step: all different, if there are enough."""
        generator = np.random.default_rng(mixed(self.seed, self._step, self._part))
        size, wanted = len(self.target), count * run.ranks
        chosen = generator.choice(size, wanted, replace=wanted > size)
        return [int(index) for index in chosen[run.rank * count :][:count]]

    def _batch(self, indices: Sequence[int], run: Run) -> Tensor:
        many = getattr(self.target, "__getitems__", None)
        rows = many(indices) if many else [self.target[index] for index in indices]
        inputs = default_collate([row[0] if isinstance(row, tuple | list) else row for row in rows])
        if not isinstance(inputs, Tensor):
            raise ShapeError("Adapt", got=f"target samples of type {type(rows[0])}", expected="tensors")
        return inputs.to(run.device, non_blocking=True)


@torch.no_grad()
def _probe(model: nn.Module, sample: Tensor, at: str) -> Tensor:
    """Features in eval mode: no buffer changes, and the random stream is put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [sample.device] if sample.device.type == "cuda" else []
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), captured(model, [at]) as seen:
            model(sample)
    finally:
        for module, training in modes:
            module.training = training
    return _features(seen, at)


def _features(seen: Captured, at: str) -> Tensor:
    found = seen.tensors.get(at)
    if found is None:
        raise UsageError("Adapt", got=f"'{at}', which did not run", expected="a module that runs once")
    if found.dim() < 2 or not found.is_floating_point():
        raise ShapeError(
            "Adapt",
            got=f"'{at}' with an output of shape {tuple(found.shape)} and {found.dtype}",
            expected="floating-point features of shape (samples, ...)",
        )
    return found.flatten(1)
