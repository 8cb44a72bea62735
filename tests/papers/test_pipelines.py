"""The recipes that put stages after each other, on a few epochs."""

import pytest

from gracile.papers import run
from gracile.pipeline import Bits, LowRank, Plan, Units


def test_recipe_of_the_pipeline(monkeypatch):
    from gracile.papers.c11_pipeline import recipe

    quick = recipe._Setting(
        "digits", Plan(dense=4, batch_size=32), LowRank(0.8, tune=1), Units(0.4, learn=2, tune=1), Bits(8)
    )
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in run("C11", "tiny", 0)}
    for order in ("rank, units, bits", "units, rank, bits"):
        assert results[f"{order}: stored"].value > 5
        assert results[f"{order}: moved"].value > 1
        assert results[f"{order}: lost"].value == pytest.approx(
            results["dense"].value - results[f"{order}: 3"].value
        )
    assert results["legal"].value + results["refused"].value == 64
    assert results["legal"].value == 23


def test_recipe_of_codesign(monkeypatch):
    from gracile.papers.c16_codesign import recipe

    quick = recipe._Setting("digits", dense=4, gone=0.5, learn=2, tune=1, bits=6, batch_size=32, rate=0.05)
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in run("C16", "tiny", 0)}
    assert results["units: indices"].value == 0
    assert results["single weights: indices"].value > 30
    assert results["stored apart"].holds == (results["stored apart"].value > 1)
    assert results["bits: stored"].value == pytest.approx(32 / 6, rel=0.05)
