"""apply_: everything of a parameter's shape is sliced alike, or nothing changes."""

from __future__ import annotations

import copy
import types

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from gracile.errors import GracileError, ShapeError, UsageError
from gracile.graph.cut import Cut
from gracile.reduce import apply_

KEEP = [0, 2, 3]
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "rprop": lambda p: torch.optim.Rprop(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
}


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


def mlp_cut() -> Cut:
    return Cut({"0.weight": {0: KEEP}, "0.bias": {0: KEEP}, "2.weight": {1: KEEP}})


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4, generator=generator)).square().sum().backward()
        optimizer.step()


def snapshot(model: nn.Module) -> dict[str, object]:
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "fields": {
            n: {k: v for k, v in vars(m).items() if isinstance(v, (int, tuple))}
            for n, m in model.named_modules()
        },
    }


def same(a: dict[str, object], b: dict[str, object]) -> bool:
    return a["fields"] == b["fields"] and all(
        torch.equal(v, b["state"][k])
        for k, v in a["state"].items()  # type: ignore[index,attr-defined]
    )


def test_values_grads_identity_and_sizes() -> None:
    model = mlp()
    model(torch.randn(3, 4)).sum().backward()
    before = {n: (p, p.detach().clone(), p.grad.clone()) for n, p in model.named_parameters()}
    model[2].weight.requires_grad_(False)
    apply_(model, mlp_cut())
    index = {
        "0.weight": (KEEP,),
        "0.bias": (KEEP,),
        "2.weight": (slice(None), KEEP),
        "2.bias": (slice(None),),
    }
    for name, p in model.named_parameters():
        object_, value, grad = before[name]
        assert p is object_
        assert torch.equal(p, value[index[name]])
        assert torch.equal(p.grad, grad[index[name]])
        assert p.untyped_storage().nbytes() == p.numel() * 4  # the old memory is free
    assert not model[2].weight.requires_grad
    assert (model[0].out_features, model[2].in_features, model[2].out_features) == (3, 3, 2)
    model(torch.randn(3, 4)).sum().backward()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_follows(name: str) -> None:
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    old = copy.deepcopy(optimizer.state_dict()["state"])
    shapes = [tuple(p.shape) for p in model.parameters()]
    apply_(model, mlp_cut(), optimizer)
    new = optimizer.state_dict()["state"]
    kept = [{0: KEEP}, {0: KEEP}, {1: KEEP}, {}]
    moved = 0
    for number, entries in old.items():
        for key, value in entries.items():
            expected = value
            if torch.is_tensor(value) and value.ndim == len(shapes[number]):
                for dim, indices in kept[number].items():
                    if value.shape[dim] == shapes[number][dim]:
                        expected = expected.index_select(dim, torch.tensor(indices))
                        moved += 1
            if torch.is_tensor(expected):
                assert torch.equal(new[number][key], expected), key
            else:
                assert new[number][key] == expected
    assert moved >= 3
    assert [p for g in optimizer.param_groups for p in g["params"]] == list(model.parameters())
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 4)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_training_goes_on_as_if_the_dead_units_had_never_been() -> None:
    """Units that are dead and stay dead: the reduced run equals the full one, momentum included."""
    full = mlp()
    with torch.no_grad():
        for tensor, where in ((full[0].weight, [1, 4]), (full[0].bias, [1, 4])):
            tensor[where] = 0
        full[2].weight[:, [1, 4]] = 0
    reduced = copy.deepcopy(full)
    runs = []
    for model in (full, reduced):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        train(model, optimizer)
        runs.append(optimizer)
    apply_(reduced, mlp_cut(), runs[1])
    for model, optimizer in zip((full, reduced), runs, strict=True):
        train(model, optimizer, 5)
    torch.testing.assert_close(full[0].weight[KEEP], reduced[0].weight)
    torch.testing.assert_close(full[2].weight[:, KEEP], reduced[2].weight)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(x))


@pytest.mark.parametrize("name", ["embed.weight", "head.weight"])
def test_tied_weights_stay_tied(name: str) -> None:
    model = Tied()
    apply_(model, Cut({name: {1: [1, 4]}}))
    assert model.head.weight is model.embed.weight
    assert (model.embed.embedding_dim, model.head.in_features, model.head.out_features) == (2, 2, 7)
    assert model(torch.tensor([3])).shape == (1, 7)
    with pytest.raises(UsageError, match="tied"):
        apply_(Tied(), Cut({"embed.weight": {1: [1, 4]}, "head.weight": {1: [1, 3]}}))


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(
            heads=4, sizes=[6, 8], shape=(2, 3), name="x", inner=types.SimpleNamespace(n=3)
        )
        self.fc = nn.Linear(2, 2)
        self.flag = True

    def method(self) -> None: ...


