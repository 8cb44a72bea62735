"""The main job on bundled digits, with few epochs."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from msgspec import json as codec
from torch import nn

from gracile.cost import count
from gracile.errors import RefusedError, UsageError
from gracile.files import read_json, write_json
from gracile.pipeline import Outcome, Plan, publish, slim, summarize
from gracile.pipeline.outcome import layers
from gracile.pipeline.present import gains
from gracile.reduce import load, remove, smallest
from gracile.train import classification, evaluate
from gracile.zoo import LSTMLanguageModel, build
from gracile.zoo import load as load_data

PLAN = Plan(dense=4, learn=15, tune=3, strength=3e-2, batch_size=32, rate_learn=1.0, latency_batches=(1, 8))


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journey")
    splits = load_data("digits")
    torch.manual_seed(0)
    model = build("lenet", splits)
    stages = []
    reduced, outcome = slim(
        model,
        splits,
        classification(),
        PLAN,
        title="<LeNet> on digits",
        command="gracile reduce",
        folder=folder,
        progress=False,
        announce=stages.append,
    )
    return folder, splits, model, reduced, outcome, stages


def test_the_reduced_network_is_smaller_and_as_the_outcome_says(journey):
    _, splits, model, reduced, outcome, stages = journey
    example = splits.train[0][0].unsqueeze(0)
    for network, snapshot in ((model, outcome.before), (reduced, outcome.after)):
        cost = count(network, example)
        assert (snapshot.parameters, snapshot.macs, snapshot.bytes) == (
            cost.parameters,
            cost.macs,
            cost.bytes,
        )
        assert snapshot.score == evaluate(network, splits.test, classification()).score
    assert outcome.after.macs < outcome.before.macs
    assert outcome.equality < 1e-5
    assert [stage.split()[0] for stage in stages] == [
        "Training",
        "Learning",
        "Removing",
        "Fine-tuning",
        "Measuring",
    ]
    widths = {layer.name: layer.width for layer in outcome.layers}
    assert widths["conv1"] == (20, reduced.conv1.out_channels)
    assert widths["fc2"] == (10, 10)


def test_the_reduced_network_loads_from_its_folder(journey):
    folder, splits, _, reduced, _, _ = journey
    again = load(folder / "reduced", build("lenet", splits))
    for name, tensor in reduced.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_a_second_call_continues_from_checkpoints_to_the_same_network(journey):
    folder, splits, _, reduced, outcome, _ = journey
    torch.manual_seed(0)
    again, second = slim(
        build("lenet", splits),
        splits,
        classification(),
        PLAN,
        title="again",
        folder=folder,
        progress=False,
    )
    assert second.histories == outcome.histories
    for name, tensor in reduced.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


def test_outcome_survives_json_and_its_page_escapes(journey, tmp_path, capsys):
    outcome = journey[4]
    again = read_json(write_json(tmp_path / "outcome.json", outcome), Outcome)
    assert codec.encode(again) == codec.encode(outcome)
    text = publish(again, tmp_path / "report.html").read_text()
    assert "&lt;LeNet&gt;" in text
    assert "<LeNet>" not in text
    assert "gracile reduce" in text
    summarize(again)
    assert "MACs" in capsys.readouterr().out


def test_a_trained_network_needs_no_dense_stage(journey):
    _, splits, model, _, _, _ = journey
    trained = copy.deepcopy(model)
    plan = Plan(dense=0, learn=12, tune=0, strength=5e-2, batch_size=32, rate_learn=1.0, latency_batches=(1,))
    _, outcome = slim(trained, splits, classification(), plan, title="trained", progress=False)
    assert [name for name, _ in outcome.histories] == ["structure"]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name])


@pytest.mark.parametrize("network", ["recurrent", "transposed"])
def test_layers_are_told_by_their_outputs(network):
    torch.manual_seed(0)
    if network == "recurrent":
        model, example = LSTMLanguageModel(20, (8, 6)), torch.randint(20, (2, 5))
        widths = {"embedding": (8, 4), "layers.0": (8, 4), "layers.1": (6, 3), "decoder": (20, 20)}
    else:
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 3), nn.Conv2d(6, 2, 1))
        example, widths = torch.randn(2, 1, 6, 6), {"0": (4, 2), "2": (6, 3), "3": (2, 2)}
    reduced = remove(model, example, units=lambda graph, model: smallest(graph, model, fraction=0.5)).model
    costs = count(model, example), count(reduced, example)
    found = layers(model, reduced, costs)
    assert {layer.name: layer.width for layer in found} == widths
    for place, cost in enumerate(costs):
        assert sum(layer.parameters[place] for layer in found) == cost.parameters


def test_layers_of_one_module_are_one_row():
    model, example = nn.GRU(3, 5, num_layers=2, bidirectional=True), torch.randn(4, 2, 3)
    cost = count(model, example)
    [row] = layers(model, model, (cost, cost))
    assert (row.name, row.width) == ("GRU", (5, 5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dense": -1},
        {"learn": 0},
        {"tune": -1},
        {"rate": 0.0},
        {"rate_tune": -0.5},
        {"strength": -1.0},
        {"strength": math.nan},
        {"gone": 1.0},
        {"lose": 0.0},
        {"guidance": math.inf},
        {"batch_size": 0},
        {"latency_batches": (1, 0)},
    ],
    ids=str,
)
def test_a_plan_that_makes_no_sense_is_refused_at_once(wrong):
    with pytest.raises(UsageError, match="planning"):
        Plan(**wrong)


@pytest.mark.parametrize(
    ("interval", "verdict"), [((0.9, 1.2), "same"), ((1.01, 1.2), "better"), ((0.7, 0.9), "worse")]
)
def test_a_speed_up_counts_when_its_interval_is_clear_of_one(journey, interval, verdict):
    outcome = journey[4]
    middle = sum(interval) / 2
    [first, *_] = outcome.latencies
    reduced = replace(first.reduced, speedup=middle, speedup_lower=interval[0], speedup_upper=interval[1])
    measured = replace(outcome, latencies=(replace(first, reduced=reduced),))
    assert gains(measured).figures[-1].verdict == verdict


def test_networks_without_multiply_accumulates_have_a_page(journey, tmp_path, capsys):
    outcome = journey[4]
    for macs in (0.0, None):
        free = replace(
            outcome,
            before=replace(outcome.before, macs=macs),
            after=replace(outcome.after, macs=macs),
            layers=tuple(replace(layer, macs=(macs, macs)) for layer in outcome.layers),
            latencies=(),
        )
        text = publish(free, tmp_path / "report.html").read_text()
        assert ("unknown" in text) == (macs is None)
        summarize(free)
        assert "MACs" in capsys.readouterr().out


def test_a_layer_that_died_altogether_is_told(journey):
    splits = journey[1]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    for parameter in (*model[1].parameters(), model[3].weight):
        nn.init.zeros_(parameter)
    plan = Plan(dense=0, learn=1, tune=0, latency_batches=(1,))
    reduced, outcome = slim(model, splits, classification(), plan, title="", progress=False)
    assert reduced[1].out_features == 1
    [line] = outcome.refused
    assert "one unit of 1" in line
    assert "lower the strength" in line


def test_nothing_dead_is_said(journey):
    _, splits, model, _, _, _ = journey
    plan = Plan(dense=0, learn=1, tune=0, strength=1e-9)
    with pytest.raises(UsageError, match="no dead unit after 1 epochs"):
        slim(copy.deepcopy(model), splits, classification(), plan, title="", progress=False)


GOAL = replace(PLAN, dense=0, learn=6, tune=0, latency_batches=(1,))


def test_a_share_of_the_units_is_reached_exactly(journey):
    _, splits, model, _, _, _ = journey
    plan = replace(GOAL, gone=0.4)
    _, outcome = slim(copy.deepcopy(model), splits, classification(), plan, title="goal", progress=False)
    widths = {layer.name: layer.width for layer in outcome.layers}
    for before, after in (widths[name] for name in ("conv1", "conv2", "fc1")):
        assert after == before - round(0.4 * before)


def test_as_many_units_go_as_the_score_allows(journey):
    _, splits, model, _, _, _ = journey
    score = evaluate(model, splits.validation, classification()).score
    plan = replace(GOAL, lose=0.05, learn=10)
    reduced, outcome = slim(
        copy.deepcopy(model), splits, classification(), plan, title="goal", progress=False
    )
    assert evaluate(reduced, splits.validation, classification()).score >= 0.95 * score
    assert outcome.after.macs < outcome.before.macs


def test_a_score_that_cannot_be_kept_is_refused(journey):
    _, splits, model, _, _, _ = journey
    plan = replace(GOAL, lose=1e-6, learn=1, rate=0.2)
    with pytest.raises(RefusedError, match="validation score"):
        slim(copy.deepcopy(model), splits, classification(), plan, title="goal", progress=False)
