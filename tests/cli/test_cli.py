"""The command line as a person meets it: in a process of its own where it matters, else in this one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from gracile.cli import app, options
from gracile.errors import GracileError, UsageError
from gracile.files import write_json, write_tensors
from gracile.reduce import load, remove, save, smallest
from gracile.zoo import build

QUICK = ["--dataset", "digits", "--dense", "3", "--learn", "12", "--tune", "1", "--strength", "0.03"]


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("cli") / "run"
    result = run("reduce", *QUICK, "-o", out)
    assert result.exit_code == 0
    assert "MACs" in result.output
    return out


def test_reduce_leaves_everything_behind(folder):
    names = {path.name for path in folder.iterdir()}
    assert {"report.html", "outcome.json", "dense.safetensors", "reduced", "model.json"} <= names
    outcome = json.loads((folder / "outcome.json").read_text())
    assert outcome["after"]["parameters"] < outcome["before"]["parameters"]


def test_reduce_to_a_budget(tmp_path):
    out = tmp_path / "run"
    budget = ["--parameters", "0.3", "--importance", "activation", "--protect", "fc*", "--rounds", "2"]
    short = ["--dataset", "digits", "--dense", "1", "--tune", "2"]
    result = run("reduce", *short, *budget, "-o", out)
    assert result.exit_code == 0
    assert "asked 30.0% of parameters" in " ".join(result.output.split())
    outcome = json.loads((out / "outcome.json").read_text())
    assert outcome["after"]["parameters"] <= 0.3 * outcome["before"]["parameters"]
    with pytest.raises(UsageError, match="budget"):
        run("reduce", *short, "--parameters", "0.4", "-o", out)


def test_compose_runs_stages_and_leaves_a_network_that_loads(tmp_path):
    out = tmp_path / "run"
    arguments = [
        "compose",
        "low-rank=0.8",
        "units=0.4",
        "bits=8",
        "--dataset",
        "digits",
        "--dense",
        "2",
        "-o",
        out,
    ]
    result = run(*arguments)
    assert result.exit_code == 0
    passage = json.loads((out / "passage.json").read_text())
    assert [leg["stage"].partition("(")[0] for leg in passage["legs"]] == [
        "dense",
        "LowRank",
        "Units",
        "Bits",
    ]
    assert passage["legs"][-1]["stored"] < 0.2 * passage["legs"][0]["stored"]
    network = load(out / "reduced", build("lenet", (1, 8, 8), 10))
    assert sum(p.numel() for p in network.parameters()) == passage["legs"][-1]["parameters"]
    with pytest.raises(UsageError, match="stages"):
        run(*arguments[:2], *arguments[4:])


@pytest.mark.parametrize("stages", [["bits=8", "units=0.5"], ["nothing=1"], ["units=much"], ["units=2"]])
def test_stages_that_cannot_be(tmp_path, stages):
    with pytest.raises(GracileError):
        run("compose", *stages, "--dataset", "digits", "-o", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--latency", "5ms", "--macs", "0.5"], "--latency with --macs"),
        (["--macs", "0.5", "--strength", "0.1"], "--macs with --strength"),
        (["--macs", "0.5", "--gone", "0.1"], "--macs with --gone"),
        (["--gone", "0.5", "--strength", "0.1"], "with --strength"),
        (["--rounds", "2"], "--rounds without a budget"),
        (["--latency", "soon"], "a time like 5ms"),
        (["--macs", "1.5"], "between 0 and 1"),
        (["--macs", "0.5", "--protect", "nowhere"], "nowhere"),
        (["--latency", "1us"], "narrowest network"),
    ],
    ids=str,
)
def test_budgets_that_contradict_themselves(given, says, tmp_path):
    with pytest.raises(GracileError, match=says):
        run("reduce", "--dataset", "digits", *given, "-o", tmp_path / "run")


def test_report_can_be_made_again(folder, tmp_path):
    assert run("report", folder, "-o", tmp_path / "again.html").exit_code == 0
    assert (tmp_path / "again.html").read_text() == (folder / "report.html").read_text()


def test_train_writes_weights_that_reduce_takes(tmp_path):
    trained = tmp_path / "train"
    arguments = ["--model", "mlp", "--dataset", "digits", "--epochs", "2", "-o", trained]
    assert run("train", *arguments).exit_code == 0
    first = (trained / "model.safetensors").read_bytes()
    assert run("train", *arguments).exit_code == 0  # finished: nothing changes
    assert (trained / "model.safetensors").read_bytes() == first
    rows = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert sum(row["kind"] == "epoch" for row in rows) == 2
    weights = trained / "model.safetensors"
    hopeless = ["--weights", weights, "--learn", "1", "--strength", "1e-9", "--dataset", "digits"]
    with pytest.raises(UsageError, match="no dead unit"):
        run("reduce", "--model", "mlp", *hopeless, "-o", tmp_path / "r")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (["--strength", "0.04"], "strength 0.04"),
        (["--model", "mlp"], "model mlp"),
        (["--seed", "1"], "seed 1"),
    ],
    ids=["strength", "model", "seed"],
)
def test_a_folder_holds_one_run(folder, change, says):
    before = (folder / "model.json").read_text()
    with pytest.raises(UsageError, match=says):
        run("reduce", *QUICK, *change, "-o", folder)
    assert (folder / "model.json").read_text() == before


def test_weights_belong_to_the_run(tmp_path):
    network = build("mlp", (1, 8, 8))
    recipes = []
    for scale in (1.0, 2.0):
        tensors = {name: scale * tensor for name, tensor in network.state_dict().items()}
        path = write_tensors(tmp_path / "w.safetensors", tensors)
        recipes.append(options.prepare("mlp", path, "digits", None, 0)[3])
    options.claim(tmp_path / "model.json", recipes[0])
    options.claim(tmp_path / "model.json", recipes[0])
    with pytest.raises(UsageError, match="weights"):
        options.claim(tmp_path / "model.json", recipes[1])


def test_training_with_other_settings_needs_another_folder(tmp_path):
    arguments = ["train", "--model", "mlp", "--dataset", "digits", "--epochs", "1", "-o", tmp_path / "t"]
    assert run(*arguments).exit_code == 0
    with pytest.raises(UsageError, match=r"decay 0\.1"):
        run(*arguments, "--decay", "0.1")
    assert run(*arguments[:-1], tmp_path / "u", "--epochs", "0").exit_code == 2
    assert not (tmp_path / "u").exists()


def test_token_networks_are_measured_on_tokens(tmp_path):
    recipe = options.Recipe("lstm", (4,), 20, "ptb")
    tokens = recipe.examples(3)
    assert (tokens.dtype, tokens.shape) == (torch.int64, (3, 4))
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < 20
    network = options.construct(recipe).eval()
    write_json(tmp_path / "model.json", recipe)
    write_tensors(tmp_path / "dense.safetensors", network.state_dict())
    reduction = remove(network, tokens, units=lambda graph, model: smallest(graph, model, fraction=0.5))
    save(tmp_path / "reduced", reduction.model, reduction.cut)
    quick = ["--rounds", "5", "--engines", "torch"]
    assert run("bench", tmp_path, "--batches", "2", *quick).exit_code == 0
    with pytest.raises(UsageError, match="from 1 on"):
        run("bench", tmp_path, "--batches", "0")


def test_own_networks(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    raise ValueError('inside')\n"
        "def narrow():\n    return nn.Sequential(nn.Flatten(), nn.Linear(63, 10))\n"
        "def few():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    own = ["train", "--dataset", "digits", "--epochs", "1", "-o", "out", "--model"]
    assert run(*own, "own_network:small").exit_code == 0
    for spec, says in (
        ("own_network:wrong", "a int"),
        ("own_network:none", "none"),
        ("nowhere:f", "nowhere"),
        ("own_network:broken", "ValueError: inside"),
        ("own_network:narrow", "63x10"),
        ("own_network:few", "to 10 classes"),
    ):
        with pytest.raises(UsageError, match=says):
            run(*own, spec)


@pytest.mark.parametrize(
    "arguments",
    [
        ["report", "nowhere"],
        ["bench", "nowhere"],
        ["papers", "show", "C99"],
        ["reduce", "--dataset", "nothing"],
        ["reduce", "--dataset", "digits", "--learn", "0"],
        ["reduce", "--dataset", "digits", "--model", "lstm"],
        ["papers", "table", "--write", "nowhere.md"],
        ["reduce", "--model", "nothing", "--dataset", "digits"],
        ["reduce", "--weights", "nowhere", "--dataset", "digits"],
        ["reduce", "--dataset", "cifar10", "--data", "nowhere"],
        ["papers", "run", "C6", "--seeds", "a,b"],
    ],
    ids=" ".join,
)
def test_mistakes_are_explained(arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GracileError) as error:
        run(*arguments)
    assert "expected" in str(error.value)
    assert not any(tmp_path.iterdir())


def process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", "from gracile.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_errors_come_without_traceback_unless_asked():
    done = process("papers", "show", "C99")
    assert done.returncode == 2
    assert "error:" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in process("--traceback", "papers", "show", "C99").stderr
    unknown = process("reduce", "--no-such-option")
    assert unknown.returncode == 2
    assert "Traceback" not in unknown.stderr


def test_help_teaches():
    for arguments in ([], ["reduce"], ["train"], ["bench"], ["report"], ["papers"], ["papers", "run"]):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
    assert "Example:" in run("reduce", "--help").output
    assert "gracile reduce" in run("--help").output
    assert run("--version").output.startswith("gracile ")


def test_papers_are_listed_and_shown():
    assert "DeepHoyer" in run("papers", "list").output
    shown = run("papers", "show", "c9").output
    assert "Hoyer-Square" in shown
    assert "What was published" in shown


def test_papers_run_records_results(tmp_path, monkeypatch):
    from gracile.papers.c09_deephoyer import recipe

    quick = recipe._Setting("mlp", "digits", 1, 1, 1, 1, 64, dict.fromkeys(recipe._PENALTIES, (1e-4,)))
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    result = run("papers", "run", "C9", "--seeds", "3,4", "--results", tmp_path)
    assert result.exit_code == 0
    assert len(list((tmp_path / "C9").glob("tiny-seed*.json"))) == 2
    assert run("papers", "table", "--results", tmp_path).output.count("seeds 3, 4") == 1


def test_the_package_runs_from_its_console_script():
    script = Path(sys.executable).with_name("gracile")
    if not script.exists():
        pytest.skip(reason="reason: the console script is not installed beside this interpreter")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("gracile ")
