"""Networks with winners: what they compute, and that they train, save, resume and export as any other."""

from __future__ import annotations

import copy

import onnxruntime
import pytest
import torch
from torch import nn

from gracile.algebra import keep_winners
from gracile.cost import count, sparse_macs
from gracile.errors import UsageError
from gracile.files import read_tensors, write_tensors
from gracile.graph import watch
from gracile.reduce import remove
from gracile.train import (
    Checkpoints,
    Method,
    Run,
    Winners,
    classification,
    evaluate,
    fit,
    insert_after,
    insert_winners,
    winner_rates,
)


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 20), nn.LeakyReLU(0.1), nn.Linear(20, 10)
    )


def train(model: nn.Module, digits, *methods: Method, epochs: int = 6, **more):
    return fit(
        model, digits, classification(), epochs=epochs, methods=methods, device="cpu", progress=False, **more
    )


@pytest.fixture(scope="module")
def trained(digits):
    model = mlp()
    train(model, digits, epochs=15)
    return model


def test_inserted_winners_mask_what_the_modules_put_out():
    model, x = mlp(), torch.randn(5, 64)
    first = model[1](model[0](x))
    second = model[3](model[2](keep_winners(first, 0.3)))
    expected = model[4](keep_winners(second, 0.25, sample=0.5))
    names = set(dict(model.named_parameters()))
    insert_winners(model, {"1": 0.3})
    insert_winners(model, {"3": 0.25}, sample=0.5)
    model.eval()
    torch.testing.assert_close(model(x), expected)
    assert set(dict(model.named_parameters())) == names
    assert set(model.state_dict()) == names


def test_samples_are_drawn_in_training_and_fixed_in_eval_mode():
    winners, x = Winners(0.2, sample=0.1), torch.randn(3, 500)
    assert not torch.equal(winners(x), winners(x))
    winners.eval()
    assert torch.equal(winners(x), keep_winners(x, 0.2, 0.1))
    exact = Winners(0.2)
    assert torch.equal(exact(x), exact.eval()(x))


def test_dropout_follows_the_mask():
    model = mlp()
    insert_winners(model, {"1": 0.25}, dropout=0.5)
    assert all(m.training for m in model[1])
    assert [type(m) for m in model[1]] == [nn.ReLU, Winners, nn.Dropout]
    assert model[1][2].p == 0.25


def test_a_static_threshold_is_a_module_of_torch():
    model, x = mlp(), torch.randn(5, 64)
    insert_after(model, {"3": [nn.Hardshrink(0.1)]})
    hidden = model[2](model[1](model[0](x)))
    activated = nn.functional.leaky_relu(hidden, 0.1)
    expected = model[4](torch.where(activated.abs() > 0.1, activated, 0.0))
    torch.testing.assert_close(model(x), expected)


def test_modules_inside_others_and_shared_ones():
    inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model = nn.ModuleDict({"body": inner, "list": nn.ModuleList([nn.Tanh()])})
    insert_winners(model, {"body.1": 0.5, "list.0": 0.5})
    assert isinstance(model["body"][1][1], Winners)
    assert isinstance(model["list"][0][1], Winners)


def test_training_recovers_what_the_masks_cost(trained, digits):
    task = classification()
    dense = evaluate(trained, digits.validation, task).score
    model = copy.deepcopy(trained)
    insert_winners(model, {"1": 0.1, "3": 0.2})
    before = evaluate(model, digits.validation, task).score
    train(model, digits, epochs=8, optimizer=lambda p: torch.optim.Adadelta(p, lr=0.3))
    after = evaluate(model, digits.validation, task).score
    assert before < dense - 0.05
    assert after > before + 0.5 * (dense - before)
    cost = sparse_macs(model, [digits.test.tensors[0]])
    assert cost.rows[1].inputs <= 0.1 + 1e-6
    assert cost.rows[2].inputs == pytest.approx(0.2)


class Interrupt(Method):
    def __init__(self, at: int) -> None:
        self.at = at

    def mask(self, run: Run) -> None:
        if run.step == self.at:
            raise KeyboardInterrupt


