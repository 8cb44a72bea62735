"""ONNX files that ONNX Runtime runs, or none."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError, UsageError
from gracile.reduce import remove, smallest
from gracile.reduce.export import export_onnx

onnxruntime = pytest.importorskip("onnxruntime", reason="an optional extra")
pytest.importorskip("onnxscript", reason="an optional extra")


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )


def test_reduced_model_in_a_file_for_any_batch(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 6, 6)
    model = remove(small().eval(), x, units=partial(smallest, fraction=0.5)).model.train()
    path = tmp_path / "new" / "m.onnx"
    assert export_onnx(path, model, x, dynamic_shapes=({0: torch.export.Dim("batch")},)) == path
    assert model.training
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    more = torch.randn(5, 3, 6, 6)
    found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: more.numpy()})[0])
    torch.testing.assert_close(found, model.eval()(more), rtol=1e-5, atol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == ["m.onnx"]


def test_nothing_is_written_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(1, 3, 6, 6)
    with pytest.raises(RefusedError, match="relative error"):
        export_onnx(tmp_path / "m.onnx", small(), x, tolerance=0.0)
    monkeypatch.setattr(torch.onnx.ONNXProgram, "__call__", lambda self, y: [torch.zeros(1, 4)])
    with pytest.raises(RefusedError, match="relative error"):
        export_onnx(tmp_path / "m.onnx", small(), x)
    assert not list(tmp_path.iterdir())


def test_what_torch_cannot_export(tmp_path: Path) -> None:
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(RefusedError, match="torch can export"):
        export_onnx(tmp_path / "m.onnx", Branching(), torch.ones(2))


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"gracile\[onnx\]"):
        export_onnx(tmp_path / "m.onnx", small(), torch.ones(1, 3, 6, 6))
