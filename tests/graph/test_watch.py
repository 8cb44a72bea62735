"""What watching sees, what it leaves behind (nothing), and what it says when it cannot."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import GraphError, UsageError
from gracile.graph import Operand, watch
from gracile.graph.rules.registry import ATTRIBUTE


class Net(nn.Module):
    """Two layers around a function, so that a test can say what lies between."""

    def __init__(self, between: Callable[[Tensor], Tensor], width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(width, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))


def test_every_operator_is_logged_with_module_and_line() -> None:
    model = Net(torch.relu)
    graph = watch(model, torch.randn(3, 4))
    assert [step.op for step in graph.steps] == [
        "aten.t.default", "aten.addmm.default", "aten.relu.default", "aten.t.default", "aten.addmm.default",
    ]  # fmt: skip
    assert [step.module for step in graph.steps] == ["first", "first", "", "last", "last"]
    assert all(step.source.startswith("test_watch.py:") for step in graph.steps)
    bias, x, weight = graph.steps[1].inputs
    assert (bias.name, x.name, weight.name) == ("first.bias", None, None)
    assert (x.shape, weight.shape, x.dtype) == ((3, 4), (4, 8), torch.float32)
    assert graph.steps[1].outputs[0] is graph.steps[2].inputs[0]


def test_lists_of_tensors_are_operands_too() -> None:
    graph = watch(Net(lambda h: torch.cat([h, h.relu()], 1), 16), torch.randn(3, 4))
    step = next(step for step in graph.steps if step.op == "aten.cat.default")
    assert isinstance(step.args[0], tuple)
    assert all(isinstance(item, Operand) for item in step.args[0])
    assert len(step.inputs) == 2


def test_a_model_of_torch_modules_alone_names_the_forward_that_ran() -> None:
    graph = watch(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.randn(1, 4))
    assert all(step.source.startswith("linear.py:") for step in graph.steps)


class Restless(nn.Module):
    """Changes everything that it can reach."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.calls, self.sizes, self.cached = 7, [4, 4], {}
        self.register_buffer("seen", torch.zeros(4))
        self.drop.eval()

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.sizes = [*self.sizes, x.shape[0]]
        self.cache = x
        self.cached["x"] = x
        self.seen.add_(1)
        self.seen[0] = 9
        self.register_buffer("late", torch.ones(1))
        return self.norm(self.drop(self.layer(x))) + torch.rand(4) + random.random() * 0


def test_watching_leaves_no_trace() -> None:
    model = Restless().train()
    model.drop.eval()
    state, attributes = copy.deepcopy(model.state_dict()), dict(vars(model))
    hooks = len(nn.modules.module._global_forward_hooks) + len(nn.modules.module._global_forward_pre_hooks)
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    watch(model, x)
    assert torch.equal(torch.rand(2), expected)
    assert dict(vars(model)) == attributes
    assert not model.cached
    assert type(model.calls) is int
    assert all(
        type(n) is int
        for n in [*model.sizes, model.layer.in_features, *model.drop.__dict__.values()]
        if n == 4
    )
    assert (model.training, model.drop.training, model.norm.training) == (True, False, True)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in state.items())
    assert not any(hasattr(tensor, ATTRIBUTE) for tensor in [*model.parameters(), *model.buffers(), x])
    assert hooks == len(nn.modules.module._global_forward_hooks) + len(
        nn.modules.module._global_forward_pre_hooks
    )
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_failing_model_leaves_no_trace_either() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LSTM(8, 3))
    before = torch.backends.mkldnn.enabled
    with pytest.raises(GraphError, match="shapes cannot be multiplied"):
        watch(model, torch.randn(2, 5))
    assert torch.backends.mkldnn.enabled == before
    assert model.training
    assert not any(hasattr(parameter, ATTRIBUTE) for parameter in model.parameters())
    assert type(model[0].in_features) is int


def test_an_operator_without_a_rule_pins_and_says_where() -> None:
    graph = watch(Net(lambda h: torch.linalg.qr(h)[0], 3), torch.randn(3, 4))
    assert not graph.units
    pin = next(pin for pin in graph.pins() if pin.tensor == "first.weight" and pin.dim == 0)
    assert (pin.held, pin.size, pin.share) == (8, 8, 1)
    assert pin.op == "aten.linalg_qr.default"
    assert pin.why == "no rule for this operator"
    here = test_an_operator_without_a_rule_pins_and_says_where.__code__.co_firstlineno
    assert pin.source == f"test_watch.py:{here + 1}"


def test_what_is_returned_and_what_is_given_is_pinned() -> None:
    graph = watch(nn.Linear(4, 3), torch.randn(1, 4))
    assert not graph.units
    assert {(pin.tensor, pin.dim): pin.why for pin in graph.pins()} == {
        ("weight", 0): "returned by the model",
        ("weight", 1): "held by this operator",
        ("bias", 0): "returned by the model",
    }


def test_every_tensor_of_a_nested_result_is_pinned() -> None:
    class Features(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, object]:
            h = self.first(x)
            return {"deep": [(self.last(h),)], "more": {"features": h}}

    assert not watch(Features(), torch.randn(1, 4)).units


def test_numbers_that_leave_torch_are_pinned() -> None:
    graph = watch(Net(lambda h: torch.from_numpy(h.numpy() * 2)), torch.randn(3, 4))
    assert not graph.units
    assert any("leave torch" in pin.why and "test_watch.py:" in pin.source for pin in graph.pins())


def test_a_parameter_seen_through_data_is_the_parameter() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8, bias=False), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x @ self.first.weight.data.t())

    graph = watch(Sly(), torch.randn(3, 4))
    assert len(graph.units) == 8


def test_tied_parameters_are_one_tensor() -> None:
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    last.weight = first.weight
    graph = watch(nn.Sequential(first, nn.ReLU(), last), torch.randn(2, 4))
    assert list(graph.tensors) == ["0.weight"]
    assert not graph.units  # its rows are returned, its columns are given


def test_keyword_inputs_are_passed_on() -> None:
    class Keyed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.layer(x) * scale

    assert watch(Keyed(), x=torch.randn(1, 4), scale=2.0).steps[-1].args[1] == 2.0


@pytest.mark.parametrize("norms", ["renormalise", "", None])
def test_norms_are_one_of_two(norms: str) -> None:
    with pytest.raises(UsageError, match="'renormalize' or 'keep'"):
        watch(nn.Linear(2, 2), torch.zeros(1, 2), norms=norms)


def test_models_without_a_python_forward_are_refused() -> None:
    with pytest.raises(GraphError, match="OptimizedModule"):
        watch(torch.compile(nn.Linear(2, 2)), torch.zeros(1, 2))
    with pytest.raises(GraphError, match="initialized"):
        watch(nn.LazyLinear(2), torch.zeros(1, 2))


def test_every_module_is_watched_in_evaluation_mode() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2)).train()
    ops = [step.op for step in watch(model, torch.randn(3, 4)).steps]
    assert "aten.native_dropout.default" not in ops
    assert model[2].num_batches_tracked == 0


def test_parametrized_weights_in_training_mode_are_left_alone() -> None:
    """Spectral norm improves its estimate whenever its weight is looked at in training mode."""
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)), nn.Linear(6, 2)).train()
    before = copy.deepcopy(model.state_dict())
    watch(model, torch.randn(3, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("model", [None, nn.Linear])
def test_what_is_no_model_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match=r"expected an nn\.Module"):
        watch(model, torch.randn(3, 4))
