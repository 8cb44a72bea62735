"""Dead units leave, what they say stays: folding is exact or does not happen."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError
from gracile.reduce import Reduction, remove

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def kill(layer: nn.Module, units: list[int]) -> None:
    with torch.no_grad():
        layer.weight[units] = 0


def shaken(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every vector away from its initial value, batch norm statistics included."""
    torch.manual_seed(5)
    model = model.to(dtype).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.3)
    return model


def same(model: nn.Module, reduction: Reduction, *inputs: Tensor) -> bool:
    with torch.no_grad():
        want, got = model(*inputs), reduction.model(*inputs)
    limit = TOLERANCE[want.dtype]
    return bool((want - got).abs().max() <= limit * want.abs().max())


@DTYPES
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Sigmoid(), nn.GELU(), nn.ELU()])
def test_linear_bias(dtype: torch.dtype, activation: nn.Module) -> None:
    model = shaken(nn.Sequential(nn.Linear(4, 6), activation, nn.Linear(6, 3)), dtype)
    kill(model[0], [1, 4])
    reduction = remove(model, torch.randn(5, 4, dtype=dtype))
    assert reduction.model[0].weight.shape == (4, 4)
    assert set(reduction.folded) == {"2.bias"}
    assert reduction.verdict.kind == "exact"
    assert same(model, reduction, torch.randn(9, 4, dtype=dtype))


@DTYPES
def test_batch_norm_shift_through_pooling_and_flatten(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3),
        nn.BatchNorm2d(5), nn.Hardswish(), nn.Flatten(), nn.Linear(20, 3),
    )  # fmt: skip
    model = shaken(model, dtype)
    kill(model[0], [0, 5])
    kill(model[4], [2])
    reduction = remove(model, torch.randn(2, 2, 8, 8, dtype=dtype))
    assert reduction.refused == ()
    assert (reduction.model[0].out_channels, reduction.model[4].out_channels) == (4, 4)
    assert set(reduction.folded) == {"4.bias", "8.bias"}
    assert same(model, reduction, torch.randn(7, 2, 8, 8, dtype=dtype))


@DTYPES
def test_without_bias_the_running_mean_takes_it(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 5, 3, bias=False),
        nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3),
    )  # fmt: skip
    model = shaken(model, dtype)
    kill(model[0], [3])
    reduction = remove(model, torch.randn(2, 2, 8, 8, dtype=dtype))
    assert set(reduction.folded) == {"4.running_mean"}
    assert same(model, reduction, torch.randn(7, 2, 8, 8, dtype=dtype))
    # in training the batch's own mean takes the constant up
    model.train(), reduction.model.train()
    assert same(model, reduction, torch.randn(7, 2, 8, 8, dtype=dtype))


