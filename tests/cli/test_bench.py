"""The bench command from a tiny run to figures, table and page."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gracile.cli import app, bench, options
from gracile.errors import RefusedError, UsageError
from gracile.files import write_json, write_tensors
from gracile.reduce import remove, save, smallest
from gracile.runtime import ENGINES, engines


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What gracile reduce leaves behind, without the training."""
    folder = tmp_path_factory.mktemp("bench")
    recipe = options.Recipe("mlp", (1, 8, 8), 10, "digits")
    network = options.construct(recipe).eval()
    reduction = remove(network, recipe.examples(2), units=partial(smallest, fraction=0.5))
    write_json(folder / "model.json", recipe)
    write_tensors(folder / "dense.safetensors", network.state_dict())
    save(folder / "reduced", reduction.model, reduction.cut)
    return folder


def test_every_engine_that_is_installed(folder: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "bench.json", tmp_path / "new" / "bench.html"
    sizes = ["--batches", "1,2", "--rounds", "5"]
    result = run("bench", folder, *sizes, "-o", out, "--report", page)
    assert result.exit_code == 0
    found, there = json.loads(out.read_text()), engines()
    assert found["engines"] == {engine.name: engine.version for engine in there.present}
    assert found["missing"] == there.missing
    assert found["missing"].keys() | found["engines"].keys() == {engine.name for engine in ENGINES}
    assert found["environment"]["torch"] == torch.__version__
    assert [(case["batch"], case["threads"]) for case in found["cases"]] == [(1, 1), (2, 1)]
    for case in found["cases"]:
        comparison = case["comparison"]
        ran = {(row["network"], row["engine"]) for row in comparison["rows"]}
        refused = {(network, engine) for network, engine, _ in comparison["refused"]}
        assert ran | refused == {(n, e.name) for n in ("dense", "reduced") for e in there.present}
        assert not ran & refused
        assert comparison["baseline"][0] == "dense"
        best = min(r["timing"]["median_s"] for r in comparison["rows"] if r["network"] == "dense")
        base = next(r for r in comparison["rows"] if [r["network"], r["engine"]] == comparison["baseline"])
        assert base["timing"]["median_s"] == best
        assert base["timing"]["speedup"] == 1.0
    for text in (page.read_text(), " ".join(result.output.split())):
        for name in (*found["engines"], *found["missing"]):
            assert name in text
    assert "<svg" in page.read_text()


def test_chosen_engines_and_threads(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    chosen = ["--engines", "Torch", "--batches", "3", "--threads", "1,2", "--rounds", "5"]
    assert run("bench", folder, *chosen, "-o", out).exit_code == 0
    found = json.loads(out.read_text())
    assert list(found["engines"]) == ["torch"]
    assert found["missing"] == {}
    assert [(case["batch"], case["threads"]) for case in found["cases"]] == [(3, 1), (3, 2)]
    assert found["cases"][1]["comparison"]["rows"][0]["timing"]["threads"] == 2


def test_engines_that_cannot_be(folder: Path) -> None:
    with pytest.raises(UsageError, match="warp"):
        run("bench", folder, "--engines", "torch,warp")
    with pytest.raises(RefusedError, match="without 2-d convolutions"):
        run("bench", folder, "--engines", "torch channels-last", "--batches", "1")
    with pytest.raises(UsageError, match="from 1 on"):
        run("bench", folder, "--threads", "0")


def test_a_reduced_network_that_no_engine_runs_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = bench.compare

    def without_reduced(networks: Any, *example: Any, **settings: Any) -> Any:
        return compared({"dense": networks["dense"]}, *example, **settings)

    monkeypatch.setattr(bench, "compare", without_reduced)
    result = run("bench", folder, "--engines", "torch", "--batches", "1", "--rounds", "5")
    assert "No engine ran the reduced network" in result.output
