"""The recipe of ternary gradients, on few epochs."""

from dataclasses import replace

import pytest

from gracile.papers.c04_terngrad import recipe


def test_recipe_of_ternary_gradients(monkeypatch):
    quick = replace(
        recipe._SETTINGS["tiny"], images=256, splits=1, epochs=2, rates=(0.05, 30.0), workers=(2, 16)
    )
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in recipe.run("tiny", 0)}
    for mode in ("fp16", *recipe.MODES):
        rows = [results[f"{mode}, {name}"] for name in (2, 16, "mean")]
        assert rows[2].value == pytest.approx((rows[0].value + rows[1].value) / 2)
        for row in rows:
            assert row.holds == (row.value <= recipe.LOST)
            assert (row.claim == "no-loss") == (mode == "exact")
    assert results["everything packed"].value != results["ternary, 16"].value
    assert results["noise ratio"].holds
    assert 5 < results["noise ratio"].value < 50
    # at the second rate everything diverges and counts as guessing
    means = [results[name].value for name in recipe._ABLATION]
    assert all(mean == pytest.approx(55, abs=50) for mean in means)
    assert results["clip gains"].value == pytest.approx(means[0] - means[1])
    # known integrals of the normal distribution, cut at 2.5
    assert results["length"].value == pytest.approx(1.14, abs=0.05)
    assert results["angle"].value == pytest.approx(2.77, abs=0.1)
    assert results["bits"].value == pytest.approx(2, abs=1e-3)


def test_noise_is_what_the_formula_says():
    """Without a clip: E||g' - g||^2 = sum over layers of s ||g||_1 - ||g||^2."""
    import torch

    setting = recipe._SETTINGS["tiny"]
    splits = recipe._world(setting, 0)
    torch.manual_seed(0)
    model = setting.network(splits)
    images, labels = next(iter(torch.utils.data.DataLoader(splits.train, 512)))
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    layers = [p.grad.flatten().double() for p in model.parameters()]
    size = sum(float(g.square().sum()) for g in layers)
    one = max(float(g.abs().max()) for g in layers)
    for name, scales in (
        ("layers' scales", [float(g.abs().max()) for g in layers]),
        ("one scale", [one] * len(layers)),
    ):
        expected = sum(s * float(g.abs().sum()) for s, g in zip(scales, layers, strict=True)) / size - 1
        assert recipe._noise(setting, splits, 0, name) == pytest.approx(expected, rel=0.05)
