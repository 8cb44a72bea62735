"""What a run carries from step to step beside the model, and how all of it is saved and taken back.

A checkpoint is taken between two steps and holds everything the next step depends on: weights,
optimizer, methods, random generators of every rank, and the tallies below. Where the run is in
its data follows from the number of steps, so the loader needs no state of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import msgspec
import torch
from torch import Tensor, nn

from gracile.errors import FileError, GracileError, UsageError
from gracile.train import checkpoint, randomness, ranks
from gracile.train.checkpoint import Checkpoints
from gracile.train.history import Epoch
from gracile.train.method import Method, Run
from gracile.train.task import Task

_NEVER = 2**62


@final
@dataclass
class Standing:
    """Tallies of a run.

    Args:
        identity: the arguments that must be the same when the run is resumed.
        device: where the tallies of losses are kept, so that counting one does not wait for a GPU.
    """

    identity: dict[str, Any]
    device: torch.device
    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    best_score: float | None = None
    best_weights: dict[str, Any] | None = None
    counts: list[int] = field(default_factory=lambda: [0, 0])  # steps in this epoch, since the last row
    sums: Tensor = field(init=False)  # of the losses of those steps
    first_bad: Tensor = field(init=False)  # step of the first loss that was not finite

    def __post_init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        self.first_bad = torch.tensor(_NEVER, device=self.device)

    def count(self, loss: Tensor, step: int) -> None:
        """Tally the loss of one step, without waiting for the device."""
        self.sums += loss
        self.counts = [count + 1 for count in self.counts]
        self.first_bad = torch.where(loss.isfinite(), self.first_bad, self.first_bad.clamp(max=step))

    def epoch_loss(self, world: int) -> float:
        """Mean over this epoch's steps and all ranks."""
        return self._mean(0, world)

    def recent_loss(self, world: int) -> float:
        """Mean over the steps since the last call, and all ranks."""
        mean = self._mean(1, world)
        self.sums[1], self.counts[1] = 0.0, 0
        return mean

    def _mean(self, which: int, world: int) -> float:
        return ranks.add_(self.sums[which].clone(), world).item() / world / max(1, self.counts[which])

    def close_epoch(self, record: Epoch, model: nn.Module, task: Task, keep_best: bool) -> None:
        """Remember the epoch, and its weights when they are the best so far."""
        self.epochs.append(record)
        self.sums[0], self.counts[0] = 0.0, 0
        if task.improves(record.validation.score, self.best_score):
            self.best_epoch, self.best_score = record.number, record.validation.score
            if keep_best:
                self.best_weights = _copy(model.state_dict())

    def require_finite_loss(self, run: Run, to: Checkpoints | None) -> None:
        """Raise GracileError, on all ranks, when a loss was NaN or infinite on any."""
        bad = int(ranks.least_(self.first_bad.clone(), run.ranks))
        if bad != _NEVER:
            raise _not_finite(f"a loss that is not finite at step {bad} (epoch {run.epoch + 1})", to)


def save(to: Checkpoints, run: Run, methods: Sequence[Method], standing: Standing) -> None:
    """Checkpoint the run as it is between two steps; every rank calls it, rank 0 writes.

    Raises:
        GracileError: a loss or a weight is not finite: such a state would replace a good one.
    """
    standing.require_finite_loss(run, to)
    for name, value in run.parameters.items():
        if not value.isfinite().all():
            raise _not_finite(f"'{name}' not finite after step {run.step}", to)
    own = msgspec.json.encode(_Own(randomness.capture(), standing.sums.tolist()))
    each = [part.decode() for part in ranks.gather(own, run.device, run.ranks)]
    ranks.share_buffers_(run.model, run.ranks)
    if run.rank == 0:
        checkpoint.save(to.folder, _state(run, methods, standing) | {"ranks": each}, run.step, to.keep)


def resume(source: Checkpoints, run: Run, methods: Sequence[Method], standing: Standing) -> None:
    """Take back the newest checkpoint: all of it, or nothing.

    As many ranks as it was written by go on bit for bit. Another number takes the same batches, divided
    otherwise: sums are rounded otherwise, and random numbers are others.

    Raises:
        UsageError: it belongs to a run with other arguments, or to another model.
        FileError: it is damaged.
    """
    state = checkpoint.load(source.folder)
    before = copy.deepcopy(_state(run, methods, standing)), randomness.capture()

    def undo() -> None:
        _apply(before[0], run, methods, standing)
        randomness.restore(before[1])

    try:
        saved = msgspec.convert(state["standing"], _Saved)
        _require_same(source, standing.identity, saved.identity)
        for weights in (state["model"], state["best"]):
            if weights is not None:
                _require_fit(source, run.model.state_dict(), weights)
        _require_alike(run.optimizer.state_dict(), state["optimizer"])
        each = [msgspec.json.decode(part, type=_Own) for part in state["ranks"]]
        _apply(state, run, methods, standing)
        _share_out(each, run, standing)
    except GracileError:
        undo()
        raise
    except Exception as error:  # whatever a state of wrong types makes a load_state_dict raise
        undo()
        raise FileError(
            f"resuming from '{source.folder}'",
            got=f"{type(error).__name__}: {error}",
            expected="the state of this model, optimizer and methods",
            hint="start in a new folder, or resume with what the run was started with",
        ) from error


