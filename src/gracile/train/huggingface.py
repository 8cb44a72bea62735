"""The same methods under the Hugging Face ``Trainer``, as a callback. Needs the extra ``hf``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from gracile.errors import FileError, UsageError
from gracile.train import checkpoint
from gracile.train.method import Method, Run

try:
    from transformers import TrainerCallback
except ModuleNotFoundError:  # told when a callback is made, so that this module can always be imported
    TrainerCallback = None


@final
class MethodsCallback(TrainerCallback or object):  # type: ignore[misc]
    """Runs methods under a Hugging Face ``Trainer``, in the order of :class:`gracile.train.Method`.

    This Trainer shows a callback neither the loss nor the gradients before they are clipped. So what
    ``Method.loss`` adds must not depend on the batch (a penalty does not): it is differentiated by itself,
    and its gradient is added after clipping, as are the effects of ``after_backward``. Without
    clipping (``max_grad_norm=0``) the result is that of :func:`gracile.train.fit`. Accumulated batches share
    one ``before_forward``, hence one draw of noise; when a pass raises, what it changed is left as it is.

    The methods' state lies in each of the Trainer's checkpoints, in the folder ``gracile``.

    Args:
        methods: called in this order at every hook.
        network: the module whose parameter names the methods use; by default the Trainer's model.

    Raises:
        UsageError: transformers is not installed.

    Example::

        trainer = transformers.Trainer(model, callbacks=[MethodsCallback(Freeze())], ...)
    """

    def __init__(self, *methods: Method, network: Callable[[nn.Module], nn.Module] | None = None) -> None:
        if TrainerCallback is None:
            raise UsageError(
                "training with the Hugging Face Trainer",
                got="no package 'transformers'",
                expected="it to be installed",
                hint="pip install 'gracile[hf]'",
            )
        self.methods = methods
        self._network = network or (lambda model: model)
        self._run: Run | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Start the methods, and give them back their state when a checkpoint is resumed.

        Raises:
            UsageError: float16 gradients would be shown before they are un-scaled.
            FileError: the checkpoint holds no state of the methods.
        """
        if args.fp16 and not args.max_grad_norm:
            raise UsageError(
                "training with the Hugging Face Trainer",
                got="fp16=True without clipping",
                expected="gradients that have been un-scaled",
                hint="set max_grad_norm, or use bf16",
            )
        model = self._network(more["model"])
        self._run = Run(
            model=model,
            optimizer=more["optimizer"],
            steps=state.max_steps,
            device=next(model.parameters()).device,
            rank=args.process_index,
            ranks=args.world_size,
            epoch=int(state.epoch or 0),
            step=state.global_step,
        )
        for method in self.methods:
            method.start(self._run)
        if state.global_step and any(method.state_dict() for method in self.methods):
            self._load(args, state)

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for method in self.methods:
            method.before_forward(self.run)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        added = nothing = torch.zeros((), device=self.run.device)
        for method in self.methods:
            method.after_forward(self.run)
        for method in self.methods:
            added = method.loss(self.run, added)
        if added is not nothing:
            _add_gradient_(added, self.run.model)
        for method in reversed(self.methods):
            method.undo(self.run)
        for method in self.methods:
            method.after_backward(self.run)
        for method in self.methods:
            method.gradients(self.run)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for method in self.methods:
            method.after_step(self.run)
        for method in self.methods:
            method.mask(self.run)
        self.run.step += 1

    def on_epoch_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Show the newest of all logged metrics; this Trainer evaluates an epoch only after this."""
        self.run.epoch = round(state.epoch)
        metrics = {k: v for row in state.log_history for k, v in row.items() if isinstance(v, float)}
        for method in self.methods:
            method.after_epoch(self.run, metrics)
        if self.run.stop:
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.is_world_process_zero:
            states = {"methods": [method.state_dict() for method in self.methods]}
            checkpoint.save(_folder(args, state) / "gracile", states, state.global_step, keep=1)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for method in self.methods:
            method.finish(self.run)

    @property
    def run(self) -> Run:
        """The run, once training has started."""
        if self._run is None:
            raise UsageError(
                "training with the Hugging Face Trainer", got="no run", expected="trainer.train()"
            )
        return self._run

    def _load(self, args: Any, state: Any) -> None:
        folder = _folder(args, state)
        if isinstance(args.resume_from_checkpoint, str):
            folder = Path(args.resume_from_checkpoint)
        if not checkpoint.exists(folder / "gracile"):
            raise FileError(
                "resuming methods under the Hugging Face Trainer",
                got=f"no state of methods in '{folder}'",
                expected="a checkpoint that was saved with this callback",
                hint="name a checkpoint that lies elsewhere in TrainingArguments(resume_from_checkpoint=...)",
            )
        for method, part in zip(self.methods, checkpoint.load(folder / "gracile")["methods"], strict=True):
            method.load_state_dict(part)


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _add_gradient_(loss: torch.Tensor, model: nn.Module) -> None:
    """Not loss.backward(): DistributedDataParallel watches that, and expects it once a step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