class Padded(nn.Module):
    def __init__(self, mode: str = "zeros", bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3)
        self.second = nn.Conv2d(6, 4, 3, padding=1, padding_mode=mode, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(h).mean((2, 3))  # the consumer


def test_in_place_with_an_optimizer() -> None:
    """Folded constants reach the original too, and what they were folded into keeps its momentum."""
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid(), nn.Conv2d(6, 5, 3, bias=False),
        nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3),
    )  # fmt: skip
    model = shaken(model, torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
    x, other = torch.randn(2, 2, 8, 8).double(), torch.randn(5, 2, 8, 8).double()
    model(x).square().sum().backward()
    optimizer.step()
    kill(model[0], [3])
    kill(model[3], [1, 2])
    momentum = optimizer.state[model[3].weight]["momentum_buffer"].clone()
    with torch.no_grad():
        want = model(other)
    reduction = remove(model, x)
    assert set(reduction.folded) == {"4.running_mean", "7.bias"}
    reduction.apply_(model, optimizer)
    with torch.no_grad():
        torch.testing.assert_close(model(other), want, rtol=1e-12, atol=1e-12)
        assert torch.equal(model(other), reduction.model(other))
    kept = momentum[[0, 3, 4]][:, [0, 1, 2, 4, 5]]
    assert torch.equal(optimizer.state[model[3].weight]["momentum_buffer"], kept)


def test_padding_refuses_and_says_where() -> None:
    model = shaken(Padded(), torch.float64)
    kill(model.first, [1, 4])
    with pytest.raises(RefusedError) as caught:
        remove(model, torch.randn(2, 2, 6, 6).double())
    message = str(caught.value)
    lines = Path(__file__).read_text().splitlines()
    line = 1 + next(i for i, text in enumerate(lines) if "# the consumer" in text)
    assert "first.weight[1]" in message
    assert "pads" in message
    assert "aten.convolution.default" in message
    assert f"test_fold.py:{line}" in message


def test_padding_keeps_only_the_units_that_speak() -> None:
    """A relu silences negative shifts: those units go, the others stay and are reported."""
    model = shaken(Padded(), torch.float64)
    kill(model.first, [1, 3, 4])
    with torch.no_grad():
        model.first.bias[[1, 3]] *= -1
    reduction = remove(model, torch.randn(2, 2, 6, 6).double())
    assert reduction.model.first.out_channels == 4
    assert [r.unit for r in reduction.refused] == ["first.weight[4]"]
    assert reduction.folded == {}
    assert same(model, reduction, torch.randn(3, 2, 9, 9).double())


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_padding_that_repeats_the_constant_is_exact(mode: str) -> None:
    model = shaken(Padded(mode), torch.float64)
    kill(model.first, [1, 4])
    reduction = remove(model, torch.randn(2, 2, 6, 6).double())
    assert reduction.model.first.out_channels == 4
    assert same(model, reduction, torch.randn(3, 2, 9, 9).double())


def test_no_place_for_the_constant() -> None:
    model = shaken(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)), torch.float64)
    kill(model[0], [1])
    with pytest.raises(RefusedError, match="neither a bias nor a batch norm"):
        remove(model, torch.randn(2, 4).double())
    with torch.no_grad():
        model[0].bias[1] = 0
    reduction = remove(model, torch.randn(2, 4).double())
    assert reduction.folded == {}
    assert same(model, reduction, torch.randn(3, 4).double())


class Forked(nn.Module):
    """The convolution without bias feeds a batch norm, and something else as well."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        h = self.second(self.first(x).sigmoid())
        if self.kind == "add":
            return self.norm(h) + h
        if self.kind == "cat":
            return torch.cat([self.norm(h), h], 1)
        return self.norm(h), h


@pytest.mark.parametrize("kind", ["add", "cat", "returned"])
def test_a_listener_besides_the_batch_norm(kind: str) -> None:
    model = shaken(Forked(kind), torch.float64)
    kill(model.first, [2])
    with pytest.raises(RefusedError, match="neither a bias nor a batch norm"):
        remove(model, torch.randn(2, 2, 4, 4).double())


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        return self.second(h) * h.sum(-1, keepdim=True)


def test_a_sum_over_the_units() -> None:
    model = shaken(Summed(), torch.float64)
    kill(model.first, [2])
    with pytest.raises(RefusedError, match="added up"):
        remove(model, torch.randn(2, 4).double())
    with torch.no_grad():
        model.first.bias[2] = -1  # silent after the relu
    assert same(model, remove(model, torch.randn(2, 4).double()), torch.randn(5, 4).double())


class Shared(nn.Module):
    """One consumer, used twice, for two producers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.consumer = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.consumer(self.a(x).sigmoid()) * self.consumer(self.b(x).sigmoid())


def test_shared_consumer_needs_the_same_constant_twice() -> None:
    model = shaken(Shared(), torch.float64)
    kill(model.a, [2])
    kill(model.b, [2])
    with pytest.raises(RefusedError, match="serves other places"):
        remove(model, torch.randn(2, 4).double())
    with torch.no_grad():
        model.b.bias.copy_(model.a.bias)
    reduction = remove(model, torch.randn(2, 4).double())
    assert reduction.model.consumer.in_features == 5
    assert same(model, reduction, torch.randn(5, 4).double())


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.depth = nn.Conv1d(2, 8, 1), nn.Conv1d(8, 8, 3, groups=8)
        self.last, self.out = nn.Conv1d(8, 4, 2, dilation=2), nn.Conv1d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.last(self.depth(self.first(x).sigmoid()).sigmoid()).relu())


@DTYPES
def test_depthwise_and_dilated(dtype: torch.dtype) -> None:
    model = shaken(Grouped(), dtype)
    kill(model.first, [1, 6])
    kill(model.depth, [1, 6])
    reduction = remove(model, torch.randn(2, 2, 12, dtype=dtype))
    assert (reduction.model.depth.groups, reduction.model.last.in_channels) == (6, 6)
    assert same(model, reduction, torch.randn(3, 2, 15, dtype=dtype))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.LSTM(4, 6), nn.LSTM(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)[0])[0])


