"""Layers as pairs of layers: exact at full rank, the nearest below; and ranks that are worth having."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gracile.cost import count
from gracile.errors import RefusedError, UsageError
from gracile.graph import watch
from gracile.reduce import dead, factorize, left_alone, pairs, paying, ranks_by_energy, remove
from gracile.zoo import LeNet, build

# layer, example, full rank of one group
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (3, 7), 5),
    "linear without bias": (lambda: nn.Linear(4, 9, bias=False), (2, 6, 4), 4),
    "conv1d": (lambda: nn.Conv1d(3, 8, 3, padding=2, dilation=2), (2, 3, 11), 8),
    "conv2d": (lambda: nn.Conv2d(3, 6, (3, 5), stride=(2, 1), padding=(1, 2)), (2, 3, 9, 9), 6),
    "more outputs than inputs": (lambda: nn.Conv2d(1, 20, 2), (2, 1, 5, 5), 4),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 7, 7), 6),
    "circular": (lambda: nn.Conv1d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 7), 6),
    "padding by name": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 7), 6),
    "conv3d": (lambda: nn.Conv3d(2, 5, 2), (2, 2, 4, 4, 4), 5),
    "groups": (lambda: nn.Conv2d(6, 9, 3, groups=3, padding=1), (2, 6, 5, 5), 3),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6), (2, 6, 5, 5), 2),
    "without a batch": (lambda: nn.Conv2d(3, 6, 3), (3, 5, 5), 6),
}


def case(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor, int]:
    torch.manual_seed(0)
    make, shape, full = LAYERS[name]
    return nn.Sequential(make(), nn.Identity()).to(dtype), torch.randn(shape, dtype=dtype), full


WIDE = [name for name in LAYERS if name not in ("linear without bias", "more outputs than inputs")]
EXACT = [*((n, m) for n in LAYERS for m in ("pca", "svd")), *((n, "kmeans") for n in WIDE)]  # a center each


@pytest.mark.parametrize(("name", "method"), EXACT)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_full_rank_is_exact(name, dtype, tolerance, method):
    model, x, full = case(name, dtype)
    layer = model[0]
    small = factorize(model, {"0": full}, method)
    torch.testing.assert_close(small(x), model(x), rtol=0, atol=tolerance)
    assert type(small[0]) is nn.Sequential
    assert small[0][0].bias is None
    assert (small[0][1].bias is None) == (layer.bias is None)


@pytest.mark.parametrize("name", LAYERS)
def test_lower_ranks_equal_the_layer_with_the_truncated_matrix(name):
    """Written out: the weight of every group truncated by NumPy, put back into the original layer."""
    model, x, full = case(name, torch.float64)
    rank = max(1, full // 2)
    small = factorize(model, {"0": rank})
    layer = model[0]
    blocks = []
    for W in layer.weight.detach().flatten(1).chunk(getattr(layer, "groups", 1)):
        u, s, vh = np.linalg.svd(W.numpy(), full_matrices=False)
        blocks.append(torch.tensor((u[:, :rank] * s[:rank]) @ vh[:rank]))
    expected = copy.deepcopy(model)
    expected[0].weight.data.copy_(torch.cat(blocks).reshape(layer.weight.shape))
    torch.testing.assert_close(small(x), expected(x), rtol=0, atol=1e-12)
    assert small[0][0].weight.shape[0] == rank * getattr(layer, "groups", 1)


def test_the_model_stays_as_it_is_and_the_copy_is_trained_alike():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4), nn.Linear(4, 4)).eval()
    model[1].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    model[2].bias = model[1].bias  # a bias may be shared, a weight may not
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    small = factorize(model, {"0": 2, "1": 3})
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [p.requires_grad for p in small[0].parameters()] == [True, True, False]
    assert [p.requires_grad for p in small[1].parameters()] == [False, False, True]
    assert small[2].bias is small[1][1].bias
    assert small[2].bias is not model[2].bias
    assert not small[0][0].training
    assert str(factorize(model, {})) == str(model)


class Net(nn.Module):
    """One of every kind that cannot be factored, beside one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(6, 6)
        self.up = nn.ConvTranspose2d(3, 3, 2)
        self.embed = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9)
        self.head.weight = self.embed.weight
        self.twice = self.again = nn.Linear(6, 6)
        self.parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.pruned = nn.utils.prune.random_unstructured(nn.Linear(6, 6), "weight", 0.5)
        self.hooked = nn.Linear(6, 6)
        self.hooked.register_forward_hook(lambda *_: None)
        self.other = type("Scaled", (nn.Linear,), {})(6, 6)
        self.attention = nn.MultiheadAttention(6, 2)
        self.encoder = nn.TransformerEncoderLayer(6, 2, 12)
        self.norm = nn.LayerNorm(6)
        self.lazy = nn.LazyLinear(6)


