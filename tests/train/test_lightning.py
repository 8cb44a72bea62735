from __future__ import annotations

import logging

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

lightning = pytest.importorskip("lightning.pytorch", reason="needs the extra 'lightning'")

from gracile.algebra import Attraction, HoyerSquare, Lasso, Term, channels, filters  # noqa: E402
from gracile.errors import UsageError  # noqa: E402
from gracile.train import (  # noqa: E402
    Force,
    Freeze,
    Method,
    SmoothOut,
    Structure,
    classification,
    fit,
    step,
    warmup,
)
from gracile.train import lightning as adapter  # noqa: E402

# Lightning recommends settings and warns about its own use of torch; each line names one.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:You .* `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Order(torch.utils.data.Sampler):
    """The order in which gracile.train.fit reads its data."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __len__(self):
        return self.size

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        return iter(torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist())


class Module(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        factor = step((0.5,))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: factor(done / self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ConstantRate(Module):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def under_lightning(net, splits, *methods, epochs=2, module=Module, folder=None, resume=None, **more):
    loader = DataLoader(
        splits.train, 30, sampler=Order(len(splits.train)), drop_last=True, generator=torch.Generator()
    )
    callbacks = [adapter.MethodsCallback(*methods, network=lambda m: m.net)] if methods else []
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=callbacks,
        **({"gradient_clip_val": 0.5} | more),
    )
    torch.manual_seed(0)
    wrapped = module(net)
    trainer.fit(wrapped, loader, ckpt_path=resume, weights_only=True if resume else None)
    if folder:
        trainer.save_checkpoint(folder)
    return wrapped


def under_fit(net, splits, *methods, epochs=2, clip=0.5):
    fit(
        net,
        splits,
        classification(),
        epochs=epochs,
        batch_size=30,
        schedule=step((0.5,)),
        methods=methods,
        clip=clip,
        select="last",
        device="cpu",
        progress=False,
    )


def terms(strength, penalty=None):
    return [
        Term(filters("0.weight"), penalty or Lasso(), strength),
        Term(channels("4.weight"), Lasso(), strength),
    ]


METHODS = {
    "gradient": lambda s=1e-2: Structure(terms(s), "gradient", schedule=warmup(0.5)),
    "proximal": lambda s=1e-2: Structure(terms(s), "proximal", schedule=warmup(0.5)),
    "loss": lambda s=1e-2: Structure(terms(s, HoyerSquare()), "loss", threshold=1e-3),
    "freeze": lambda s=0: Freeze(),
    "force": lambda s=0.1: Force([Attraction(filters("0.weight"), s)]),
    "noise": lambda s=0.05: SmoothOut(s),
}


def zeros(net):
    with torch.no_grad():
        net[0].weight[::3] = 0
    return net


@pytest.mark.parametrize("name", METHODS)
def test_equals_our_loop(digits, mlp, same, name):
    ours, theirs = zeros(mlp()), zeros(mlp())
    under_fit(ours, digits, METHODS[name]())
    under_lightning(theirs, digits, METHODS[name]())
    same(ours, theirs)


@pytest.mark.parametrize("mode", ["gradient", "proximal", "loss", "force", "noise"])
def test_strength_zero_is_bit_identical(digits, mlp, same, mode):
    plain, penalized = mlp(), mlp()
    under_lightning(plain, digits)
    under_lightning(penalized, digits, METHODS[mode](0.0))
    same(plain, penalized)


def test_accumulated_penalties_count_once(digits, mlp):
    """Two half batches of 30 with a mean penalty each equal one batch of 60."""
    a, b = mlp(0.0), mlp(0.0)
    for net in (a, b):
        net[1] = nn.Identity()  # batch norm sees half batches
    halves = under_lightning(a, digits, METHODS["loss"](), accumulate_grad_batches=2, gradient_clip_val=None)
    fit(
        b,
        digits,
        classification(),
        epochs=2,
        batch_size=60,
        schedule=step((0.5,)),
        methods=[METHODS["loss"]()],
        select="last",
        device="cpu",
        progress=False,
    )
    for ours, theirs in zip(b.parameters(), halves.net.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_accumulated_batches_are_parts_of_one(digits, mlp):
    """Each has noise and statistics of its own."""
    a, b = mlp(), mlp()
    under_lightning(a, digits, SmoothOut(0.05), module=ConstantRate, accumulate_grad_batches=2)
    fit(
        b,
        digits,
        classification(),
        epochs=2,
        batch_size=60,
        ghost_batch=30,
        methods=[SmoothOut(0.05)],
        clip=0.5,
        select="last",
        device="cpu",
        progress=False,
    )
    for name, value in b.state_dict().items():
        torch.testing.assert_close(a.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_noise_is_taken_off_when_training_breaks_off(digits, mlp):
    class Break(Method):
        clean = None

        def loss(self, run, loss):
            if run.step == 2:
                raise ZeroDivisionError
            return loss

        def mask(self, run):
            self.clean = run.model[0].weight.detach().clone()

    net, method = mlp(), Break()
    with pytest.raises(ZeroDivisionError):
        under_lightning(net, digits, SmoothOut(0.1), method)
    assert torch.equal(net[0].weight, method.clean)


class Count(Method):
    """Has a state that only a resume can know."""

    def __init__(self) -> None:
        self.steps, self.trace = 0, torch.zeros(())

    def before_forward(self, run):
        assert run.step == self.steps
        self.steps += 1

    def gradients(self, run):
        self.trace = 0.9 * self.trace + run.model[0].bias.grad.norm()
        run.model[0].bias.grad.add_(self.trace, alpha=1e-3)

    def state_dict(self):
        return {"steps": self.steps, "trace": self.trace}

    def load_state_dict(self, state):
        self.steps, self.trace = state["steps"], state["trace"]


def test_state_is_part_of_lightnings_checkpoints(digits, mlp, same, tmp_path):
    whole, parts = zeros(mlp(0.0)), zeros(mlp(0.0))
    under_lightning(whole, digits, Count(), Freeze(), epochs=4, module=ConstantRate)
    half = tmp_path / "half"
    under_lightning(parts, digits, Count(), Freeze(), epochs=2, module=ConstantRate, folder=half)
    again = mlp(0.0)  # without zeros: the masks must come from the checkpoint
    under_lightning(again, digits, Count(), Freeze(), epochs=4, module=ConstantRate, resume=half)
    same(whole, again)
    assert (again[0].weight[::3] == 0).all()


def test_the_module_is_left_as_it_was(digits, mlp):
    module = under_lightning(mlp(), digits, METHODS["gradient"]())
    assert "configure_gradient_clipping" not in vars(module)

    class Fail(Method):
        def gradients(self, run):
            assert "configure_gradient_clipping" in vars(wrapped[0])
            raise ZeroDivisionError

    wrapped = []

    class Remember(Module):
        def on_fit_start(self):
            wrapped.append(self)

    with pytest.raises(ZeroDivisionError):
        under_lightning(mlp(), digits, Fail(), module=Remember)
    assert "configure_gradient_clipping" not in vars(wrapped[0])


def test_a_method_may_stop_the_run(digits, mlp):
    seen = []

    class Stop(Method):
        def after_epoch(self, run, metrics):
            seen.append((run.epoch, run.step))
            run.stop = "enough"

        def finish(self, run):
            seen.append("finish")

    under_lightning(mlp(), digits, Stop(), epochs=5)
    assert seen == [(1, 12), "finish"]


def test_optimizing_by_hand_is_refused(digits, mlp):
    class Manual(Module):
        def __init__(self, net):
            super().__init__(net)
            self.automatic_optimization = False

    with pytest.raises(UsageError, match="one optimizer"):
        under_lightning(mlp(), digits, Freeze(), module=Manual, gradient_clip_val=None)


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setattr(adapter, "Callback", None)
    with pytest.raises(UsageError, match=r"gracile\[lightning\]"):
        adapter.MethodsCallback(Freeze())


def test_hooks_before_training_are_a_clear_error():
    with pytest.raises(UsageError, match="no run"):
        adapter.MethodsCallback(Freeze()).on_train_batch_start(None, None, None, 0)
