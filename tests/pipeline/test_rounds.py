"""Journeys down to a budget, on bundled digits with few epochs."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from gracile.cost import count
from gracile.errors import RefusedError, UsageError
from gracile.files import read_json, write_json
from gracile.graph import watch
from gracile.pipeline import Budget, Outcome, Plan, publish, slim_to
from gracile.pipeline.budget import ranking
from gracile.reduce import load
from gracile.train import classification, evaluate
from gracile.zoo import build
from gracile.zoo import load as load_data

PLAN = Plan(dense=2, tune=2, batch_size=32, latency_batches=(1,))


@pytest.fixture(scope="module")
def splits():
    return load_data("digits")


def network(splits):
    torch.manual_seed(0)
    return build("lenet", splits)


def journey(splits, budget, model=None, **settings):
    model = network(splits) if model is None else model
    reduced, outcome = slim_to(
        model,
        splits,
        classification(),
        settings.pop("plan", PLAN),
        budget,
        title="",
        progress=False,
        **settings,
    )
    return model, reduced, outcome


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_a_share_is_met_in_rounds_with_tuning_in_between(splits, tmp_path, of):
    budget = Budget(of, 0.25, rounds=2, importance="taylor", protect=("conv1",))
    stages: list[str] = []
    model, reduced, outcome = journey(splits, budget, folder=tmp_path, announce=stages.append)
    assert [name for name, _ in outcome.histories] == ["dense", "fine-tune 1", "fine-tune 2"]
    assert [len(history.epochs) for _, history in outcome.histories] == [2, 1, 1]
    before, after = (count(m, splits.train[0][0].unsqueeze(0)) for m in (model, reduced))
    share = after.parameters / before.parameters if of == "parameters" else after.macs / before.macs
    assert 0.15 < share <= 0.25
    assert reduced.conv1.out_channels == model.conv1.out_channels
    assert "asked 25.0%" in outcome.asked
    first = read_json(tmp_path / "rounds" / "1" / "evidence.json", dict)
    assert "asked 50.0%" in first["said"]
    assert outcome.after.score == evaluate(reduced, splits.test, classification()).score
    # cut twice, saved once: the two cuts replay on a fresh network
    again = load(tmp_path / "reduced", network(splits))
    for name, tensor in reduced.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert "Budget: asked" in publish(outcome, tmp_path / "report.html").read_text()


def test_a_latency_is_met_and_an_interrupted_run_goes_on(splits, tmp_path):
    budget = Budget("latency", 0.7, batch=64, limit_s=2.0, rounds=2)
    model, reduced, outcome = journey(splits, budget, folder=tmp_path)
    said = outcome.asked
    assert "asked" in said
    assert "measured" in said
    assert sum(p.numel() for p in reduced.parameters()) < sum(p.numel() for p in model.parameters())
    stages: list[str] = []
    _, second, again = journey(splits, budget, folder=tmp_path, announce=stages.append)
    assert not any("Timing the widths" in stage for stage in stages)  # what was timed is not timed again
    assert again.asked == said
    assert again.histories == outcome.histories
    for name, tensor in reduced.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])


def test_budgets_that_cannot_be_met_are_refused_before_training(splits):
    for budget in (Budget("parameters", 1e-4), Budget("macs", 1e-4)):
        stages: list[str] = []
        with pytest.raises(UsageError, match="the least that can be reached"):
            journey(splits, budget, announce=stages.append)
        assert stages == []
    stages = []
    with pytest.raises(RefusedError, match="narrowest"):
        journey(splits, Budget("latency", latency_s=1e-8), announce=stages.append)
    assert not any("Training" in stage for stage in stages)


@pytest.mark.parametrize("name", ["magnitude", "batch-norm", "taylor", "activation"])
def test_every_ranking_has_a_name(splits, name):
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 10)
    )
    plan = Plan(dense=0, tune=0, latency_batches=(1,))
    budget = Budget("parameters", 0.52, importance=name)
    nn.init.uniform_(model[1].weight)
    original = copy.deepcopy(model.eval())
    _, reduced, _ = journey(splits, budget, model, plan=plan)
    assert reduced[0].out_channels == 3
    score = ranking(name, splits, classification())
    graph = watch(original, splits.train[0][0].unsqueeze(0))
    order = score(graph, original).argsort(descending=True)[:3]
    kept = sorted(graph.units[int(u)].slices[0].indices[0] for u in order)
    assert torch.equal(reduced[0].weight, original[0].weight[kept])


def test_old_outcomes_are_still_read(splits, tmp_path):
    _, _, outcome = journey(
        splits, Budget("parameters", 0.5), plan=Plan(dense=1, tune=0, latency_batches=(1,))
    )
    path = write_json(tmp_path / "outcome.json", outcome)
    content = json.loads(path.read_text())
    del content["asked"]
    path.write_text(json.dumps(content))
    assert read_json(path, Outcome).asked == ""