REFUSED = {
    "up": "transposed",
    "head": "tied",
    "twice": "several paths",
    "again": "several paths",
    "parametrized": "parametrized",
    "pruned": "parametrized",
    "hooked": "hooks",
    "other": "a class of its own",
    "attention.out_proj": "a class of its own",
    "encoder.linear1": "TransformerEncoderLayer",
    "norm": "neither linear nor convolutional",
    "embed": "neither linear nor convolutional",
    "lazy": "",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_factored_is_refused_with_the_reason(name):
    model = Net()
    with pytest.raises(RefusedError, match=f"'{name}'.*{REFUSED[name]}"):
        factorize(model, {"fine": 2, name: 2})
    if name != "lazy":
        with pytest.raises(RefusedError, match=f"'{name}'.*{REFUSED[name]}"):
            ranks_by_energy(model, 0.9, [name])


def test_only_what_can_be_factored_is_offered():
    model = Net()
    del model.lazy
    assert list(paying(model)) == ["fine"]
    assert ranks_by_energy(model, 0.01) == {"fine": 1}
    reasons = left_alone(model, {"fine": 1})
    others = {"encoder.linear2", "encoder.self_attn.out_proj"}
    assert reasons.keys() == others | REFUSED.keys() - {"norm", "embed", "lazy"}
    assert "tied" in reasons["head"]
    assert left_alone(model, {})["fine"] == "would cost more with more than 2 components"


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ({"nowhere": 1}, "'nowhere'; expected one of 0, 2"),
        ({"0": 0}, "from 1 to 4"),
        ({"0": 5}, "from 1 to 4"),
        ({"0": 2.0}, "from 1 to 4"),
        ({"0": True}, "from 1 to 4"),
        ({"2": float("nan")}, "from 1 to 2"),
    ],
)
def test_impossible_ranks_are_refused(ranks, words):
    with pytest.raises(UsageError, match=words):
        factorize(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), ranks)


def test_more_that_makes_no_sense_is_refused():
    model = nn.Sequential(nn.Linear(4, 8))
    with pytest.raises(RefusedError, match="no place"):
        factorize(model[0], {"": 2})
    with pytest.raises(UsageError, match="pca, svd, kmeans"):
        factorize(model, {"0": 2}, "cur")
    with pytest.raises(UsageError, match="0 < share <= 1"):
        ranks_by_energy(model, 0.0)
    with pytest.raises(UsageError, match="'nowhere'"):
        ranks_by_energy(model, 0.5, ["nowhere"])
    model[0].weight.data[0, 0] = float("nan")
    for call in (lambda: factorize(model, {"0": 2}), lambda: ranks_by_energy(model, 0.9)):
        with pytest.raises(UsageError, match=r"'0'.*not finite"):
            call()


def test_ranks_by_energy_against_numpy():
    torch.manual_seed(0)
    model = build("lenet", (1, 28, 28))
    for share in (0.5, 0.9, 1.0):
        ranks = ranks_by_energy(model, share, ["conv1", "conv2", "fc1"])
        for name, rank in ranks.items():
            W = model.get_submodule(name).weight.detach().flatten(1).double().numpy()
            energy = np.linalg.eigvalsh(W @ W.T if len(W) < W.shape[1] else W.T @ W)[::-1]
            kept = energy.cumsum() / energy.sum()
            assert kept[rank - 1] >= share - 1e-9
            assert rank == 1 or kept[rank - 2] < share


