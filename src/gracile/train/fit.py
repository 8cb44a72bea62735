"""The training loop: plain PyTorch, on one process or on many under ``torchrun``.

It calls hooks, measures, and checkpoints; everything that is interesting is a Method. It is small
on purpose, and nothing in the library needs it: every method also works in a loop of your own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

from gracile.errors import UsageError
from gracile.train import checkpoint, randomness, ranks
from gracile.train.bar import Bar
from gracile.train.checkpoint import Checkpoints
from gracile.train.history import Epoch, History, Metrics
from gracile.train.log import Logger
from gracile.train.method import Method, Run
from gracile.train.schedule import Schedule, constant
from gracile.train.splits import Splits
from gracile.train.standing import Standing, resume, save
from gracile.train.step import Step
from gracile.train.task import Task, evaluate

OptimizerOf = Callable[[Iterable[nn.Parameter]], Optimizer]

_NOT_SETTINGS = ("params", "lr", "initial_lr")  # the learning rates are compared as numbers

MOMENTUM_SGD: OptimizerOf = partial(SGD, lr=0.05, momentum=0.9)


def fit(
    model: nn.Module,
    splits: Splits,
    task: Task,
    *,
    epochs: int,
    batch_size: int = 64,
    ghost_batch: int | None = None,
    optimizer: OptimizerOf | Optimizer = MOMENTUM_SGD,
    schedule: Schedule | None = None,
    methods: Sequence[Method] = (),
    clip: float | None = None,
    patience: int | None = None,
    select: Literal["best", "last"] = "best",
    seed: int = 0,
    folder: str | Path | Checkpoints | None = None,
    loggers: Sequence[Logger] = (),
    log_every: int = 50,
    workers: int = 0,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> History:
    """Train ``model`` in place; it ends with the selected weights, in eval mode, on the device it came on.

    Weights are selected, and training is stopped early, by the validation score alone; the test
    set is measured once, on the selected weights. Under ``torchrun`` every process calls ``fit``
    with the same arguments: gradients and metrics are averaged, rank 0 writes.

    With a ``folder`` the run is resumable: the same call finds the newest checkpoint there and
    continues. On one device the result is bit-identical to that of a run that was never
    interrupted (on a GPU as far as its kernels are deterministic, see
    ``torch.use_deterministic_algorithms``; with ``workers`` as far as the data set draws no random
    numbers inside them). On another number of ranks it continues with the same batches, but not the same
    bits.

    Args:
        model: called as ``model(input)``.
        splits: train, validation and test data.
        task: loss and score.
        epochs: passes over the training data.
        batch_size: samples in one step, over all ranks. A last, smaller batch is dropped.
        ghost_batch: samples of one forward and backward pass on each rank. A batch is then taken in parts
            whose gradients are averaged, each with batch-norm statistics and noise of its own, in the
            memory of one part. ``None`` takes the whole batch at once.
        optimizer: made from the trainable parameters; or one that exists.
        schedule: factor of the learning rates as a function of progress; by default constant.
        methods: called in this order at every hook, in reverse order at ``undo``.
        clip: largest total norm of the gradients.
        patience: stop after this many epochs without a better validation score.
        select: ``best`` keeps the weights of the best epoch; ``last`` those of the last, which is what
            learning structure wants: early epochs score well because nothing is zero yet.
        seed: seeds Python, NumPy and PyTorch (plus the rank) and the order of the data. A second call with
            the same seed repeats batches and dropout masks of the first; to train on, take another.
        folder: where checkpoints go; every epoch, or as :class:`Checkpoints` says.
        loggers: receive a row every ``log_every`` steps and every epoch.
        log_every: steps between rows. On GPUs and on many ranks also between checks for NaN.
        workers: processes that load data; 0 loads in this one.
        device: by default the GPU of this process if there is one, else the CPU.
        progress: show a progress bar, when on a terminal.

    Raises:
        UsageError: arguments that contradict each other or the checkpoint.
        FileError: a damaged checkpoint, or one that cannot be written.
        GracileError: a loss or a weight is not finite; the last good checkpoint stays.

    >>> from gracile.train import classification
    >>> from torch.utils.data import TensorDataset
    >>> _ = torch.manual_seed(0)
    >>> data = TensorDataset(torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8))
    >>> history = fit(nn.Linear(4, 4), Splits(data, data, data), classification(), epochs=3, batch_size=8,
    ...               device="cpu")
    >>> len(history.epochs), history.test.score
    (3, 1.0)
    """
    _require("model", isinstance(model, nn.Module), model, "an nn.Module")
    _require("epochs", epochs >= 1, epochs, "1 or more")
    _require("batch_size", isinstance(batch_size, int) and batch_size >= 1, batch_size, "1 or more samples")
    _require("workers", workers >= 0, workers, "0 or more processes")
    _require("patience", patience is None or patience >= 1, patience, "1 or more epochs")
    _require("clip", clip is None or clip > 0, clip, "a positive norm")
    _require("log_every", log_every >= 1, log_every, "1 or more steps")
    _require("select", select in ("best", "last"), select, "'best' or 'last'")
    place = torch.device(device) if device is not None else ranks.default_device()
    rank, world = ranks.join(place)
    length = len(splits.train) // batch_size
    _require("batch_size", length > 0, batch_size, f"at most the {len(splits.train)} training samples")
    _require("batch_size", batch_size % world == 0, batch_size, f"a multiple of the {world} ranks")
    share = batch_size // world
    divides = isinstance(ghost_batch, int) and ghost_batch >= 1 and share % ghost_batch == 0
    expected = f"a divisor of the {share} samples that a rank takes in one step"
    _require("ghost_batch", ghost_batch is None or divides, ghost_batch, expected)
    randomness.seed(seed + rank)
    before = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), place)
    model.to(place)
    if not isinstance(optimizer, Optimizer):
        trained = [p for p in model.parameters() if p.requires_grad]
        _require(
            "model", bool(trained), type(model).__name__, "a model with parameters that require gradients"
        )
        optimizer = optimizer(trained)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    forward = ranks.wrap(model, place, world)
    run = Run(
        model, optimizer, epochs * length, place, rank, world, wrapper=None if forward is model else forward
    )
    for method in methods:
        method.start(run)
    identity = {
        "epochs": epochs,
        "batch size": batch_size,
        "ghost batch": ghost_batch,
        "training samples": len(splits.train),
        "seed": seed,
        "ranks": world,
        "clip": clip,
        "optimizer": type(optimizer).__name__,
        "learning rates": [float(group["initial_lr"]) for group in optimizer.param_groups],
        "optimizer settings": [
            {name: repr(value) for name, value in group.items() if name not in _NOT_SETTINGS}
            for group in optimizer.param_groups
        ],
        "methods": [type(method).__name__ for method in methods],
    }
    standing = Standing(identity, place)
    checkpoints = Checkpoints(folder) if isinstance(folder, str | Path) else folder
    if checkpoints and checkpoint.exists(checkpoints.folder):
        resume(checkpoints, run, methods, standing)
    writers = loggers if rank == 0 else ()
    with ExitStack() as stack:
        stack.callback(model.to, before)
        for logger in writers:
            logger.start(run.step)
            stack.callback(logger.close)
        loop = _Loop(
            run=run,
            step=Step(run, forward, task, methods, clip, ghost_batch),
            task=task,
            methods=methods,
            schedule=schedule or constant(),
            standing=standing,
            checkpoints=checkpoints,
            loggers=writers,
            log_every=log_every,
            epochs=epochs,
            bar=stack.enter_context(Bar(run.steps, run.step, shown=progress and rank == 0)),
        )
        while run.epoch < epochs and not run.stop:
            began = time.perf_counter()
            done = run.step - run.epoch * length
            batches = _batches(splits.train, share, run, done, seed, workers)
            loop.train(batches, end=(run.epoch + 1) * length)
            ranks.share_buffers_(model, world)
            found = evaluate(model, splits.validation, task, batch_size, rank, world)
            loop.close_epoch(found, patience, select == "best", time.perf_counter() - began)
        if select == "best" and standing.best_weights is not None:
            model.load_state_dict(standing.best_weights)
        for method in methods:
            method.finish(run)
        model.eval()
        test = evaluate(model, splits.test, task, batch_size, rank, world)
        loop.log("test", loss=test.loss, **{task.name: test.score})
    selected = standing.best_epoch if select == "best" and standing.best_epoch else run.epoch
    return History(tuple(standing.epochs), selected, test, task.name, run.stop or "all epochs done")


def _batches(data: Any, batch_size: int, run: Run, done: int, seed: int, workers: int) -> DataLoader[Any]:
    """This rank's batches of this epoch, without the first ``done``.

    Their order is a function of seed and epoch, so a checkpoint need not hold the loader's state.
    """
    sampler = StatefulDistributedSampler(data, run.ranks, run.rank, seed=seed, drop_last=True)
    sampler.set_epoch(run.epoch)
    sampler.load_state_dict({"yielded": done * batch_size})
    return DataLoader(
        data,
        batch_size,
        sampler=sampler,
        drop_last=True,
        num_workers=workers,
        pin_memory=run.device.type == "cuda",
        generator=torch.Generator().manual_seed(seed + run.epoch),  # not the one that dropout draws from
    )


@final
@dataclass(frozen=True)
class _Loop:
    """The parts of one call of :func:`fit`, and what is done with them again and again."""

    run: Run
    step: Step
    task: Task
    methods: Sequence[Method]
    schedule: Schedule
    standing: Standing
    checkpoints: Checkpoints | None
    loggers: Sequence[Logger]
    log_every: int
    epochs: int
    bar: Bar

    def train(self, batches: Iterable[Sequence[Tensor]], end: int) -> None:
        """Take the steps that are left of one epoch, up to step ``end`` of the run."""
        run, standing = self.run, self.standing
        # Asking a device for a number makes it wait, so where that costs it is done now and then.
        checks = 1 if run.device.type == "cpu" and run.ranks == 1 else self.log_every
        run.model.train()
        for inputs, target in batches:
            for group in run.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(run.progress)
            loss = self.step(
                inputs.to(run.device, non_blocking=True), target.to(run.device, non_blocking=True)
            )
            run.step += 1
            standing.count(loss, run.step)
            self.bar.advance()
            if run.step % checks == 0 or run.step == end:
                standing.require_finite_loss(run, self.checkpoints)
            if run.step % self.log_every == 0:
                recent = standing.recent_loss(run.ranks)
                self.log("step", epoch=run.epoch + 1, loss=recent, learning_rate=_rate(run))
                self.bar.note(f"loss {recent:.4f}")
            # The end of the epoch saves when it has been measured and logged, so that it is logged once.
            every = self.checkpoints.every if self.checkpoints else 0
            if self.checkpoints and every and run.step % every == 0 and run.step < end:
                save(self.checkpoints, run, self.methods, standing)

    def close_epoch(self, found: Metrics, patience: int | None, keep_best: bool, seconds: float) -> None:
        """Record the epoch, let methods and patience decide whether it was the last, checkpoint."""
        run, standing, name = self.run, self.standing, self.task.name
        run.epoch += 1
        record = Epoch(run.epoch, run.step, standing.epoch_loss(run.ranks), found, _rate(run), seconds)
        standing.close_epoch(record, run.model, self.task, keep_best)
        metrics = {"train_loss": record.train_loss, "loss": found.loss, name: found.score}
        for method in self.methods:
            method.after_epoch(run, metrics)
        if patience is not None and not run.stop and run.epoch - standing.best_epoch >= patience:
            run.stop = f"no better validation {name} in {patience} epochs"
        self.log("epoch", epoch=run.epoch, learning_rate=record.learning_rate, **metrics)
        self.bar.note(f"epoch {run.epoch}/{self.epochs}: validation {name} {found.score:.4f}")
        if self.checkpoints:
            save(self.checkpoints, run, self.methods, standing)

    def log(self, kind: str, **values: float) -> None:
        for logger in self.loggers:
            logger.write(kind, self.run.step, values)


def _rate(run: Run) -> float:
    return float(run.optimizer.param_groups[0]["lr"])


def _require(name: str, fine: bool, got: object, expected: str) -> None:
    if not fine:
        raise UsageError("fit", got=f"{name}={got!r}", expected=expected)
