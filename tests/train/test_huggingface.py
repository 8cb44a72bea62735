from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

transformers = pytest.importorskip("transformers", reason="needs the extra 'hf'")
pytest.importorskip("accelerate", reason="needs the extra 'hf'")

from gracile.algebra import Attraction, HoyerSquare, Lasso, Term, channels, filters  # noqa: E402
from gracile.errors import FileError, UsageError  # noqa: E402
from gracile.train import (  # noqa: E402
    Force,
    Freeze,
    Method,
    SmoothOut,
    Structure,
    classification,
    constant,
    fit,
    warmup,
)
from gracile.train import huggingface as adapter  # noqa: E402


class Order(torch.utils.data.Sampler):
    """The order in which gracile.train.fit reads its data."""

    def __init__(self, size: int) -> None:
        self.size, self.epoch = size, 0

    def __len__(self):
        return self.size

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        return iter(order.tolist())


class Wrapped(nn.Module):
    """What a Hugging Face model looks like from outside."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images, labels=None):
        logits = self.net(images)
        return {"loss": functional.cross_entropy(logits, labels), "logits": logits}


class Trainer(transformers.Trainer):
    def get_train_dataloader(self):
        def collate(pairs):
            images, labels = zip(*pairs, strict=True)
            return {"images": torch.stack(images), "labels": torch.stack(labels)}

        return DataLoader(
            self.train_dataset,
            self.args.train_batch_size,
            sampler=Order(len(self.train_dataset)),
            drop_last=True,
            collate_fn=collate,
            generator=torch.Generator(),
        )


def under_trainer(net, splits, folder, *methods, epochs=2, resume=None, batch_size=30, **more):
    model = Wrapped(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    arguments = {
        "output_dir": str(folder),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": batch_size,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "seed": 0,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    } | more
    trainer = Trainer(
        model,
        transformers.TrainingArguments(**arguments),
        train_dataset=splits.train,
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)),
        callbacks=[adapter.MethodsCallback(*methods, network=lambda m: m.net)] if methods else [],
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)


def under_fit(net, splits, *methods, batch_size=30):
    fit(
        net,
        splits,
        classification(),
        epochs=2,
        batch_size=batch_size,
        schedule=constant(),
        methods=methods,
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
def test_equals_our_loop(digits, mlp, same, tmp_path, name):
    ours, theirs = zeros(mlp()), zeros(mlp())
    under_fit(ours, digits, METHODS[name]())
    under_trainer(theirs, digits, tmp_path, METHODS[name]())
    same(ours, theirs)


@pytest.mark.parametrize("mode", ["gradient", "proximal", "loss", "force", "noise"])
def test_strength_zero_is_bit_identical(digits, mlp, same, tmp_path, mode):
    plain, penalized = mlp(), mlp()
    under_trainer(plain, digits, tmp_path, max_grad_norm=1.0)
    under_trainer(penalized, digits, tmp_path, METHODS[mode](0.0), max_grad_norm=1.0)
    same(plain, penalized)


def test_accumulated_penalties_count_once(digits, mlp, tmp_path):
    a, b = mlp(0.0), mlp(0.0)
    for net in (a, b):
        net[1] = nn.Identity()  # batch norm sees half batches
    under_trainer(a, digits, tmp_path, METHODS["loss"](), gradient_accumulation_steps=2)
    under_fit(b, digits, METHODS["loss"](), batch_size=60)
    for ours, theirs in zip(b.parameters(), a.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


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


def test_state_is_part_of_the_trainers_checkpoints(digits, mlp, same, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 7}
    whole, again = zeros(mlp()), mlp()  # again without zeros: the masks must come from the checkpoint
    under_trainer(whole, digits, tmp_path, Count(), Freeze(), **saving)
    under_trainer(again, digits, tmp_path, Count(), Freeze(), resume=tmp_path / "checkpoint-7")
    same(whole, again)
    assert (again[0].weight[::3] == 0).all()


def test_a_checkpoint_without_state_is_a_clear_error(digits, mlp, tmp_path):
    under_trainer(mlp(), digits, tmp_path, save_strategy="steps", save_steps=7)
    with pytest.raises(FileError, match="no state of methods"):
        under_trainer(mlp(), digits, tmp_path, Count(), resume=tmp_path / "checkpoint-7")


def test_a_checkpoint_may_lie_elsewhere(digits, mlp, same, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 7}
    whole, again = mlp(), mlp()
    under_trainer(whole, digits, tmp_path / "a", Count(), **saving)
    moved = tmp_path / "b" / "checkpoint-7"
    shutil.copytree(tmp_path / "a" / "checkpoint-7", moved)
    more = {"resume_from_checkpoint": str(moved)}
    under_trainer(again, digits, tmp_path / "c", Count(), resume=moved, **more)
    same(whole, again)


def test_a_method_may_stop_the_run(digits, mlp, tmp_path):
    seen = []

    class Stop(Method):
        def after_epoch(self, run, metrics):
            seen.append((run.epoch, run.step))
            run.stop = "enough"

        def finish(self, run):
            seen.append("finish")

    under_trainer(mlp(), digits, tmp_path, Stop(), epochs=5)
    assert seen == [(1, 12), "finish"]


def test_scaled_gradients_are_refused():
    class Arguments:
        fp16, max_grad_norm = True, 0.0

    with pytest.raises(UsageError, match="fp16"):
        adapter.MethodsCallback(Freeze()).on_train_begin(Arguments(), None, None)


def test_a_missing_extra_is_told(monkeypatch):
    monkeypatch.setattr(adapter, "TrainerCallback", None)
    with pytest.raises(UsageError, match=r"gracile\[hf\]"):
        adapter.MethodsCallback(Freeze())


def test_hooks_before_training_are_a_clear_error():
    with pytest.raises(UsageError, match="no run"):
        adapter.MethodsCallback(Freeze()).on_step_begin(None, None, None)
