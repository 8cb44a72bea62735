from __future__ import annotations

import json
import math
import sys

import pytest

from gracile.errors import FileError, UsageError
from gracile.train import JsonLines, TensorBoard, classification, fit


def written(path, rows, start=0):
    log = JsonLines(path)
    log.start(start)
    for kind, step in rows:
        log.write(kind, step, {"loss": step / 10})
    log.close()
    return [(row["kind"], row["step"]) for row in map(json.loads, path.read_text().splitlines())]


def test_a_resumed_log_has_no_row_twice(tmp_path):
    path = tmp_path / "log.jsonl"
    rows = [("step", 5), ("step", 10), ("epoch", 10), ("step", 15), ("epoch", 20), ("test", 20)]
    assert written(path, rows) == rows
    assert written(path, rows[3:], start=10) == rows
    assert written(path, rows[5:], start=20) == rows  # the test row is written by every run
    assert written(path, rows) == rows  # from the start


def test_half_a_row_and_foreign_rows_are_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    good = '{"kind": "step", "step": 1, "loss": 0.1}\n'
    path.write_bytes(good.encode() + b'[1]\n"a"\n{"step": "1"}\n\xff\xfe\n{"kind": "step", "step": 2, "lo')
    log = JsonLines(path)
    log.start(5)
    log.close()
    assert path.read_text() == good


def test_rows_are_on_disk_at_once(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.start(0)
    log.write("step", 1, {"loss": 0.5})
    assert (tmp_path / "log.jsonl").read_text() == '{"kind": "step", "step": 1, "loss": 0.5}\n'
    log.close()
    log.close()


def test_what_is_not_finite_is_null(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.start(0)
    log.write("epoch", 1, {"a": math.inf, "b": math.nan, "c": 1.0})
    log.close()
    assert json.loads(log.path.read_text()) == {"kind": "epoch", "step": 1, "a": None, "b": None, "c": 1.0}


def test_an_unwritable_place_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "log.jsonl", tmp_path):
        with pytest.raises(FileError, match=str(path)):
            JsonLines(path).start(0)


def test_tensorboard_holds_the_same_numbers(digits, mlp, tmp_path):
    pytest.importorskip("tensorboard", reason="needs the extra 'tensorboard'")
    lines = JsonLines(tmp_path / "log.jsonl")
    fit(
        mlp(),
        digits,
        classification(),
        epochs=2,
        batch_size=60,
        loggers=[lines, TensorBoard(tmp_path / "board")],
        log_every=2,
        device="cpu",
        progress=False,
    )
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "board")).Reload()
    rows = [json.loads(line) for line in lines.path.read_text().splitlines()]
    for kind, name in (("step", "loss"), ("epoch", "accuracy"), ("test", "accuracy")):
        expected = [(row["step"], pytest.approx(row[name])) for row in rows if row["kind"] == kind]
        assert [(event.step, event.value) for event in board.Scalars(f"{kind}/{name}")] == expected


def test_tensorboard_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard.writer", None)
    with pytest.raises(UsageError, match=r"gracile\[tensorboard\]"):
        TensorBoard(tmp_path)
