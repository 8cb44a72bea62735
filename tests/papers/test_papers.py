"""Works, claims, ledger and tables."""

import json
from pathlib import Path

import pytest

from gracile.errors import FileError, UsageError
from gracile.papers import Result, criteria, insert, ledger, markdown, record, run, work, works

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("id", works())
def test_every_work_is_complete(id):
    found = work(id)
    assert found.header.id == id
    assert found.claims
    assert len({claim.id for claim in found.claims}) == len(found.claims)
    for heading in ("**Gist.**", "**Use it**", "**Knobs.**", "**Trade-offs.**", "**What differs"):
        assert heading in found.card


def test_unknown_works_are_named():
    with pytest.raises(UsageError, match=r"got 'C99'; expected one of C3, "):
        work("C99")
    assert work("c6") is work("C6")


def _fill(folder):
    for seed, value in ((0, 1.0), (1, 3.0), (2, 2.0)):
        results = [
            Result("more columns", "columns", value, "points", claim="structure", holds=value > 1.5),
            Result("loss", "accuracy lost", -value),
        ]
        record(folder, "C6", "tiny", seed, results, seconds=1.5, command="gracile papers run C6")


def test_ledger_takes_the_newest_record_of_every_seed(tmp_path):
    _fill(tmp_path)
    record(tmp_path, "C6", "tiny", 2, [Result("loss", "accuracy lost", -9.0)], 1.0, "again")
    measured = ledger(tmp_path, "C6", "tiny")
    assert measured.seeds == (0, 1, 2)
    lines = {line.result.id: line for line in measured.lines}
    assert lines["more columns"].values == (1.0, 3.0)
    assert lines["more columns"].held == (1, 2)
    assert lines["more columns"].claim.id == "structure"
    assert lines["loss"].values == (-1.0, -3.0, -9.0)
    assert lines["loss"].median == -3.0
    assert lines["loss"].held is None
    assert ledger(tmp_path, "C6", "cpu").lines == ()


def test_results_are_only_ever_added(tmp_path):
    _fill(tmp_path)
    _fill(tmp_path)
    files = list((tmp_path / "C6").iterdir())
    assert len(files) == 6
    entry = json.loads(files[0].read_text())
    assert {"work", "scale", "seed", "command", "finished", "seconds", "environment", "results"} == set(entry)


def test_only_finite_numbers_are_recorded(tmp_path):
    with pytest.raises(UsageError, match="nan for 'accuracy lost'"):
        record(tmp_path, "C6", "tiny", 0, [Result("loss", "accuracy lost", float("nan"))], 1.0, "x")
    assert not list(tmp_path.iterdir())


def test_damaged_results_are_named(tmp_path):
    _fill(tmp_path)
    victim = next((tmp_path / "C6").iterdir())
    victim.write_text('{"work": "C6", "scale": "huge"}')
    with pytest.raises(FileError, match=victim.name):
        ledger(tmp_path, "C6", "tiny")


README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"


def test_tables_are_made_from_results(tmp_path):
    _fill(tmp_path)
    document = tmp_path / "results.md"
    document.write_text("no markers")
    with pytest.raises(UsageError, match="no markers"):
        insert(document, tmp_path)
    document.write_text(RESULTS.read_text())
    insert(document, tmp_path)
    insert(document, tmp_path)
    text = document.read_text()
    assert text.count("| columns | 2 points | 1 to 3 | 2 of 3 |") == 1
    assert text.count("| accuracy lost | -2  | -3 to -1 |") == 1
    assert text.startswith(RESULTS.read_text()[:300])


def test_the_table_of_criteria_has_nothing_else(tmp_path):
    _fill(tmp_path)
    document = tmp_path / "README.md"
    document.write_text(README.read_text())
    insert(document, tmp_path)
    text = document.read_text()
    assert text.count("| C6 | `tiny`, 3 | columns | 2 points | 1 to 3 | 2 of 3 |") == 1
    assert "accuracy lost |" not in text
    assert text.endswith(README.read_text()[-200:])
    assert criteria(tmp_path / "none").startswith("No results yet")


@pytest.mark.parametrize("document", [README, RESULTS], ids=lambda path: path.name)
def test_documents_show_the_results_of_the_repository(document, tmp_path):
    copy = tmp_path / document.name
    copy.write_text(document.read_text())
    insert(copy, ROOT / "results")
    assert copy.read_text() == document.read_text(), f"run: gracile papers table --write {document.name}"
    assert markdown(tmp_path / "none").startswith("No results yet")


def test_recipe_of_deephoyer_on_a_few_epochs(monkeypatch):
    from gracile.papers.c09_deephoyer import recipe

    quick = recipe._Setting("mlp", "digits", 2, 3, 3, 1, 64, dict.fromkeys(recipe._PENALTIES, (1e-4, 1e-3)))
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in run("C9", "tiny", 0)}
    assert 64 * 300 + 300 * 100 < results["weights"].value <= 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10
    assert results["advantage"].claim == "beats-l1"
    assert results["advantage"].holds == (results["advantage"].value > 1)
    assert results["dense"].value > 50


def test_recipe_of_ssl_on_a_few_epochs(monkeypatch):
    from gracile.papers.c06_ssl import recipe
    from gracile.pipeline import Plan

    plan = Plan(dense=3, learn=12, tune=2, strength=3e-2, batch_size=32, rate_learn=1.0, latency_batches=(4,))
    quick = recipe._Setting("digits", 3, 6, 2, 5e-2, (1e-3, 1e-2), plan)
    monkeypatch.setitem(recipe._SETTINGS, "tiny", quick)
    results = {result.id: result for result in run("C6", "tiny", 0)}
    assert results["ssl columns"].value > results["l1 columns"].value
    assert results["equality"].value < 1e-5
    assert results["macs"].value > 1
    assert results["latency 4"].value > 0
