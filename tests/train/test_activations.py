"""Capturing activations, and penalties on them, against losses written out by hand."""

from __future__ import annotations

import socket

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from gracile.algebra import L1, Grouping, HoyerSquare, Lasso, Term, View, elements, filters, loss_of
from gracile.errors import ShapeError, UsageError
from gracile.train import Activations, Method, Run, Structure, captured, classification, fit, warmup


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Convolutions(nn.Module):
    """One ReLU that runs twice, on activations of different shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 5, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.conv1(x)))).mean((2, 3))


@pytest.fixture
def convolutions():
    torch.manual_seed(0)
    return Convolutions()


def test_what_is_captured_is_what_flows(convolutions):
    x = torch.randn(4, 1, 8, 8)
    with captured(convolutions, ["conv1", "relu"]) as found:
        convolutions(x)
    assert not hooks_of(convolutions)
    first = convolutions.conv1(x)
    torch.testing.assert_close(found.calls["conv1"], [first])
    second = convolutions.conv2(first.relu())
    torch.testing.assert_close(found.calls["relu"], [first.relu(), second.relu()])


def test_gradients_flow_through_what_is_captured(convolutions):
    x = torch.randn(4, 1, 8, 8)
    with captured(convolutions, ["conv1"]) as found:
        convolutions(x)
    channel = Grouping((View("conv1", "batch channel h w", ("channel",)),))
    loss_of([Term(channel, Lasso(), 0.3)], found.tensors).backward()
    weight = convolutions.conv1.weight.grad.clone()
    convolutions.zero_grad()
    convolutions.conv1(x).permute(1, 0, 2, 3).flatten(1).norm(dim=1).sum().mul(0.3).backward()
    torch.testing.assert_close(weight, convolutions.conv1.weight.grad)


def test_tuples_and_dictionaries_have_parts():
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)
            self.named = Named()

        def forward(self, x: Tensor) -> Tensor:
            return self.named(self.lstm(x)[0])["last"]

    class Named(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"all": x * 2, "last": x[:, -1]}

    model, x = Parts(), torch.randn(2, 5, 3)
    with captured(model, ["lstm[0]", "lstm[1][0]", "named[all]"]) as found:
        model(x)
    states, (hidden, _) = model.lstm(x)
    torch.testing.assert_close(
        found.tensors, {"lstm[0]": states, "lstm[1][0]": hidden, "named[all]": 2 * states}
    )
    with captured(model, ["lstm"]), pytest.raises(UsageError, match=r"expected one of lstm\[0\], lstm\[1\]"):
        model(x)
    assert not hooks_of(model)


def test_names_are_checked(convolutions):
    for name, message in {
        "relu1": "'relu1', no module of Convolutions; expected one of 'conv1', 'conv2', 'relu'",
        "conv1.weight": "'conv1.weight', no module",
    }.items():
        with pytest.raises(UsageError, match=message), captured(convolutions, [name]):
            pass
    convolutions.twin = convolutions.relu
    message = "'relu' and 'twin', which are one module"
    with pytest.raises(UsageError, match=message), captured(convolutions, ["relu", "twin"]):
        pass
    assert not hooks_of(convolutions)


def test_a_module_that_ran_twice_has_no_single_tensor(convolutions):
    with captured(convolutions, ["relu"]) as found:
        convolutions(torch.zeros(1, 1, 8, 8))
    with pytest.raises(UsageError, match="ran 2 times"):
        _ = found.tensors
    with captured(convolutions, ["relu"]) as found:
        pass
    assert found.calls == {"relu": []}
    with pytest.raises(ShapeError):
        loss_of([Term(elements("relu"), L1())], found.tensors)


def test_what_is_changed_in_place_afterwards_is_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(inplace=True))
    x = torch.randn(3, 2)
    with captured(model, ["0"]) as found:
        model(x)
    with pytest.raises(UsageError, match="'0', which was changed in place"):
        _ = found.calls
    with captured(model, ["1"]) as found:
        output = model(x)
    assert found.tensors["1"] is output
    with torch.inference_mode(), captured(model, ["1"]) as found:
        model(x)
    assert found.tensors["1"].shape == (3, 2)


def test_hooks_are_removed_when_the_forward_pass_fails(convolutions):
    with pytest.raises(RuntimeError), captured(convolutions, ["relu"]):
        convolutions(torch.zeros(1, 7, 8, 8))
    assert not hooks_of(convolutions)


def test_hooks_work_inside_the_distributed_wrapper(convolutions):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        wrapper = nn.parallel.DistributedDataParallel(convolutions)
        method = Activations([Term(elements("relu"), L1(), 0.1)])
        run = Run(convolutions, SGD(convolutions.parameters(), lr=0.1), steps=1)
        method.start(run)
        method.before_forward(run)
        loss = method.loss(run, wrapper(torch.randn(4, 1, 8, 8)).sum() * 0)
        method.undo(run)
        loss.backward()
        assert convolutions.conv1.weight.grad.abs().sum() > 0
    finally:
        torch.distributed.destroy_process_group()


def step(model: nn.Module, x: Tensor, *methods: Method) -> Tensor:
    """The loss of one step, with all hooks around it."""
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=10)
    for method in methods:
        method.start(run)
        method.before_forward(run)
    loss = model(x).square().sum()
    for method in methods:
        loss = method.loss(run, loss)
    for method in methods:
        method.undo(run)
        method.finish(run)
    return loss


def test_the_method_adds_means_over_samples(convolutions):
    x = torch.randn(4, 1, 8, 8)
    terms = [Term(elements("relu"), L1(), 0.2), Term(filters("conv2"), HoyerSquare(), 0.1)]
    loss = step(convolutions, x, Activations(terms))
    first = convolutions.conv1(x).relu()
    second = convolutions.conv2(first)
    flat = second.flatten(1)
    hoyer = (flat.abs().sum(1) ** 2 / flat.square().sum(1)).mean()
    expected = convolutions(x).square().sum() + 0.2 * (first.sum() + second.relu().sum()) / 4 + 0.1 * hoyer
    torch.testing.assert_close(loss, expected)
    assert not hooks_of(convolutions)


def test_the_schedule_scales_strengths(convolutions):
    x = torch.randn(4, 1, 8, 8)
    run = Run(convolutions, SGD(convolutions.parameters(), lr=0.1), steps=10, step=2)
    losses = []
    for terms, schedule in (([0.1], None), ([0.2], warmup(0.4))):
        method = Activations([Term(elements("conv1"), L1(), s) for s in terms], schedule)
        method.before_forward(run)
        losses.append(method.loss(run, convolutions(x).sum()))
        method.undo(run)
    torch.testing.assert_close(*losses)


def test_at_strength_zero_nothing_is_captured(convolutions):
    method = Activations([Term(elements("relu"), L1(), 0.0)])
    run = Run(convolutions, SGD(convolutions.parameters(), lr=0.1), steps=10)
    method.start(run)
    method.before_forward(run)
    assert not hooks_of(convolutions)
    loss = torch.tensor(1.0)
    assert method.loss(run, loss) is loss


def test_training_makes_activations_sparse_and_leaves_no_hooks(digits):
    def trained(*methods: Method) -> tuple[nn.Module, float]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        task = classification()
        history = fit(model, digits, task, epochs=15, methods=methods, device="cpu", progress=False)
        assert not hooks_of(model)
        x = digits.validation.tensors[0]
        return (model[1](model[0](x)) != 0).double().mean().item(), history.test.score

    (dense, accuracy), (sparse, kept) = (
        trained(),
        trained(Activations([Term(elements("1"), L1(), 0.02)], warmup(0.2))),
    )
    assert sparse < 0.6 * dense
    assert kept > accuracy - 0.05


def test_hooks_are_gone_after_a_run_that_failed(digits):
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(64, 10), nn.ReLU())
            self.left = 3

        def forward(self, x: Tensor) -> Tensor:
            self.left -= 1
            if not self.left:
                raise RuntimeError("on purpose")
            return self.inner(x)

    model = Fails()
    method = Activations([Term(elements("inner.1"), L1(), 0.1)])
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, digits, classification(), epochs=1, methods=[method], device="cpu", progress=False)
    assert not hooks_of(model)


def test_activations_without_a_gradient_are_refused(convolutions):
    class Recomputed(nn.Module):
        def __init__(self, reentrant: bool) -> None:
            super().__init__()
            self.first, self.relu, self.last = nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)
            self.reentrant = reentrant

        def forward(self, x: Tensor) -> Tensor:
            inner = nn.Sequential(self.first, self.relu)
            return self.last(checkpoint(inner, x, use_reentrant=self.reentrant))

    method = Activations([Term(elements("first"), L1(), 0.1)])
    x = torch.randn(3, 2, requires_grad=True)
    with pytest.raises(UsageError, match="'first' without a gradient"):
        step(Recomputed(True), x, method)
    method.undo(Run(nn.Identity(), SGD([x], lr=0.1), steps=1))
    model = Recomputed(False)
    x = x.detach()
    loss = step(model, x, method)
    loss.backward()
    found = model.first.weight.grad.clone()
    model.zero_grad()
    first = model.first(x)
    (model.last(first.relu()).square().sum() + 0.1 * first.abs().sum() / 3).backward()
    torch.testing.assert_close(found, model.first.weight.grad)
    convolutions.conv1.requires_grad_(False)
    with pytest.raises(UsageError, match="leave frozen layers out"):
        step(convolutions, torch.randn(1, 1, 8, 8), Activations([Term(elements("conv1"), L1(), 0.1)]))


def test_a_module_that_does_not_run_is_told(convolutions):
    convolutions.unused = nn.ReLU()
    with pytest.raises(UsageError, match="no activation 'unused'"):
        step(convolutions, torch.randn(1, 1, 8, 8), Activations([Term(elements("unused"), L1(), 0.1)]))


def test_weights_and_activations_are_penalized_together(convolutions):
    x = torch.randn(4, 1, 8, 8)
    plain = step(convolutions, x)
    weights = Structure([Term(elements("conv1.weight"), Lasso(), 0.1)], mode="loss")
    activations = Activations([Term(elements("conv1"), L1(), 0.2)])
    joint = step(convolutions, x, weights, activations)
    first = convolutions.conv1(x).abs().sum() / 4
    torch.testing.assert_close(joint, plain + 0.1 * convolutions.conv1.weight.abs().sum() + 0.2 * first)


@pytest.mark.parametrize("strength", [-0.1, float("nan")])
def test_strengths_are_checked(strength):
    with pytest.raises(UsageError, match=f"strength={strength}"):
        Activations([Term(elements("relu"), L1(), strength)])


def test_unknown_modules_are_told_before_training(digits):
    model = nn.Linear(64, 10)
    method = Activations([Term(elements("relu"), L1(), 0.1)])
    with pytest.raises(UsageError, match="'relu', no module of Linear"):
        fit(model, digits, classification(), epochs=1, methods=[method], device="cpu", progress=False)


def test_other_strengths_cannot_resume():
    first, second = (Activations([Term(elements("relu"), L1(), s)]) for s in (0.1, 0.2))
    with pytest.raises(UsageError, match=r"strengths \[0.2\]; expected \[0.1\]"):
        second.load_state_dict(first.state_dict())


def test_recurrent_cells_are_penalized_at_every_step():
    class Unrolled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x.new_zeros(len(x), 3)
            for t in range(x.shape[1]):
                hidden = self.cell(x[:, t], hidden)
            return hidden

    model, x = Unrolled(), torch.randn(4, 5, 2)
    plain = step(model, x)
    loss = step(model, x, Activations([Term(elements("cell"), L1(), 0.1)]))
    states, hidden = [], x.new_zeros(4, 3)
    for t in range(5):
        hidden = model.cell(x[:, t], hidden)
        states.append(hidden)
    torch.testing.assert_close(loss, plain + 0.1 * torch.stack(states).abs().sum() / 4)


def test_functional_calls_have_no_name():
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.linear(x))

    with pytest.raises(UsageError, match=r"an nn.ReLU\(\) has"), captured(Functional(), ["relu"]):
        pass
