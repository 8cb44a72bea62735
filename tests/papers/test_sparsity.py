"""The recipes of C13 and C23, on a few epochs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gracile.cost import Machine
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
    from gracile.papers.c23_guided import recipe

    quick = recipe._Setting("digits", 800, (16, 16), 10, 8, 2, 32, 3, (3e-3,))
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    monkeypatch.setattr(recipe, "ALLOWED_LOSS", 1.0)
    slow = Machine("slow", 1e9, 1e9, alpha=2.0)
    monkeypatch.setattr(recipe, "calibrate", lambda limit_s: slow)
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
