"""Budgets: predictions against real reduced networks, rankings against brute force, limits, refusals."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gracile.cost import count, macs_left
from gracile.errors import UsageError
from gracile.graph import watch
from gracile.reduce import Limits, magnitude, parameters_left, random_units, remove, within
from gracile.reduce.budget import relative_to_block
from gracile.zoo import LSTMLanguageModel, build


class Attention(nn.Module):
    """Four heads of width 6 over a residual stream, and a tied output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 24)
        self.qkv, self.proj, self.heads = nn.Linear(24, 72), nn.Linear(24, 24), 4
        self.up, self.down = nn.Linear(24, 40), nn.Linear(40, 24)
        self.out = nn.Linear(24, 30, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, 6).permute(2, 0, 3, 1, 4)
        h = ((q @ k.transpose(2, 3)) * 0.4).softmax(-1) @ v
        x = x + self.proj(h.transpose(1, 2).flatten(2))
        return self.out(x + self.down(self.up(x).relu()))


def grouped() -> nn.Module:
    """Grouped, depthwise and transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 24, 1), nn.GroupNorm(4, 24), nn.Conv2d(24, 24, 3, groups=4), nn.ReLU(),
        nn.ConvTranspose2d(24, 10, 2, stride=2), nn.Conv2d(10, 4, 1),
    )  # fmt: skip


NETWORKS = {
    "resnet": (lambda: build("resnet20", (3, 16, 16)), lambda: torch.randn(1, 3, 16, 16)),
    "lstm": (lambda: LSTMLanguageModel(50, (24, 16)), lambda: torch.randint(50, (1, 6))),
    "attention": (Attention, lambda: torch.randint(30, (1, 7))),
    "grouped": (grouped, lambda: torch.randn(1, 3, 12, 12)),
}


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, example = NETWORKS[request.param]
    return make().eval(), example()


@pytest.mark.parametrize("seed", [0, 1])
def test_predicted_parameters_and_macs_are_those_of_the_real_reduced_network(
    network: tuple[nn.Module, Tensor], seed: int
) -> None:
    model, example = network
    reduction = remove(model, example, units=partial(random_units, fraction=0.4, seed=seed))
    graph = reduction.graph
    first = [unit.slices[0] for unit in graph.units]
    kept = [reduction.cut.kept(piece.tensor, piece.dim) for piece in first]
    gone = np.array(
        [k is not None and piece.indices[0] not in k for piece, k in zip(first, kept, strict=True)]
    )
    assert gone.any()
    cost = count(reduction.model, example)
    assert parameters_left(graph, model)(gone) == cost.parameters
    assert macs_left(graph, model)(gone) == cost.macs
    none = np.zeros(len(graph.units), bool)
    whole = count(model, example)
    assert (parameters_left(graph, model)(none), macs_left(graph, model)(none)) == (
        whole.parameters,
        whole.macs,
    )


@pytest.mark.parametrize("cost", [parameters_left, macs_left], ids=["parameters", "macs"])
@pytest.mark.parametrize("ranking", ["global", "layer"])
def test_what_is_left_fits_and_little_is_wasted(
    network: tuple[nn.Module, Tensor], cost: object, ranking: str
) -> None:
    model, example = network
    left = 0.7
    choice = partial(within, left=left, cost=cost, ranking=ranking)
    reduction = remove(model, example, units=choice)
    before, after = count(model, example), count(reduction.model, example)
    share = after.macs / before.macs if cost is macs_left else after.parameters / before.parameters
    # one unit of the largest block, and what a tied size holds back, are the resolution
    assert 0.6 * left < share <= left


def test_the_ranking_is_relative_to_the_block() -> None:
    """Scaling a layer, which batch norm undoes, does not change what goes."""
    torch.manual_seed(0)
    model = build("resnet20", (3, 16, 16)).eval()
    graph = watch(model, torch.randn(1, 3, 16, 16))
    importance = magnitude(graph, model)
    scale = torch.ones(len(graph.units)).double()
    for block in graph.blocks:
        scale[list(block.units)] = 10.0 ** (block.id % 5 - 2)
    chosen = within(graph, model, 0.6, importance=lambda *_: importance)
    assert within(graph, model, 0.6, importance=lambda *_: importance * scale) == chosen
    # and by brute force: nothing that stays is relatively smaller than what goes, but for the least widths
    relative = torch.empty_like(importance)
    for block in graph.blocks:
        members = list(block.units)
        relative[members] = importance[members] / importance[members].square().mean().sqrt()
    stays = sorted(set(range(len(graph.units))) - set(chosen))
    least = min(
        relative[u] for u in stays if sum(v in stays for v in graph.blocks[graph.units[u].block].units) > 7
    )
    assert max(relative[chosen]) <= least


def test_by_layer_every_block_loses_the_same_share() -> None:
    torch.manual_seed(0)
    model = build("resnet20", (3, 16, 16)).eval()
    graph = watch(model, torch.randn(1, 3, 16, 16))
    chosen = set(within(graph, model, 0.5, ranking="layer"))
    shares = [len(chosen & set(block.units)) / len(block.units) for block in graph.blocks]
    assert max(shares) - min(shares) <= 1 / min(len(block.units) for block in graph.blocks) + 1e-9
    for block in graph.blocks:
        norms = magnitude(graph, model)
        gone = sorted(chosen & set(block.units))
        assert norms[gone].max() <= norms[sorted(set(block.units) - set(gone))].min()


def test_limits_hold() -> None:
    torch.manual_seed(0)
    model, example = build("resnet20", (3, 16, 16)).eval(), torch.randn(1, 3, 16, 16)
    graph = watch(model, example)
    names = [block.name for block in graph.blocks]
    limits = Limits(protect=(names[1],), least=0.5, multiple_of=4)
    chosen = set(within(graph, model, 0.6, limits=limits))
    for block in graph.blocks:
        left = len(set(block.units) - chosen)
        assert left % 4 == 0
        assert left >= len(block.units) / 2
        if block.name == names[1]:
            assert left == len(block.units)
    assert len(chosen) > 0
    least = Limits(least=12)
    for widths, block in zip(least.widths(graph, model), graph.blocks, strict=True):
        assert widths == [*range(12, len(block.units)), len(block.units)]


def test_protecting_any_producer_protects_the_block_and_patterns_work() -> None:
    model = NETWORKS["resnet"][0]().eval()
    graph = watch(model, torch.randn(1, 3, 16, 16))
    stream = graph.units[graph.blocks[0].units[0]]
    makers = [s.tensor.rpartition(".")[0] for s in stream.slices if s.role == "out"]
    for maker in (makers[0], makers[-1]):
        assert Limits(protect=(maker,)).widths(graph, model)[0] == [len(graph.blocks[0].units)]
    everything = Limits(protect=("*",)).widths(graph, model)
    assert all(len(widths) == 1 for widths in everything)
    with pytest.raises(UsageError, match="conv_that_is_not"):
        Limits(protect=("conv_that_is_not",)).widths(graph, model)


def test_heads_count_with_their_width() -> None:
    model = Attention().eval()
    graph = watch(model, torch.randint(30, (1, 7)))
    heads = next(b for b in graph.blocks if len(b.units) == 4)
    widths = Limits(multiple_of=12).widths(graph, model)
    assert widths[heads.id] == [2, 4]  # two heads of width 6 are 12 wide


def test_a_budget_that_cannot_be_met_names_what_can(network: tuple[nn.Module, Tensor]) -> None:
    model, example = network
    graph = watch(model, example)
    with pytest.raises(UsageError, match="the least that can be reached") as error:
        within(graph, model, 0.001)
    reached = float(str(error.value).split("at least ")[1].split(",")[0])
    chosen = within(graph, model, min(reached * 1.01, 1.0))
    gone = np.zeros(len(graph.units), bool)
    gone[chosen] = True
    price = parameters_left(graph, model)
    assert price(gone) / price(np.zeros_like(gone)) == pytest.approx(reached, rel=0.01)


def test_mistakes_are_explained() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    graph = watch(model, torch.zeros(1, 4))
    for left in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="share"):
            within(graph, model, left)
    for wrong in ({"least": 0.0}, {"least": 1.5}, {"multiple_of": 0}, {"protect": "0"}):
        with pytest.raises(UsageError, match="limiting"):
            Limits(**wrong)
    with pytest.raises(UsageError, match="not known"):
        within(graph, model, 0.5, cost=lambda *_: lambda gone: float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        within(graph, model, 0.5, importance=lambda g, _: torch.full((len(g.units),), float("nan")))
    assert within(graph, model, 1.0) == []


def test_relative_importances_at_the_edge_of_the_numbers() -> None:
    for scale in (1e-200, 1.0, 1e200):
        relative = relative_to_block(torch.tensor([3.0, 4.0], dtype=torch.float64) * scale)
        torch.testing.assert_close(relative, torch.tensor([3.0, 4.0], dtype=torch.float64) / 12.5**0.5)
    assert relative_to_block(torch.zeros(3)).tolist() == [0, 0, 0]
