"""The main job on bundled digits, with few epochs."""

import copy

import pytest
import torch
from msgspec import json as codec

from gracile.cost import count
from gracile.errors import UsageError
from gracile.files import read_json, write_json
from gracile.pipeline import Outcome, Plan, publish, slim, summarize
from gracile.reduce import load
from gracile.train import classification, evaluate
from gracile.zoo import build
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


def test_nothing_dead_is_said(journey):
    _, splits, model, _, _, _ = journey
    plan = Plan(dense=0, learn=1, tune=0, strength=1e-9)
    with pytest.raises(UsageError, match="no dead unit after 1 epochs"):
        slim(copy.deepcopy(model), splits, classification(), plan, title="", progress=False)