def test_attributes_through_plain_objects() -> None:
    model = Configured()
    apply_(
        model,
        Cut(
            attributes={
                "config.heads": 2,
                "config.sizes": [3, 8],
                "config.shape": [1, 3],
                "config.inner.n": 1,
            }
        ),
    )
    assert (model.config.heads, model.config.sizes, model.config.shape) == (2, [3, 8], (1, 3))
    assert model.config.inner.n == 1


BAD = {
    "unknown tensor": Cut({"nope.weight": {0: [0]}}),
    "no such dimension": Cut({"fc.weight": {2: [0]}}),
    "negative dimension": Cut({"fc.weight": {-1: [0]}}),
    "out of range": Cut({"fc.weight": {0: [0, 2]}}),
    "negative": Cut({"fc.weight": {0: [-1, 0]}}),
    "huge": Cut({"fc.weight": {0: [10**30]}}),
    "repeated": Cut({"fc.weight": {0: [0, 0]}}),
    "falling": Cut({"fc.weight": {0: [1, 0]}}),
    "emptied": Cut({"fc.weight": {0: []}}),
    "not integers": Cut({"fc.weight": {0: [0.5]}}),  # type: ignore[dict-item]
    "a truth value": Cut({"fc.weight": {0: [False, True]}}),
    "unknown attribute": Cut(attributes={"fc.nope": 1}),
    "a method": Cut(attributes={"method": 1}),
    "method's inside": Cut(attributes={"method.__func__.__code__.co_argcount": 1}),
    "dunder": Cut(attributes={"__class__.x": 1}),
    "dunder inside": Cut(attributes={"fc.__dict__": 1}),
    "text": Cut(attributes={"config.name": 1}),
    "flag": Cut(attributes={"flag": 0}),
    "training flag": Cut(attributes={"fc.training": 0}),
    "tensor": Cut(attributes={"fc.weight": 1}),
    "grows": Cut(attributes={"config.heads": 5}),
    "negative value": Cut(attributes={"config.heads": -1}),
    "list for a number": Cut(attributes={"config.heads": [2]}),
    "number for a list": Cut(attributes={"config.sizes": 2}),
    "other length": Cut(attributes={"config.sizes": [2]}),
    "nan": Cut(attributes={"config.heads": float("nan")}),  # type: ignore[dict-item]
    "empty path": Cut(attributes={"": 1}),
    "dots": Cut(attributes={"..": 1}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_cuts_change_nothing(case: str) -> None:
    model = Configured()
    bad = BAD[case]
    cut = Cut(  # the good part comes first and must not be carried out
        {"fc.bias": {0: [0]}, **bad.tensors}, {"config.inner.n": 1, **bad.attributes}
    )
    before = snapshot(model)
    with pytest.raises(GracileError):
        apply_(model, cut)
    assert same(before, snapshot(model))
    assert model.config.inner.n == 3
    assert model.config.sizes == [6, 8]


def test_bad_optimizer_changes_nothing() -> None:
    model = mlp()
    lbfgs = torch.optim.LBFGS(model.parameters())
    x = torch.randn(3, 4)
    lbfgs.step(lambda: (lbfgs.zero_grad(), loss := model(x).square().sum(), loss.backward(), loss)[-1])
    before = snapshot(model)
    with pytest.raises(UsageError, match="LBFGS"):
        apply_(model, mlp_cut(), lbfgs)
    stranger = torch.optim.SGD(mlp().parameters(), lr=0.1)
    with pytest.raises(UsageError, match="holds none"):
        apply_(model, mlp_cut(), stranger)
    odd = torch.optim.SGD(model.parameters(), lr=0.1)
    odd.state[model[0].weight]["preconditioner"] = torch.eye(20)
    with pytest.raises(UsageError, match="preconditioner"):
        apply_(model, mlp_cut(), odd)
    assert same(before, snapshot(model))


def test_shape_error_names_the_tensor() -> None:
    with pytest.raises(ShapeError, match=r"0\.weight.*5 indices"):
        apply_(mlp(), Cut({"0.weight": {0: [7]}}))


@pytest.mark.parametrize("kind", ["old", "new"])
def test_weight_norm(kind: str) -> None:
    model = mlp()
    if kind == "old":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(model[0])
        names = ("weight_g", "weight_v")
    else:
        parametrizations.weight_norm(model[0])
        names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    x = torch.randn(3, 4)
    hidden = model[0](x).detach()
    second = model[2].weight.detach().clone()
    cut = {f"0.{name}": {0: KEEP} for name in names}
    apply_(model, Cut({**cut, "0.bias": {0: KEEP}, "2.weight": {1: KEEP}}))
    assert model[0].weight.shape == (3, 4)
    assert model[0].out_features == 3
    torch.testing.assert_close(model[0](x), hidden[:, KEEP])
    torch.testing.assert_close(model(x), hidden[:, KEEP].relu() @ second[:, KEEP].T + model[2].bias)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_stated_sizes_of_torch_modules() -> None:
    keep = list(range(4))
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(8, 6, 3, groups=2),
            "up": nn.ConvTranspose1d(6, 8, 3),
            "bn": nn.BatchNorm2d(6, affine=False),
            "gn": nn.GroupNorm(2, 6),
            "ln": nn.LayerNorm(6),
            "gru": nn.GRU(6, 5),
            "lstm": nn.LSTM(6, 5, proj_size=3),
            "cell": nn.LSTMCell(6, 5),
            "prelu": nn.PReLU(6),
            "bi": nn.Bilinear(6, 6, 6),
        }
    )
    rows = [0, 1, 2, 3]
    apply_(
        model,
        Cut(
            {
                "conv.weight": {0: keep, 1: [0, 1]},
                "conv.bias": {0: keep},
                "up.weight": {0: keep, 1: [0, 1]},
                "up.bias": {0: [0, 1]},
                "bn.running_mean": {0: keep},
                "bn.running_var": {0: keep},
                "gn.weight": {0: keep},
                "gn.bias": {0: keep},
                "ln.weight": {0: keep},
                "ln.bias": {0: keep},
                "gru.weight_ih_l0": {0: [0, 1, 5, 6, 10, 11], 1: keep},
                "gru.weight_hh_l0": {0: [0, 1, 5, 6, 10, 11], 1: [0, 1]},
                "gru.bias_ih_l0": {0: [0, 1, 5, 6, 10, 11]},
                "gru.bias_hh_l0": {0: [0, 1, 5, 6, 10, 11]},
                "lstm.weight_hr_l0": {0: [0, 1]},
                "lstm.weight_hh_l0": {1: [0, 1]},
                "cell.weight_ih": {1: keep},
                "prelu.weight": {0: rows},
                "bi.weight": {1: keep, 2: [0, 1]},
            }
        ),
    )
    assert (model["conv"].in_channels, model["conv"].out_channels) == (4, 4)
    assert (model["up"].in_channels, model["up"].out_channels) == (4, 2)
    assert model["bn"].num_features == 4
    assert model["gn"].num_channels == 4
    assert model["ln"].normalized_shape == (4,)
    assert (model["gru"].input_size, model["gru"].hidden_size) == (4, 2)
    assert (model["lstm"].hidden_size, model["lstm"].proj_size) == (5, 2)
    assert (model["cell"].input_size, model["cell"].hidden_size) == (4, 5)
    assert model["prelu"].num_parameters == 4
    assert (model["bi"].in1_features, model["bi"].in2_features, model["bi"].out_features) == (4, 2, 6)
    assert model["gru"](torch.randn(7, 3, 4))[0].shape == (7, 3, 2)
    assert model["lstm"](torch.randn(7, 3, 6))[0].shape == (7, 3, 2)


@pytest.mark.parametrize("ndim", [4, 5])
def test_the_memory_layout_stays(ndim: int) -> None:
    layout = torch.channels_last if ndim == 4 else torch.channels_last_3d
    kind = nn.Conv2d if ndim == 4 else nn.Conv3d
    model = nn.Sequential(kind(3, 4, 3)).to(memory_format=layout)
    cut = Cut({"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}})
    want = model[0].weight[[0, 2]]
    apply_(model, cut)
    assert torch.equal(model[0].weight, want)
    assert model[0].weight.is_contiguous(memory_format=layout)
    assert not model[0].weight.is_contiguous()


def test_optimizer_state_in_a_list_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["history"] = [torch.zeros(3, 4)]
    cut = Cut({"0.weight": {0: [0, 2]}, "0.bias": {0: [0, 2]}, "1.weight": {1: [0, 2]}})
    with pytest.raises(UsageError, match="'history', a list with a tensor of shape"):
        apply_(model, cut, optimizer)
    assert model[0].weight.shape == (3, 4)
