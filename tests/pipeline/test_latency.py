"""Fitting to a latency: on clocks whose truth is known, and on real networks on this machine."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from gracile.cost import Table
from gracile.errors import RefusedError, UsageError
from gracile.pipeline import Budget, fit_to, scout, to_latency
from gracile.pipeline.budget import read_latency
from gracile.pipeline.search import find
from gracile.pipeline.trade import Stop, descend, losses
from gracile.reduce import Limits


class Wide(nn.Module):
    """Convolutions around a shortcut; large enough that arithmetic outweighs overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.a, self.b = nn.Conv2d(64, 128, 3, padding=1), nn.Conv2d(128, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.b(self.a(x).relu())
        return self.head(x.mean((2, 3)))


def wide() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Wide().eval(), torch.randn(2, 3, 24, 24)


def table() -> Table:
    """Two blocks that share layer "b"; x is expensive, y is cheap."""
    x = {w: {"a": w / 8, "b": w / 8} for w in (2, 4, 6)}
    y = {w: {"b": w / 8, "c": w / 8} for w in (2, 4, 6)}
    return Table({"a": 4.0, "b": 2.0, "c": 1.0}, {"x": 8, "y": 8}, {"x": x, "y": y})


def test_the_way_down_takes_the_best_bargain_first() -> None:
    score = torch.arange(1.0, 9.0)
    loss = {name: losses(score, [2, 4, 6, 8]) for name in ("x", "y")}
    way = descend(table(), loss)
    assert way[0].widths == {"x": 8, "y": 8}
    assert way[-1].widths == {"x": 2, "y": 2}
    assert way[1].widths == {"x": 6, "y": 8}  # as dear as y, and saves twice as much
    times = [stop.predicted_s for stop in way]
    assert times == sorted(times, reverse=True)
    for stop in way:
        assert stop.predicted_s == pytest.approx(table().seconds(stop.widths))
        widths = itertools.product([2, 4, 6, 8], repeat=2)
        cost = lambda w: loss["x"][w[0]] + loss["y"][w[1]]  # noqa: E731
        best = min(
            cost(w) for w in widths if table().seconds({"x": w[0], "y": w[1]}) <= stop.predicted_s + 1e-9
        )
        assert cost((stop.widths["x"], stop.widths["y"])) <= 1.5 * best + 1e-9  # greedy is near the optimum


def test_what_is_given_up_does_not_depend_on_scales() -> None:
    score = torch.rand(10, generator=torch.Generator().manual_seed(0)).double()
    by_hand = score.square().sort(descending=True).values
    for width, loss in losses(score * 1e-30, range(1, 11)).items():
        assert loss == pytest.approx(float(by_hand[width:].sum() / by_hand[:width].sum()))
    assert losses(torch.zeros(4), [1, 2, 4]) == {1: 3.0, 2: 1.0, 4: 0.0}


@pytest.mark.parametrize("bias", [0.6, 1.0, 1.7])
@pytest.mark.parametrize("aim", [0.85, 0.5, 0.31, 0.2])
def test_the_search_finds_the_widest_network_that_meets_the_aim(bias: float, aim: float) -> None:
    """Also where the table is wrong: what counts is what is measured."""
    way = [Stop({"x": 100 - n}, 1.0 - n / 100) for n in range(95)]
    looks: list[float] = []

    def ratio(stop: Stop) -> float:
        looks.append((stop.widths["x"] / 100) ** bias)
        return looks[-1]

    found = ratio(find(way, aim, ratio))
    assert found <= aim
    assert found >= 0.85 * aim
    assert len(looks) <= 15


def test_gaps_between_stops_are_closed_and_hopeless_aims_end_at_the_last() -> None:
    way = [Stop({"x": w, "y": 8}, float(w)) for w in (512, 8)]
    exact = lambda stop: stop.widths["x"] / 512  # noqa: E731
    found = find(way, 0.5, exact)
    assert 0.4 <= exact(found) <= 0.5
    assert found.widths["x"] % 8 == 0
    assert find(way, 0.001, exact) == way[-1]
    assert find(way[:1], 0.5, exact) == way[0]


@pytest.mark.parametrize("share", [0.6, 0.35])
def test_a_real_network_meets_what_was_asked(share: float) -> None:
    model, x = wide()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    limits = Limits(protect=("stem",))
    steps: list[str] = []
    fitted = to_latency(model, x, share=share, limit_s=3, limits=limits, announce=steps.append)
    assert fitted.asked == share
    assert fitted.ratio <= 1.1 * share
    assert fitted.reduction.verdict.kind == "exact"
    assert fitted.reduction.model.stem.out_channels == 64
    assert fitted.reduction.model.a.out_channels < 128
    assert fitted.widths["a.weight[0]"] == (128, fitted.reduction.model.a.out_channels)
    assert "1 thread" in str(fitted)
    assert len(steps) >= 3
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_seconds_are_taken_too_and_an_untrained_network_can_be_scouted() -> None:
    model, x = wide()
    whole = to_latency(model, x, share=0.99, limit_s=0.5).dense.median_s
    scouted = scout(model, x, latency_s=0.6 * whole, limit_s=3)
    assert 0.2 < scouted.share < 1.5  # other programs may have slowed one of the two measurements
    trained, _ = wide()
    with torch.no_grad():
        trained.a.weight[:64] *= 1e-3
    fitted = fit_to(trained, x, scouted=scout(model, x, share=0.7, limit_s=3))
    gone = set(range(128)) - set(fitted.reduction.cut.kept("a.weight", 0) or range(128))
    assert len(gone) > 0
    assert sum(unit < 64 for unit in gone) >= min(len(gone), 64) * 0.99


def test_what_cannot_be_reached_is_refused_before_anything_is_begun() -> None:
    model, x = wide()
    steps: list[str] = []
    with pytest.raises(RefusedError, match="or more: the narrowest network") as error:
        to_latency(model, x, latency_s=1e-7, announce=steps.append)
    assert "ms" in str(error.value)
    assert len(steps) == 1  # nothing was tabulated
    with pytest.raises(RefusedError, match="narrowest"):
        to_latency(model, x, share=0.3, limits=Limits(protect=("stem", "a")))
    with pytest.raises(RefusedError):
        to_latency(nn.Linear(4, 4), torch.zeros(1, 4), share=0.5)  # nothing can go at all


def test_attention_that_is_made_explicit_is_compared_with_the_original() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(96, 6, 384, batch_first=True, dropout=0.0).eval()
    fitted = to_latency(layer, torch.randn(1, 48, 96), share=0.75, limit_s=2)
    assert fitted.ratio <= 1.1 * 0.75
    assert fitted.dense.median_s > 0


@pytest.mark.parametrize(
    "wrong", [{}, {"share": 0.5, "latency_s": 1.0}, {"share": -1.0}, {"latency_s": float("inf")}], ids=str
)
def test_mistakes_are_explained(wrong: dict[str, float]) -> None:
    model, x = wide()
    with pytest.raises(UsageError, match="fitting to a latency"):
        to_latency(model, x, **wrong)


@pytest.mark.parametrize(
    ("text", "means"),
    [("5ms", (5e-3, None)), ("800 us", (8e-4, None)), ("1.5s", (1.5, None)), ("60%", (None, 0.6))],
)
def test_latencies_are_read(text: str, means: tuple[float | None, float | None]) -> None:
    assert read_latency(text) == pytest.approx(means)


def test_budgets_that_make_no_sense() -> None:
    for text in ("", "fast", "-5ms", "5 minutes", "1.2.3ms", "0%"):
        with pytest.raises(UsageError, match="reading a latency"):
            read_latency(text)
    for wrong in (
        {"of": "latency"},
        {"of": "macs", "left": 1.0},
        {"of": "macs", "latency_s": 1.0},
        {"of": "parameters", "left": 0.5, "rounds": 0},
        {"of": "latency", "left": 0.5, "latency_s": 1.0},
        {"of": "latency", "latency_s": -1.0},
    ):
        with pytest.raises(UsageError, match="setting a budget"):
            Budget(**wrong)
