from __future__ import annotations

import copy
import json
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import Dataset, TensorDataset

from gracile.errors import FileError, GracileError, UsageError
from gracile.train import (
    Checkpoints,
    JsonLines,
    Method,
    Splits,
    Task,
    checkpoint,
    classification,
    cosine,
    evaluate,
    fit,
    language_modeling,
)


def quick(model, splits, **more):
    arguments = {"epochs": 2, "batch_size": 32, "device": "cpu", "progress": False} | more
    return fit(model, splits, classification(), **arguments)


def test_equals_a_loop_written_by_hand(digits, mlp, same):
    ours, theirs = mlp(), mlp()
    quick(ours, digits, clip=0.5, schedule=cosine(), select="last", seed=7)

    torch.manual_seed(7)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.05, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2 * (360 // 32))
    images, labels = digits.train.tensors
    for epoch in range(2):
        order = torch.randperm(360, generator=torch.Generator().manual_seed(7 + epoch))
        theirs.train()
        for batch in order.split(32)[:-1]:
            optimizer.zero_grad()
            functional.cross_entropy(theirs(images[batch]), labels[batch]).backward()
            nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            optimizer.step()
            scheduler.step()
    for name, value in theirs.state_dict().items():
        # The two cosines round differently; everything else is the same arithmetic.
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_learns_and_reports(digits, mlp):
    model = mlp(0.1)
    history = quick(model, digits, epochs=12)
    assert history.test.score > 0.85
    assert [epoch.number for epoch in history.epochs] == list(range(1, 13))
    assert history.epochs[-1].step == 12 * (360 // 32)
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss
    assert history.best.score == max(epoch.validation.score for epoch in history.epochs)
    again = evaluate(model, digits.validation, classification())
    assert (again.score, again.loss) == pytest.approx((history.best.score, history.best.loss), rel=1e-6)
    assert evaluate(model, digits.test, classification()).score == pytest.approx(history.test.score)
    assert not model.training
    assert history.stopped == "all epochs done"


class Watcher(Method):
    """Write down which hook was called when."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def start(self, run):
        self.calls.append(("start", run.step))

    def before_forward(self, run):
        self.calls.append(("before_forward", run.step))

    def loss(self, run, loss):
        self.calls.append(("loss", run.step))
        return loss

    def after_backward(self, run):
        self.calls.append(("after_backward", run.step))

    def gradients(self, run):
        self.calls.append(("gradients", run.step))

    def after_step(self, run):
        self.calls.append(("after_step", run.step))

    def mask(self, run):
        self.calls.append(("mask", run.step))

    def after_epoch(self, run, metrics):
        self.calls.append(("after_epoch", run.step))
        assert set(metrics) == {"train_loss", "loss", "accuracy"}
        assert 0 <= run.progress <= 1

    def finish(self, run):
        self.calls.append(("finish", run.step))


def test_hooks_come_in_the_documented_order(digits, mlp):
    watcher = Watcher()
    quick(mlp(), digits, epochs=1, batch_size=180, methods=[watcher])
    step = ["before_forward", "loss", "after_backward", "gradients", "after_step", "mask"]
    expected = [("start", 0), *((name, 0) for name in step), *((name, 1) for name in step)]
    assert watcher.calls == [*expected, ("after_epoch", 2), ("finish", 2)]


def test_gradients_come_after_clipping(digits, mlp):
    class Norm(Method):
        def gradients(self, run):
            norms = [p.grad.norm() for p in run.model.parameters()]
            assert torch.stack(norms).norm() <= 1e-3 * 1.001

    quick(mlp(), digits, epochs=1, clip=1e-3, methods=[Norm()])


class Touched(Dataset):
    """Remembers that it was read."""

    def __init__(self, data) -> None:
        self.data, self.reads = data, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.reads += 1
        return self.data[index]


def test_test_data_is_read_once_at_the_end(digits, mlp):
    test = Touched(digits.test)

    class Check(Method):
        def after_epoch(self, run, metrics):
            assert test.reads == 0

    quick(mlp(), Splits(digits.train, digits.validation, test), epochs=3, methods=[Check()])
    assert test.reads == len(digits.test)


def test_selection_does_not_depend_on_test_data(digits, mlp, same):
    images, labels = digits.test.tensors
    scrambled = TensorDataset(images, (labels + 3) % 10)
    a, b = mlp(), mlp()
    first = quick(a, digits, epochs=4, patience=1)
    second = quick(b, Splits(digits.train, digits.validation, scrambled), epochs=4, patience=1)
    same(a, b)
    assert first.epochs == second.epochs
    assert first.test != second.test


class Scores:
    """A task whose validation score is whatever the script says."""

    def __init__(self, scores) -> None:
        self.scores = iter(scores)

    def task(self, better="higher"):
        return Task(
            loss=functional.cross_entropy,
            items=lambda output, target: torch.ones(len(target)),
            name="scripted",
            better=better,
            summary=lambda mean: next(self.scores),
        )


def test_early_stop_counts_epochs_without_a_better_score(digits, mlp):
    scores = Scores([0.1, 0.5, 0.4, 0.5, 0.9, 0.0])
    history = fit(
        mlp(), digits, scores.task(), epochs=9, patience=2, batch_size=180, device="cpu", progress=False
    )
    assert (len(history.epochs), history.selected) == (4, 2)
    assert history.stopped == "no better validation scripted in 2 epochs"


def test_best_weights_are_those_of_the_best_epoch(digits, mlp, same):
    seen = []

    class Keep(Method):
        def after_epoch(self, run, metrics):
            seen.append(copy.deepcopy(run.model))

    for better, scores, best in (("higher", [1, 3, 2, 0], 2), ("lower", [3, 2, 1, 2, 0], 3)):
        seen.clear()
        model = mlp()
        task = Scores([*scores, 0.0]).task(better)
        history = fit(
            model, digits, task, epochs=4, batch_size=180, device="cpu", methods=[Keep()], progress=False
        )
        assert history.selected == best
        same(model, seen[best - 1])
    model = mlp()
    last = fit(
        model,
        digits,
        Scores([1, 3, 2, 0, 0]).task(),
        epochs=4,
        batch_size=180,
        device="cpu",
        methods=[Keep()],
        select="last",
        progress=False,
    )
    assert last.selected == 4
    same(model, seen[-1])


def test_a_method_may_stop_the_run(digits, mlp):
    class Stop(Method):
        def after_epoch(self, run, metrics):
            run.stop = "enough"

    history = quick(mlp(), digits, epochs=5, methods=[Stop()])
    assert (len(history.epochs), history.stopped) == (1, "enough")


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0},
        {"batch_size": 361},
        {"batch_size": 0},
        {"batch_size": -5},
        {"batch_size": 8.0},
        {"workers": -1},
        {"patience": 0},
        {"clip": 0.0},
        {"clip": float("nan")},
        {"select": "newest"},
        {"log_every": 0},
    ],
)
def test_bad_arguments_are_named(digits, mlp, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        quick(mlp(), digits, **wrong)


def test_an_empty_split_is_refused(digits):
    with pytest.raises(UsageError, match="empty validation"):
        Splits(digits.train, TensorDataset(torch.zeros(0)), digits.test)


def test_evaluation_weighs_every_sample_once_and_restores_modes(digits, mlp):
    model = mlp()
    model.train()
    model[1].eval()
    generator = torch.get_rng_state()
    found = evaluate(model, digits.validation, classification(), batch_size=7)
    assert torch.equal(torch.get_rng_state(), generator)
    assert model.training
    assert model[3].training
    assert not model[1].training
    images, labels = digits.validation.tensors
    model.eval()
    output = model(images)
    assert found.loss == pytest.approx(functional.cross_entropy(output, labels).item(), rel=1e-5)
    assert found.score == pytest.approx((output.argmax(1) == labels).double().mean().item())


def test_language_modeling_scores_perplexity_by_token():
    class Bigram(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 5)

        def forward(self, tokens):
            return self.table(tokens), "a hidden state"

    tokens = torch.arange(200).remainder(5).view(20, 10)
    data = TensorDataset(tokens, (tokens + 1).remainder(5))
    torch.manual_seed(0)
    history = fit(
        Bigram(),
        Splits(data, data, data),
        language_modeling(),
        epochs=30,
        batch_size=10,
        optimizer=partial(torch.optim.Adam, lr=0.3),
        device="cpu",
        progress=False,
    )
    assert history.score == "perplexity"
    assert 1.0 <= history.test.score < 1.1
    assert history.test.score == pytest.approx(torch.tensor(history.test.loss).exp().item(), rel=1e-4)


def poisoned(digits, at: int):
    """Training data of which one sample is not a number."""
    images, labels = digits.train.tensors
    images = images.clone()
    images[at] = float("nan")
    return Splits(TensorDataset(images, labels), digits.validation, digits.test)


def test_a_loss_that_is_not_finite_stops_and_names_the_step(digits, mlp, tmp_path):
    class Poison(Method):
        def loss(self, run, loss):
            return loss

        def before_forward(self, run):
            if run.step == 16:
                with torch.no_grad():
                    run.model[4].bias[0] = float("nan")

    folder = Checkpoints(tmp_path / "run", every=5)
    with pytest.raises(GracileError, match=r"not finite at step 17 \(epoch 2\)"):
        quick(mlp(), digits, epochs=3, folder=folder, methods=[Poison()])
    kept = checkpoint.load(tmp_path / "run")
    assert kept["standing"]["step"] == 15
    assert all(value.isfinite().all() for value in kept["model"].values())


def test_poisoned_data_stops_the_run(digits, mlp):
    with pytest.raises(GracileError, match="not finite at step"):
        quick(mlp(), poisoned(digits, at=100))


def test_weights_that_are_not_finite_are_never_saved(digits, mlp, tmp_path):
    class Poison(Method):
        def after_step(self, run):
            if run.step == 9:  # the last step before a checkpoint: no loss has seen it
                with torch.no_grad():
                    run.model[0].weight[0, 0] = float("inf")

    with pytest.raises(GracileError, match=r"'0.weight' not finite after step 10"):
        quick(mlp(), digits, folder=Checkpoints(tmp_path, every=5), methods=[Poison()])
    assert checkpoint.load(tmp_path)["standing"]["step"] == 5


def test_log_has_one_row_for_each_interval_and_epoch(digits, mlp, tmp_path):
    log = JsonLines(tmp_path / "deep" / "log.jsonl")
    history = quick(mlp(), digits, loggers=[log], log_every=4)
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "step"] == [4, 8, 12, 16, 20]
    assert [(row["epoch"], row["step"]) for row in rows if row["kind"] == "epoch"] == [(1, 11), (2, 22)]
    assert [row["accuracy"] for row in rows if row["kind"] == "test"] == [history.test.score]


def test_an_unwritable_log_is_a_clear_error(digits, mlp, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="log"):
        quick(mlp(), digits, loggers=[JsonLines(tmp_path / "file" / "log.jsonl")])


def test_the_bar_is_silent_unless_on_a_terminal(digits, mlp, monkeypatch, capfd):
    quick(mlp(), digits, epochs=1, progress=True)
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes the stream for a terminal
    quick(mlp(), digits, epochs=1, progress=True)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "11/11" in shown.err
    assert "validation accuracy" in shown.err
    quick(mlp(), digits, epochs=1, progress=False)
    assert capfd.readouterr() == ("", "")


def test_an_optimizer_that_exists_is_used(digits, mlp, same):
    a, b = mlp(), mlp()
    quick(a, digits)
    quick(b, digits, optimizer=torch.optim.SGD(b.parameters(), lr=0.05, momentum=0.9))
    same(a, b)


def test_workers_load_the_same_data(digits, mlp, same):
    a, b = mlp(), mlp()
    quick(a, digits, epochs=1)
    quick(b, digits, epochs=1, workers=1)
    same(a, b)


def test_frozen_parameters_are_left_out(digits, mlp):
    model = mlp()
    model[0].weight.requires_grad_(False)
    before = model[0].weight.clone()
    quick(model, digits)
    assert torch.equal(model[0].weight, before)


def test_a_model_with_nothing_to_train_is_refused(digits, mlp):
    for model in (nn.Flatten(), mlp().requires_grad_(False)):
        with pytest.raises(UsageError, match="parameters that require gradients"):
            quick(model, digits)
    with pytest.raises(UsageError, match=r"an nn\.Module"):
        quick(nn.Linear, digits)


def test_an_empty_data_set_cannot_be_evaluated():
    with pytest.raises(UsageError, match="empty data set"):
        evaluate(nn.Identity(), TensorDataset(torch.zeros(0, 2)), classification())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_of_half_precision_count_every_token(dtype):
    logits = torch.randn(40, 100, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens = torch.arange(4000).reshape(40, 100) % 11
    each = functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").double()
    found = evaluate(nn.Identity(), TensorDataset(logits, tokens), language_modeling(), batch_size=40)
    assert math.log(found.score) == pytest.approx(each.mean().item(), rel=1e-9)