def test_the_energy_of_a_grouped_convolution_is_that_of_all_groups():
    model = nn.Sequential(nn.Conv2d(8, 24, 3, groups=2))
    [rank] = ranks_by_energy(model, 0.8, ["0"]).values()
    s = [
        np.linalg.svd(W.numpy(), compute_uv=False) ** 2 for W in model[0].weight.detach().flatten(1).chunk(2)
    ]
    kept = [sum(v[:k].sum() for v in s) / sum(v.sum() for v in s) for k in range(13)]
    assert rank == next(k for k in range(13) if kept[k] >= 0.8)


def test_only_layers_for_which_it_pays_are_factored_unless_named():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    low = torch.randn(20, 2) @ torch.randn(2, 20)
    model[1].weight.data.copy_(low)
    assert ranks_by_energy(model, 0.99) == {"1": 2}
    assert ranks_by_energy(model, 0.99, ["0"])["0"] > paying(model)["0"] == 9
    x = torch.randn(1, 20)
    for rank in (9, 10):
        fewer = count(factorize(model, {"0": rank}), x)
        assert (fewer.macs < count(model, x).macs) == (rank <= 9)
        assert (fewer.parameters < count(model, x).parameters) == (rank <= 9)


def test_pairs_are_found_by_what_they_are():
    model = nn.Sequential(
        nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4)),
        nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 4)),  # a bias between them
        nn.Sequential(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 3)),
        nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 4, 1)),
        nn.Sequential(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 1, padding=1)),
        nn.Sequential(nn.Conv2d(4, 2, 3, bias=False), nn.Conv2d(2, 4, 1)),
        nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4), nn.ReLU()),
    )
    assert list(pairs(model)) == ["0", "5"]


def _kill(pair: nn.Sequential, components: list[int], groups: int = 1) -> None:
    """Zero these components of every group in both layers."""
    width = pair[1].weight.shape[1]
    with torch.no_grad():
        pair[1].weight[:, components] = 0
        for group in range(groups):
            pair[0].weight[[group * width + k for k in components]] = 0


def test_components_are_units_that_can_be_removed():
    torch.manual_seed(0)
    model = LeNet((1, 28, 28)).eval()
    example = torch.randn(2, 1, 28, 28)
    small = factorize(model, {"conv1": 20, "conv2": 30, "fc1": 40})
    names = {block.name for block in watch(small, example).blocks}
    assert {"conv1.0", "conv2.0", "fc1.0"} <= names
    for name, alive in {"conv1": 6, "conv2": 12, "fc1": 30}.items():
        pair = pairs(small)[name]
        _kill(pair, list(range(alive, pair[1].weight.shape[1])))
    reduction = remove(small, example)
    assert {name: p[1].weight.shape[1] for name, p in pairs(reduction.model).items()} == {
        "conv1": 6,
        "conv2": 12,
        "fc1": 30,
    }
    assert reduction.verdict.kind == "exact"
    assert not reduction.refused
    torch.testing.assert_close(reduction.model(example), small(example), rtol=1e-4, atol=1e-6)


def test_components_of_grouped_convolutions_are_units_too():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 4)
    ).eval()
    example = torch.randn(2, 8, 8, 8)
    small = factorize(model, {"0": 6})
    _kill(small[0], [4, 5], groups=2)
    reduction = remove(small, example)
    assert reduction.model[0][0].weight.shape == (8, 4, 3, 3)
    assert reduction.model[0][1].weight.shape == (12, 4, 1, 1)
    assert reduction.model[0][1].groups == 2
    torch.testing.assert_close(reduction.model(example), small(example))


def test_filters_and_components_of_a_residual_network_go_together():
    torch.manual_seed(0)
    model = build("resnet20", (3, 16, 16)).eval()
    example = torch.randn(2, 3, 16, 16)
    ranks = ranks_by_energy(model, 0.6)
    small = factorize(model, ranks)
    assert set(pairs(small)) == set(ranks)
    reduction = remove(small, example, units=partial(_third))
    assert count(reduction.model, example).parameters < 0.8 * count(small, example).parameters
    assert not dead(watch(reduction.model, example), reduction.model)


def _third(graph, model):
    return [unit for block in graph.blocks for unit in block.units[: len(block.units) // 3]]
