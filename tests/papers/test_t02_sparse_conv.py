"""The recipe of T2: what goes, what stays at zero, what is kept, and how it is judged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from gracile.cost import count, densities
from gracile.papers import run, work
from gracile.papers.c23_guided import measured
from gracile.papers.t02_sparse_conv import recipe
from gracile.papers.t02_sparse_conv.parts import KINDS, PARTS, Moved, alexnet, by_size, equal, prunable
from gracile.papers.t02_sparse_conv.timing import Timed, timed
from gracile.papers.t02_sparse_conv.training import RUN, begin, go_on, groups_of, networks, prune_
from gracile.zoo import LSTMLanguageModel, build, digits

QUICK = replace(
    PARTS["tiny"]["vggsmall"],
    network=lambda seed: _small(seed),
    first=2,
    more=4,
    left={"single": by_size(2), "runs of 16": by_size(4)},
    beside="convolutions",
)


def _small(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2048, 10)),
    )


def test_recipe_on_a_few_epochs(monkeypatch):
    monkeypatch.setattr(measured, "DENSE", ("torch",))  # each of the others takes a second to prepare a layer
    monkeypatch.setitem(PARTS, "tiny", {"small": QUICK})
    results = {result.id: result for result in run("T2", "tiny", 0)}
    claims = {claim.id for claim in work("T2").claims}
    assert {result.claim for result in results.values()} <= claims | {None}
    assert results["small dense test"].value > 80
    for kind, density in QUICK.left.items():
        lost = results["small dense test"].value - results[f"small {kind} test"].value
        assert results[f"small {kind} lost"].value == pytest.approx(lost)
        assert results[f"small {kind} lost"].holds == (lost <= 1)
        left = 4608 * density((32, 16, 3, 3)) + 20480 * density((10, 2048))
        share = left / (4608 + 20480)
        assert results[f"small {kind} density"].value == pytest.approx(100 * share, abs=0.2)
    faster = results["small single faster"]
    dense = min(result.value for id, result in results.items() if id in ("small torch", "small ONNX Runtime"))
    assert faster.value <= dense / results["small single time"].value * (1 + 1e-9)
    assert faster.holds == (faster.value >= 1)
    alone = results["small single convolutions"]
    assert alone.value > 0
    assert alone.claim == "convolutions"


@pytest.mark.parametrize(("kind", "run"), [("single", 1), ("runs of 16", 16)])
def test_zeros_stay_while_the_rest_learns(kind, run):
    splits = digits()
    begun = begin(QUICK, splits, 0)
    before = {name: value.clone() for name, value in begun.state_dict().items()}
    model = go_on(begun, QUICK, splits, 0, kind)
    assert all(torch.equal(value, before[name]) for name, value in begun.state_dict().items())
    found = densities(model, [name for name, _ in model.named_parameters()])
    for name in ("2.weight", "5.weight"):
        weight = dict(model.named_parameters())[name]
        assert found[name] == pytest.approx(QUICK.left[kind](weight.shape), abs=0.01)
        weight = weight.flatten(1)
        whole = weight[: len(weight) // run * run].reshape(-1, run, weight.shape[1])
        assert ((whole != 0).any(1) == (whole != 0).all(1)).all()  # a run is zero as a whole, or not at all
        assert not torch.equal(dict(model.named_parameters())[name], before[name])
    assert found["0.weight"] == 1


def test_kinds_see_other_batches_and_dense_is_dense():
    splits = digits()
    begun = begin(QUICK, splits, 0)
    same = [go_on(begun, QUICK, splits, 0, "dense").state_dict() for _ in range(2)]
    assert all(torch.equal(same[0][name], same[1][name]) for name in same[0])
    assert all(value.count_nonzero() == value.numel() for value in same[0].values())
    all_left = replace(QUICK, left={"single": equal(1.0)})
    other = go_on(begun, all_left, splits, 0, "single").state_dict()
    assert not torch.equal(other["5.weight"], same[0]["5.weight"])


@pytest.mark.parametrize("run", [1, RUN])
def test_the_smallest_go(run):
    model = build("lenet", (1, 8, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    prune_(model, by_size(1.0), 1.0, run)
    for name, p in model.named_parameters():
        if name not in prunable(model):
            assert torch.equal(p, before[name])
            continue
        old, new = before[name].flatten(1), p.detach().flatten(1)
        whole = len(old) // run * run
        for start, stop, size in ((0, whole, run), (whole, len(old), len(old) - whole)):
            if start == stop:
                continue
            norms = old[start:stop].reshape(-1, size, old.shape[1]).pow(2).sum(1)
            left = new[start:stop].reshape(-1, size, old.shape[1]).ne(0).any(1)
            assert left.sum().item() == norms.numel() - round((1 - by_size(1.0)(p.shape)) * norms.numel())
            assert norms[left].min() >= norms[~left].max()


def test_runs_do_not_cross_the_last_rows():
    sizes = [g.of({"w": torch.ones(2600, 3)}).sizes.unique().tolist() for g in groups_of("w", 2600, 16)]
    assert sizes == [[16], [8]]
    assert [g.of({"w": torch.ones(8, 3)}).sizes.unique().tolist() for g in groups_of("w", 8, 16)] == [[8]]


def test_large_layers_become_sparser():
    assert by_size(8)((16, 16, 3, 3)) == pytest.approx((8 * 38 / 2304) ** 0.5)
    assert by_size(8)((64, 64, 3, 3)) < by_size(8)((16, 16, 3, 3))
    assert by_size(9)((10, 64)) == 1


def test_moved_images_are_shifted_or_mirrored():
    images = digits().train
    torch.manual_seed(0)
    moved = Moved(images, shift=2).__getitems__(range(40))
    kinds = set()
    for (x, target), (original, same) in zip(moved, images.__getitems__(range(40)), strict=True):
        padded = nn.functional.pad(original, (2, 2, 2, 2))
        places = [
            (down, across, mirrored)
            for mirrored in (False, True)
            for down in range(5)
            for across in range(5)
            if torch.equal(x.flip(2) if mirrored else x, padded[:, down : down + 8, across : across + 8])
        ]
        assert places
        assert target == same
        kinds.update(places[:1])
    assert len(kinds) > 10
    torch.manual_seed(0)
    assert all(
        torch.equal(x, y)
        for (x, _), (y, _) in zip(moved, Moved(images, shift=2).__getitems__(range(40)), strict=True)
    )


def test_what_may_become_sparse():
    assert prunable(LSTMLanguageModel(100, (32, 32), embedding=32)) == [
        "layers.0.weight_ih_l0",
        "layers.0.weight_hh_l0",
        "layers.1.weight_ih_l0",
        "layers.1.weight_hh_l0",
        "decoder.weight",
    ]
    resnet = prunable(build("resnet20", (3, 32, 32)))
    assert len(resnet) == 18
    assert not {"conv1.weight", "linear.weight"} & set(resnet)


def test_alexnet_is_small_and_its_runs_stay_in_their_groups():
    model = alexnet()
    assert count(model, torch.zeros(1, 3, 32, 32)).macs < 40e6
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels // module.groups % RUN == 0


def test_trained_networks_are_kept(tmp_path, monkeypatch):
    splits = digits()
    first = networks("small", QUICK, splits, 0, ["dense", "single"], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f"small-{kind}-seed0.safetensors" for kind in ("begun", "dense", "single")
    }

    def never(*_):
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr("gracile.papers.t02_sparse_conv.training.go_on", never)
    again = networks("small", QUICK, splits, 0, ["dense", "single"], tmp_path)
    for kind, model in first.items():
        assert not again[kind].training
        assert all(torch.equal(v, again[kind].state_dict()[name]) for name, v in model.state_dict().items())


def test_programs_are_measured_by_the_fastest():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()
    sparse = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 512)).eval()
    with torch.no_grad():
        for p in sparse.parameters():
            p *= torch.rand_like(p) < 0.02
    found = timed({"dense": dense, "single": sparse}, torch.randn(1, 1024), rounds=5)
    assert "torch channels-last" in found.refused
    assert found.dense[found.best] == min(found.dense.values())
    assert found.faster("single") == found.dense[found.best] / found.own["single"]
    fixed = Timed({"a": 2.0, "b": 1.0}, {}, {"single": 0.5}, {})
    assert (fixed.best, fixed.faster("single")) == ("b", 2.0)


def test_perplexity_that_is_lost_is_a_share():
    part = replace(PARTS["cpu"]["lstm"], batch_size=2)
    torch.manual_seed(0)
    from gracile.train import Splits
    from gracile.zoo import Windows

    windows = Windows(torch.arange(41) % 50, ("a",) * 50, steps=5, batch_size=2)
    pair = {kind: LSTMLanguageModel(50, (32, 32), embedding=32).eval() for kind in ("dense", "single")}
    results = {r.id: r for r in recipe.scores("lstm", part, pair, Splits(windows, windows, windows))}
    share = results["lstm single test"].value / results["lstm dense test"].value
    assert results["lstm single lost"].value == pytest.approx(100 * (share - 1))
    assert results["lstm single lost"].unit == "%"
    assert KINDS[0] == "dense"