def test_resumed_equals_uninterrupted(digits, tmp_path, same):
    def network(seed: int) -> nn.Module:
        model = mlp(seed)
        insert_winners(model, {"1": 0.2, "3": 0.4}, sample=0.5, dropout=0.5)
        return model

    whole, resumed = network(0), network(1)
    train(whole, digits, Interrupt(-1))
    with pytest.raises(KeyboardInterrupt):
        train(network(0), digits, Interrupt(17), folder=Checkpoints(tmp_path, every=4))
    train(resumed, digits, Interrupt(-1), folder=Checkpoints(tmp_path, every=4))
    same(whole, resumed)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_network_saves_counts_and_exports(trained, tmp_path):
    model, x = copy.deepcopy(trained).eval(), torch.randn(3, 64)
    insert_winners(model, {"1": 0.2, "3": 0.4}, sample=0.5)
    write_tensors(tmp_path / "weights.safetensors", model.state_dict())
    fresh = mlp(7).eval()
    insert_winners(fresh, {"1": 0.2, "3": 0.4}, sample=0.5)
    assert not any(module.training for module in fresh.modules())
    fresh.load_state_dict(read_tensors(tmp_path / "weights.safetensors"))
    exported = torch.export.export(model, (x,))  # first: what is made while tracing must not be kept
    torch.testing.assert_close(exported.module()(x), model(x))
    assert torch.equal(fresh(x), model(x))
    assert count(model, x).unmodeled == ()
    path = str(tmp_path / "winners.onnx")
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model(x), rtol=1e-4, atol=1e-5)


def test_removal_leaves_what_competes(trained):
    """Who wins depends on how many compete, so no unit in front of winners is taken out."""
    model, x = copy.deepcopy(trained), torch.randn(3, 64)
    insert_winners(model, {"1": 0.2})
    model[0].weight.data[:5] = 0
    model[0].bias.data[:5] = 0
    model[2].weight.data[:3] = 0
    model[2].bias.data[:3] = 0
    model.eval()
    expected = model(x)
    assert len(watch(model, x).units) == 20
    reduced = remove(model, x).model
    assert (reduced[0].out_features, reduced[2].out_features) == (40, 17)
    torch.testing.assert_close(reduced(x), expected)


def test_rates_are_the_smallest_that_cost_less(trained, digits):
    task = classification()
    candidates = (0.8, 0.4, 0.2, 0.1, 0.05)
    rates = winner_rates(trained, digits.validation, task, ["1", "3"], allowed=0.03, candidates=candidates)
    dense = evaluate(trained, digits.validation, task).score
    for name, rate in rates.items():
        lost = {}
        for candidate in candidates:
            model = copy.deepcopy(trained)
            insert_winners(model, {name: candidate})
            lost[candidate] = dense - evaluate(model, digits.validation, task).score
        failing = [c for c in candidates if not lost[c] < 0.03]
        assert rate == min(c for c in (1.0, *candidates) if c > max(failing, default=0.0))
        assert rate < 1
    assert all(type(module) is not Winners for module in trained.modules())
    none = winner_rates(trained, digits.validation, task, ["1"], allowed=1e-9, candidates=[0.02])
    assert none == {"1": 1.0}


def test_bad_input_is_told(trained, digits):
    model = mlp()
    cases = {
        "'0', a Linear with parameters": lambda: insert_winners(model, {"0": 0.5}),
        "'9', no module inside Sequential; expected one of 1, 3": lambda: insert_winners(model, {"9": 0.5}),
        "'', no module inside": lambda: insert_winners(model, {"": 0.5}),
        "rate=0": lambda: insert_winners(model, {"1": 0}),
        "sample=2": lambda: Winners(0.5, sample=2),
        "dropout=1.5": lambda: insert_winners(model, {"1": 0.5}, dropout=1.5),
        "allowed=0": lambda: winner_rates(model, digits.validation, classification(), ["1"], allowed=0),
    }
    for message, call in cases.items():
        with pytest.raises(UsageError, match=message):
            call()
    assert str(model) == str(mlp())
