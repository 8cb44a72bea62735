"""The same methods under Lightning, as a callback. Needs the extra ``lightning``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, final

import torch
from torch import Tensor, nn

from gracile.errors import UsageError
from gracile.train.method import Method, Run
from gracile.train.terngrad import TernGradState, terngrad_hook

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:  # told when a callback is made, so that this module can always be imported
    Callback = None


@final
class MethodsCallback(Callback or object):  # type: ignore[misc]
    """Runs methods under a Lightning ``Trainer``, in the order of :class:`gracile.train.Method`.

    Works with automatic optimization and one optimizer, with accumulation, clipping, mixed precision
    and data parallelism. The methods' state is part of Lightning's checkpoints.

    Args:
        methods: called in this order at every hook.
        network: the module whose parameter names the methods use; by default the LightningModule.

    Raises:
        UsageError: Lightning is not installed; or, when training starts, the module optimizes by hand or has
            several optimizers.

    Example::

        trainer = lightning.Trainer(callbacks=[MethodsCallback(Freeze(), network=lambda module: module.net)])
    """

    def __init__(self, *methods: Method, network: Callable[[Any], nn.Module] | None = None) -> None:
        if Callback is None:
            raise _missing()
        self.methods = methods
        self._network = network or (lambda module: module)
        self._run: Run | None = None
        self._loaded: list[Any] = []
        self._undo = ExitStack()

    def on_train_start(self, trainer: Any, module: Any) -> None:
        if not module.automatic_optimization or len(trainer.optimizers) != 1:
            raise UsageError(
                "training with Lightning",
                got=f"{len(trainer.optimizers)} optimizers, automatic={module.automatic_optimization}",
                expected="one optimizer that Lightning steps",
                hint="call the functions of gracile.algebra in training_step instead",
            )
        optimizer = trainer.optimizers[0]
        run = self._run = Run(
            model=self._network(module),
            optimizer=optimizer,
            steps=int(trainer.estimated_stepping_batches),
            device=module.device,
            rank=trainer.global_rank,
            ranks=trainer.world_size,
            epoch=trainer.current_epoch,
            step=trainer.global_step,
        )
        for method in self.methods:
            method.start(run)
        for method, state in zip(self.methods, self._loaded, strict=bool(self._loaded)):
            method.load_state_dict(state)
        self._loaded = []
        # Lightning has no hook for callbacks between clipping and the optimizer's step, so the module's
        # own is wrapped; its hook after the step finds a changed learning rate, so torch's is used.
        own = {k: v for k, v in vars(module).items() if k == "configure_gradient_clipping"}
        clip = module.configure_gradient_clipping

        def clip_then_gradients(*args: Any, **kwargs: Any) -> None:
            clip(*args, **kwargs)
            for method in self.methods:
                method.gradients(run)

        module.configure_gradient_clipping = clip_then_gradients
        self._undo.callback(vars(module).update, own)
        self._undo.callback(vars(module).pop, "configure_gradient_clipping")
        self._undo.callback(optimizer.register_step_post_hook(self._after_step).remove)

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        for method in self.methods:
            method.before_forward(self.run)

    def on_before_backward(self, trainer: Any, module: Any, loss: Tensor) -> None:
        # What arrives has been divided by the number of accumulated batches and multiplied by the scale of
        # half precision. It is replaced in place, which autograd follows: Lightning keeps this very tensor.
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        factor = trainer.accumulate_grad_batches / (scaler.get_scale() if scaler else 1.0)
        given = changed = loss * factor if factor != 1.0 else loss
        for method in self.methods:
            method.after_forward(self.run)
        for method in self.methods:
            changed = method.loss(self.run, changed)
        if changed is not given:
            loss.copy_(changed / factor if factor != 1.0 else changed)

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        for method in reversed(self.methods):
            method.undo(self.run)
        for method in self.methods:
            method.after_backward(self.run)

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        self.run.epoch = trainer.current_epoch + 1
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for method in self.methods:
            method.after_epoch(self.run, metrics)
        if self.run.stop:
            trainer.should_stop = True

    def on_train_end(self, trainer: Any, module: Any) -> None:
        self._undo.close()
        for method in self.methods:
            method.finish(self.run)

    def on_exception(self, trainer: Any, module: Any, exception: BaseException) -> None:
        self._undo.close()
        for method in reversed(self.methods if self._run else ()):
            method.undo(self.run)

    def state_dict(self) -> dict[str, Any]:
        return {"methods": [method.state_dict() for method in self.methods]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._loaded = list(state_dict["methods"])  # given to the methods after their start

    @property
    def run(self) -> Run:
        """The run, once training has started."""
        if self._run is None:
            raise UsageError("training with Lightning", got="no run", expected="trainer.fit to be called")
        return self._run

    def _after_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for method in self.methods:
            method.after_step(self.run)
        for method in self.methods:
            method.mask(self.run)
        self.run.step += 1


@final
class TernGradCallback(Callback or object):  # type: ignore[misc]
    """Gives DistributedDataParallel :func:`gracile.train.terngrad_hook`, and keeps its state in checkpoints.

    Lightning's own ``DDPStrategy(ddp_comm_hook=...)`` takes the hook as well, but on GPUs alone, and does not
    save its state; use one of the two. Residuals are not saved.

    Args:
        state: of the LightningModule that is trained.

    Raises:
        UsageError: Lightning is not installed; or, when training starts, nothing is averaged over ranks.

    Example::

        state = TernGradState(module, mode="exact")
        trainer = lightning.Trainer(strategy="ddp", devices=2, callbacks=[TernGradCallback(state)])
    """

    def __init__(self, state: TernGradState) -> None:
        if Callback is None:
            raise _missing()
        self.state = state

    def on_train_start(self, trainer: Any, module: Any) -> None:
        parallel = trainer.strategy.model
        if not isinstance(parallel, nn.parallel.DistributedDataParallel):
            raise UsageError(
                "averaging gradients with Lightning",
                got=f"strategy {type(trainer.strategy).__name__}",
                expected="one that uses DistributedDataParallel",
                hint='Trainer(strategy="ddp")',
            )
        parallel.register_comm_hook(self.state, terngrad_hook)

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict() | {"residuals": {}}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self.state.load_state_dict(state_dict)


def _missing() -> UsageError:
    return UsageError(
        "training with Lightning",
        got="no package 'lightning'",
        expected="it to be installed",
        hint="pip install 'gracile[lightning]'",
    )