@DTYPES
def test_lstm_unit_that_nobody_hears(dtype: torch.dtype) -> None:
    """All weights of the unit are zero; with biases left its state moves, but no weight listens."""
    torch.manual_seed(0)
    model = Recurrent().to(dtype)
    for unit in (1, 4):
        rows = [g * 6 + unit for g in range(4)]
        with torch.no_grad():
            model.first.weight_ih_l0[rows], model.first.weight_hh_l0[rows] = 0, 0
            model.first.weight_hh_l0[:, unit], model.second.weight_ih_l0[:, unit] = 0, 0
    reduction = remove(model, torch.randn(5, 2, 4, dtype=dtype))
    assert (reduction.model.first.hidden_size, reduction.model.second.input_size) == (4, 4)
    assert reduction.model.first.weight_hh_l0.shape == (16, 4)
    assert same(model, reduction, torch.randn(9, 3, 4, dtype=dtype))


def test_lstm_unit_that_moves_on_its_own_stays() -> None:
    torch.manual_seed(0)
    model = Recurrent().double()
    rows = [g * 6 + 2 for g in range(4)]
    with torch.no_grad():
        model.first.weight_ih_l0[rows], model.first.weight_hh_l0[rows] = 0, 0
    with pytest.raises(RefusedError, match="not constant"):
        remove(model, torch.randn(5, 2, 4).double())
    with torch.no_grad():  # without biases it is silent
        model.first.bias_ih_l0[rows], model.first.bias_hh_l0[rows] = 0, 0
    reduction = remove(model, torch.randn(5, 2, 4).double())
    assert reduction.model.first.hidden_size == 5
    assert same(model, reduction, torch.randn(9, 3, 4).double())


def test_renormalized_layers_fold_the_rest() -> None:
    """A dead residual channel narrows the layer norm; a dead hidden unit elsewhere is folded exactly."""
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.put, self.norm = nn.Linear(4, 8), nn.LayerNorm(8)
            self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.put(x)
            return self.out(h + self.fc2(nn.functional.gelu(self.fc1(self.norm(h)))))

    model = shaken(Net(), torch.float64)
    kill(model.put, [3])
    kill(model.fc2, [3])
    kill(model.fc1, [0, 7])
    x, other = torch.randn(2, 4).double(), torch.randn(6, 4).double()
    strict = remove(model, x, norms="keep")
    assert strict.verdict.kind == "exact"
    assert (strict.model.fc1.out_features, strict.model.put.out_features) == (10, 8)
    assert set(strict.folded) == {"fc2.bias"}
    assert same(model, strict, other)
    free = remove(model, x)
    assert free.verdict.kind == "renormalized"
    assert (free.model.fc1.out_features, free.model.put.out_features) == (10, 7)
    assert not same(model, free, other)
    # the reference: the layer norm told to see seven channels, the rest as it was
    keep = [0, 1, 2, 4, 5, 6, 7]

    def narrow(h: Tensor) -> Tensor:
        y = torch.zeros_like(h)
        y[..., keep] = nn.functional.layer_norm(
            h[..., keep], [7], model.norm.weight[keep], model.norm.bias[keep]
        )
        return y

    wide = copy.deepcopy(model)
    wide.norm.forward = narrow  # type: ignore[method-assign]
    assert same(wide, free, other)


def test_many_random_networks() -> None:
    """Dead units in every layer, all activations, with and without batch norm, against the original."""
    for seed in range(12):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(3):
            width, bias = int(torch.randint(4, 9, ())), bool(torch.randint(2, ()))
            layers.append(nn.Conv2d(channels, width, 3, bias=bias))
            if torch.randint(2, ()) or not bias:
                layers.append(nn.BatchNorm2d(width))
            layers.append([nn.ReLU(), nn.Tanh(), nn.Softplus(), nn.Hardtanh()][int(torch.randint(4, ()))])
            channels = width
        model = shaken(nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * 9, 2)), torch.float64)
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                kill(layer, torch.randperm(layer.out_channels)[:2].tolist())
        reduction = remove(model, torch.randn(2, 3, 9, 9).double())
        assert reduction.refused == ()
        assert all(
            small.out_channels == layer.out_channels - 2
            for layer, small in zip(model, reduction.model, strict=True)
            if isinstance(layer, nn.Conv2d)
        )
        assert same(model, reduction, torch.randn(5, 3, 9, 9).double())
