"""The recipes of C13 and C23, on a few epochs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gracile.cost import Machine, roofline
from gracile.papers import run


def test_recipe_of_jpnet_on_a_few_epochs(monkeypatch):
    from gracile.papers.c13_jpnet import recipe

    quick = recipe._Setting("digits", 1, 6, 8, 2, 64, 0.3, (3e-3,), 1e-2)
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    monkeypatch.setattr(recipe, "ALLOWED_LOSS", 1.0)
    monkeypatch.setattr(recipe, "RATES", ((0.12, 0.24),))
    results = {result.id: result for result in run("C13", "tiny", 0)}
    assert results["dense"].value > 80
    assert results["lost 0.12 and 0.24"].claim == "mlp-accuracy"
    assert results["joint left"].value < results["alone left"].value < results["relu left"].value < 100
    assert results["saved"].value == pytest.approx(100 - results["joint left"].value)
    assert results["fewer"].value > 1
    assert results["fewer"].holds
    assert results["time"].value > 0
    lost = results["relu accuracy"].value - results["joint accuracy"].value
    assert results["joint lost"].value == pytest.approx(lost)
    assert results["joint lost"].holds == (lost <= 1)


def test_static_thresholds_are_as_active_as_winners():
    from gracile.papers.c13_jpnet import recipe

    part = recipe._Part(recipe._SETTINGS["tiny"], recipe.load("digits"), 0)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 300),
        nn.LeakyReLU(),
        nn.Linear(300, 100),
        nn.LeakyReLU(),
        nn.Linear(100, 10),
    )
    static = recipe._static(model, (0.1, 0.3), part)
    cost = recipe.sparse_macs(static, [recipe._inputs(part.splits.train, 2000)])
    assert cost.rows[1].inputs == pytest.approx(0.1, abs=1e-4)
    assert cost.rows[2].inputs == pytest.approx(0.3, abs=1e-4)
    exact = recipe._exact(model, (0.1, 0.3), part).eval()
    assert part.cost(exact, "test").rows[1].inputs == pytest.approx(0.1)


def test_recipe_of_guided_pruning_on_a_few_epochs(monkeypatch):
    from gracile.papers.c23_guided import measured, recipe

    seen = []

    def timed(model, example):
        seen.append(example.shape[0])
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
        shares = [m.weight.count_nonzero().item() / m.weight.numel() for _, m in layers]
        return [
            measured.Timed(name, share, {"torch": 3.0, "other": 4.0}, 1.0)
            for (name, _), share in zip(layers, shares, strict=True)
        ]

    monkeypatch.setattr(recipe, "convolutions", timed)
    quick = recipe._Setting("digits", 800, (16, 16), 10, 8, 2, 32, 3, (3e-3,))
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    monkeypatch.setattr(recipe, "ALLOWED_LOSS", 1.0)
    slow = Machine("slow", 1e9, 1e9, alpha=2.0)
    monkeypatch.setattr(recipe, "calibrate", lambda convolution, limit_s: slow)
    results = {result.id: result for result in run("C23", "tiny", 0)}
    assert results["lower xeon"].value == pytest.approx(0.0197, abs=1e-4)
    assert results["lower xeon"].holds
    assert results["lower atom"].holds
    assert results["never"].holds
    assert (results["flops"].value, results["bytes"].value, results["alpha"].value) == (1, 1, 2)
    assert results["dense"].value > 50
    # On the Xeon the first convolution moves too many bytes for its arithmetic: it is left dense.
    assert results["guided L1 density 1"].value == 100
    assert results["unguided L1 density 1"].value < 100
    assert results["guided L1 here density 2"].value < 100
    times = [results[f"{way} time"].value for way in ("unguided L1", "guided L1")]
    assert results["guidance"].value == pytest.approx(times[0] / times[1])
    for way in ("guided L1", "guided surgery", "guided L1 here"):
        time = results[f"{way} time"]
        assert time.holds == (time.value <= 60)
        assert time.value <= 100 + 1e-9
    assert seen == [recipe.BATCH] * 4
    for way in ("unguided L1", "guided L1", "guided surgery", "guided L1 here"):
        assert results[f"{way} faster"].value == pytest.approx(3.0)
        assert results[f"{way} projected"].value >= 1  # what is slower runs dense


@pytest.mark.parametrize(("faster", "holds"), [(2.5, True), (3.0, False), (1.5, True), (1.2, False)])
def test_measured_speedups_stand_beside_projected_ones(monkeypatch, faster, holds):
    from gracile.papers.c23_guided import measured, recipe

    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3)).eval()
    with torch.no_grad():
        model[0].weight.view(-1)[::4] = 0  # above 1 / alpha: not in the useful range, whatever is measured
        model[1].weight.view(-1)[:432] = 0
    rows = [
        measured.Timed("0", 0.75, {"torch": 9.0}, 1.0),
        measured.Timed("1", 0.25, {"torch": faster}, 1.0),
    ]
    monkeypatch.setattr(recipe, "convolutions", lambda model, example: rows)
    example = torch.zeros(1, 4, 8, 8)
    roofs = roofline(model, example, Machine("fast memory", 1e9, 1e15, alpha=2.0), layers=[nn.Conv2d])
    found = {r.id: r for r in recipe._compared("way", recipe._Network(model, 1.0, 1.0), roofs, example)}
    assert found["way faster"].value == pytest.approx((9.0 + faster) / 2)
    assert found["way off"].value == pytest.approx(100 * abs(faster / 2.0 - 1))
    assert found["way off"].holds == holds


def test_convolutions_are_timed_on_what_they_get():
    from gracile.papers.c23_guided import measured

    model = nn.Sequential(nn.Conv2d(2, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2)).eval()
    with torch.no_grad():
        model[2].weight *= torch.rand_like(model[2].weight) < 0.1
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = measured.convolutions(model, torch.randn(1, 2, 16, 16), rounds=5)
    assert [row.layer for row in rows] == ["0", "2"]
    assert rows[0].density == 1
    assert rows[1].density == pytest.approx(0.1, abs=0.02)
    assert {"torch", "torch channels-last"} <= set(rows[0].dense)
    assert all(row.sparse_s > 0 and row.dense_s == min(row.dense.values()) for row in rows)
    slow, fast = (sum(f(row) for row in rows) for f in (lambda r: r.dense_s, lambda r: r.sparse_s))
    assert measured.together(rows) >= slow / fast - 1e-9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