@dataclass(frozen=True)
class _Saved:
    """The part of a checkpoint that is plain numbers."""

    identity: dict[str, Any]
    epoch: int
    step: int
    stop: str
    epochs: list[Epoch]
    best_epoch: int
    best_score: float | None
    counts: list[int]


@dataclass(frozen=True)
class _Own:
    """What differs from rank to rank."""

    randomness: randomness.Randomness
    sums: list[float]


def _share_out(each: Sequence[_Own], run: Run, standing: Standing) -> None:
    """Give this rank its own part of a checkpoint or, when there are now more or fewer, a fair share."""
    if len(each) == run.ranks:
        standing.sums.copy_(torch.tensor(each[run.rank].sums, dtype=torch.float64))
        randomness.restore(each[run.rank].randomness)
        return
    sums = torch.tensor([own.sums for own in each], dtype=torch.float64)
    standing.sums.copy_(sums.mean(0))
    randomness.seed(randomness.mixed(standing.identity["seed"] % 2**32, run.step, run.ranks, run.rank))


def _state(run: Run, methods: Sequence[Method], standing: Standing) -> dict[str, Any]:
    numbers = _Saved(
        identity=standing.identity,
        epoch=run.epoch,
        step=run.step,
        stop=run.stop,
        epochs=standing.epochs,
        best_epoch=standing.best_epoch,
        best_score=standing.best_score,
        counts=standing.counts,
    )
    return {
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "methods": [method.state_dict() for method in methods],
        "best": standing.best_weights,
        "standing": asdict(numbers),
    }


def _apply(state: Mapping[str, Any], run: Run, methods: Sequence[Method], standing: Standing) -> None:
    saved = msgspec.convert(state["standing"], _Saved)
    run.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    for method, part in zip(methods, state["methods"], strict=True):
        method.load_state_dict(part)
    run.epoch, run.step, run.stop = saved.epoch, saved.step, saved.stop
    standing.epochs = list(saved.epochs)
    standing.best_epoch, standing.best_score = saved.best_epoch, saved.best_score
    standing.best_weights = state["best"]
    standing.counts = saved.counts


def _require_same(source: Checkpoints, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    for name, value in now.items():
        if name != "ranks" and then.get(name) != value:
            raise UsageError(
                f"resuming from '{source.folder}'",
                got=f"{name} {value}",
                expected=f"{then.get(name)}, as the run was started",
                hint="use another folder for another run",
            )


def _require_fit(source: Checkpoints, now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Compare all tensors before any is copied: ``load_state_dict`` stops half-way."""
    mine, theirs = (
        {name: f"{t.dtype} {tuple(t.shape)}" for name, t in side.items() if isinstance(t, Tensor)}
        for side in (now, then)
    )
    for name in sorted(mine.keys() | theirs.keys()):
        if mine.get(name) != theirs.get(name):
            raise UsageError(
                f"resuming from '{source.folder}'",
                got=f"a model with '{name}' {mine.get(name, 'missing')}",
                expected=f"{theirs.get(name, 'no such tensor')}, as in the checkpoint",
                hint="use another folder for another model",
            )


def _require_alike(now: Mapping[str, Any], then: Mapping[str, Any]) -> None:
    """Compare the types of an optimizer's settings: torch takes what comes and fails in a later step."""
    mine, theirs = (
        [{name: _kind(value) for name, value in group.items()} for group in side["param_groups"]]
        for side in (now, then)
    )
    if mine != theirs:
        raise TypeError(f"optimizer settings {theirs} instead of {mine}")


def _kind(value: object) -> str:
    return "number" if type(value) in (int, float) else type(value).__name__


def _copy(state: Mapping[str, Any]) -> dict[str, Any]:
    """On the CPU, so that the best weights take no room on a GPU."""
    return {
        name: value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)
        for name, value in state.items()
    }


def _not_finite(got: str, to: Checkpoints | None) -> GracileError:
    kept = f"; checkpoints in '{to.folder}' are from before" if to else ""
    return GracileError(
        "training",
        got=got,
        expected="finite numbers",
        hint=f"lower the learning rate, clip gradients, or look at the data{kept}",
    )
