"""The recipe of C18 on a few epochs: what is measured is what it says."""

from __future__ import annotations

import pytest

from gracile.papers import run
from gracile.papers.c18_group_scissor import recipe


@pytest.fixture(scope="module")
def results():
    quick = recipe._Setting(
        "digits", 1, dense=4, clip=6, delete=6, tune=1, epsilon=0.2, every=1, strength=2e-2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(recipe._SETTINGS, "tiny", quick)
        return {result.id: result for result in run("C18", "tiny", 0)}


def test_ranks_and_area_belong_together(results):
    sizes = {"conv1": (9, 20), "conv2": (180, 50), "fc1": (200, 500)}
    ranks = {name: results[f"rank {name}"].value for name in sizes}
    assert all(1 <= ranks[name] < min(size) for name, size in sizes.items())
    left = sum(ranks[name] * (n + m) for name, (n, m) in sizes.items()) + 500 * 10
    assert results["area"].value == pytest.approx(100 * left / (sum(n * m for n, m in sizes.values()) + 5000))
    assert results["area"].claim == "area-lenet"
    assert results["equality"].value < 1e-5


def test_differences_are_those_of_the_accuracies(results):
    value = {id: result.value for id, result in results.items()}
    assert value["lost"] == pytest.approx(value["full"] - value["clipped"])
    assert value["gained"] == pytest.approx(value["clipped"] - value["direct"])
    assert value["lost to deletion"] == pytest.approx(value["clipped"] - value["deleted"])
    assert value["full"] > 50
    for id, limit in (("lost", -0.5), ("lost to deletion", -0.5)):
        assert results[id].holds == (-value[id] >= limit)
    assert results["gained"].holds == (value["gained"] >= 0.5)


def test_wires_are_deleted(results):
    assert 5 < results["wires"].value < 100
    assert 0 < results["routing"].value < 100
    # Of one matrix the area falls with the square of the wires; over several it is near that.
    assert results["routing"].value < 100 - results["wires"].value
