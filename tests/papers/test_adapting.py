"""The recipe of domain adaptation, on a few epochs."""

import pytest
import torch

from gracile.papers.c22_compact_dnn import recipe
from gracile.zoo import digits


def test_recipe_of_adaptation(monkeypatch):
    quick = recipe._Setting(
        (("digits", "blurred"),), (), samples=100, alone=("digits", 100, 2), epochs=2, batch_size=32
    )
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in recipe.run("tiny", 0)}
    assert results["parameters"].holds
    assert results["parameters"].value == pytest.approx(4.1, rel=0.05)
    for name in ("Conv-M", "3x3"):
        parts = {
            part: results[f"digits to blurred, {name}: {part}"].value for part in ("plain", "adapted", "gain")
        }
        assert parts["gain"] == pytest.approx(parts["adapted"] - parts["plain"])
        assert f"digits to blurred, {name}: renewed" in results
    assert results["pairs"].holds is False  # of one pair
    assert 0 <= results["alone Conv-M"].value <= 100
    assert results["alone Conv-M size"].value > 1


def test_the_same_digits_are_not_in_both_domains():
    source, target = recipe._worlds("digits", "inverted", 1000, 0)
    inverted = 16 - target.train.pixels
    both = torch.cat([source.train.pixels, inverted]).flatten(1)
    train = digits(0).train.pixels.flatten(1)
    assert len(both) == len(train) // 2 * 2
    assert torch.equal(both, train[: len(both)])
    assert torch.equal(16 - target.test.pixels, source.test.pixels)


def test_changes_of_digits():
    images = digits(0).test
    for name, change in recipe._CHANGES.items():
        changed = change(images)
        assert changed.pixels.shape == images.pixels.shape, name
        assert torch.equal(changed.targets, images.targets)
        assert not torch.equal(changed.pixels, images.pixels)
    point = torch.zeros(1, 1, 9, 9)
    point[..., 4, 7] = 1.0
    assert recipe._rotate(point, 90.0)[0, 0].nonzero().tolist() in ([[1, 4]], [[7, 4]])
    torch.testing.assert_close(recipe._blur(point)[0, 0, 3:6, 6:], torch.full((3, 3), 1 / 9))
