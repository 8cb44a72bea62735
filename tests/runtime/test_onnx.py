"""Dense programs in ONNX Runtime: equal to the network, for any batch, from files, or refused."""

from __future__ import annotations

import importlib.util
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gracile
from gracile.errors import FileError, RefusedError, ShapeError, UsageError
from gracile.reduce import remove, smallest
from gracile.runtime import OnnxProgram, OnnxRuntime
from gracile.zoo import build

pytest.importorskip("onnxruntime", reason="an optional extra")
pytest.importorskip("onnxscript", reason="an optional extra")


def conv() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    ).eval()


class Nested(nn.Module):
    """Outputs in a dictionary, inputs in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, pair: list[Tensor]) -> dict[str, Any]:
        hidden = self.fc(pair[0])
        return {"sum": hidden + pair[1], "parts": [hidden, (pair[1] * 2,)]}


def same(found: Any, want: Any) -> None:
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)


def batch_of(x: Tensor, count: int, dim: int = 0) -> Tensor:
    return (
        torch.randint(20, (count, *x.shape[1:]))
        if not x.is_floating_point()
        else torch.randn(count, *x.shape[1:])
    )


@pytest.mark.parametrize(
    ("model", "x"),
    [
        pytest.param(conv(), torch.randn(2, 3, 6, 6), id="conv"),
        pytest.param(build("resnet20", (3, 16, 16)), torch.randn(1, 3, 16, 16), id="resnet20"),
        pytest.param(build("lstm", (5,), 20), torch.randint(20, (2, 5)), id="lstm"),
        pytest.param(nn.LSTM(4, 6, 2, batch_first=True), torch.randn(3, 5, 4), id="nn.LSTM"),
        pytest.param(nn.GRU(4, 6, batch_first=True, bidirectional=True), torch.randn(1, 5, 4), id="nn.GRU"),
        pytest.param(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8), id="transformer"
        ),
    ],
)
def test_equals_the_network_for_any_batch(model: nn.Module, x: Tensor) -> None:
    program = gracile.compile(model.eval(), x, target=OnnxRuntime())
    assert program.report()["batch"] == "any"
    with torch.no_grad():
        for count in (1, 2, 5):
            more = batch_of(x, count)
            same(program(more), model(more))


def test_a_reduced_network() -> None:
    x = torch.randn(2, 3, 6, 6)
    model = remove(conv(), x, units=partial(smallest, fraction=0.5)).model
    program = gracile.compile(model, x, target=OnnxRuntime())
    same(program(x), model(x).detach())
    assert program.cost().parameters == sum(p.numel() for p in model.parameters())


def test_structure_of_inputs_and_outputs() -> None:
    model, pair = Nested().eval(), [torch.randn(2, 4), torch.randn(2, 4)]
    program = gracile.compile(model, pair, target=OnnxRuntime())
    with torch.no_grad():
        same(program(pair), model(pair))
    assert isinstance(program(pair)["parts"][1], tuple)


def test_states_whose_batch_is_elsewhere() -> None:
    lstm = nn.LSTM(4, 6, 2).eval()
    x, states = torch.randn(5, 3, 4), (torch.randn(2, 3, 6), torch.randn(2, 3, 6))
    program = gracile.compile(lstm, x, states, target=OnnxRuntime())
    with torch.no_grad():
        same(program(x, states), lstm(x, states))
    assert "first dimension" in program.report()["batch"]
    with pytest.raises(ShapeError, match="the batch is fixed"):
        program(x[:3], states)


class Branching(nn.Module):
    """Does something else with large batches: what torch exports to ONNX would not."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 8 else x


class Alone(nn.Module):
    """Torch takes it for granted that a free size is not 1."""

    def forward(self, x: Tensor) -> Tensor:
        return x[0] if x.shape[0] == 1 else x


@pytest.mark.parametrize(("model", "says"), [(Branching(), "batch"), (Alone(), "of one")])
def test_what_depends_on_the_size_of_the_batch_keeps_it(model: nn.Module, says: str) -> None:
    x = torch.randn(3, 4)
    program = gracile.compile(model.eval(), x, target=OnnxRuntime())
    assert program.report()["batch"].startswith("fixed")
    same(program(x), model(x))
    with pytest.raises(ShapeError, match=says):
        program(torch.randn(20, 4))


def test_outputs_are_new_each_time_and_inputs_are_left_alone() -> None:
    model, x = conv(), torch.randn(2, 3, 6, 6)
    before = x.clone()
    program = gracile.compile(model, x, target=OnnxRuntime())
    first = program(x)
    kept = first.clone()
    program(torch.randn(2, 3, 6, 6))
    assert torch.equal(first, kept)
    assert torch.equal(x, before)
    flipped = torch.randn(2, 6, 6, 3).permute(0, 3, 1, 2)  # not contiguous
    same(program(flipped), model(flipped).detach())
    with torch.inference_mode():
        same(program(torch.ones(1, 3, 6, 6)), model(torch.ones(1, 3, 6, 6)))


def test_saved_and_loaded(tmp_path: Path) -> None:
    model, x = nn.LSTM(4, 6, batch_first=True).eval(), torch.randn(2, 5, 4)
    program = OnnxRuntime().compile(model, x)
    for _ in range(2):  # over an older version, too
        path = program.save(tmp_path / "new")
    assert {file.suffix for file in path.parent.iterdir()} == {".json", ".onnx"}
    again = OnnxRuntime(threads=2).load(tmp_path / "new")
    same(again(x), program(x))
    assert again.cost() == program.cost()
    assert again.report() == program.report() | {"threads": "2"}
    OnnxRuntime().compile(conv(), torch.randn(1, 3, 6, 6)).save(path.parent)
    assert len(list(path.parent.iterdir())) == 2  # the older network is gone


@pytest.fixture(scope="module")
def linear() -> OnnxProgram:
    return OnnxRuntime().compile(nn.Linear(3, 2).eval(), torch.ones(1, 3))


def test_costs_that_are_unknown_stay_so(linear: OnnxProgram, tmp_path: Path) -> None:
    path = linear.save(tmp_path)
    header = json.loads(path.read_text())
    header["layers"][0][3] = None
    path.write_text(json.dumps(header))
    assert math.isnan(OnnxRuntime().load(tmp_path).cost().macs)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda h: h.update(version=99), "version 99"),
        (lambda h: h.update(sha256="../../x"), "malformed digest"),
        (lambda h: h.update(sha256="0" * 64), "readable file"),
        (lambda h: h["outputs"].update(kind="tuple"), "0 outputs"),
        (lambda h: h["outputs"].update(kind="dict", keys=["a"]), "0 parts and 1 keys"),
        (lambda h: h["outputs"].update(kind="tuple", parts=[h["outputs"].copy()] * 2), "2 outputs"),
        (lambda h: h.pop("error"), "error"),
    ],
)
def test_damaged_headers(linear: OnnxProgram, tmp_path: Path, damage: Any, says: str) -> None:
    path = linear.save(tmp_path)
    header = json.loads(path.read_text())
    damage(header)
    path.write_text(json.dumps(header))
    with pytest.raises(FileError, match=says):
        OnnxRuntime().load(tmp_path)


def test_damaged_networks(linear: OnnxProgram, tmp_path: Path) -> None:
    path = linear.save(tmp_path)
    file = next(tmp_path.glob("*.onnx"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(FileError, match="other content"):
        OnnxRuntime().load(tmp_path)
    with pytest.raises(FileError, match="nowhere"):
        OnnxRuntime().load(path.parent / "nowhere")


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1 if x.sum() > 0 else x - 1


@pytest.mark.parametrize(
    ("model", "example", "error", "says"),
    [
        (ByValue(), (torch.ones(2),), RefusedError, "torch can export"),
        (nn.Identity(), (), UsageError, "one tensor or more"),
        (conv(), (torch.ones(1, 3, 6, 6), 3), UsageError, "nothing else"),
        (conv(), (torch.ones(1, 3, 6, 6, device="meta"),), UsageError, "on the CPU"),
        (nn.Sequential(nn.Dropout()).train(), (torch.ones(2),), UsageError, "training mode"),
    ],
)
def test_what_cannot_be_compiled(
    model: nn.Module, example: tuple[Any, ...], error: type[Exception], says: str
) -> None:
    if not isinstance(model, nn.Sequential) or len(model) > 1:
        model.eval()
    with pytest.raises(error, match=says):
        gracile.compile(model, *example, target=OnnxRuntime())


def test_inputs_that_do_not_fit() -> None:
    program = gracile.compile(conv(), torch.randn(2, 3, 6, 6), target=OnnxRuntime())
    for given in ((torch.ones(1, 3, 7, 6),), (torch.ones(1, 3, 6, 6).double(),), (), (3,)):
        with pytest.raises(ShapeError, match=r"expected input: tensor\(float\) \['batch', 3, 6, 6\]"):
            program(*given)


def test_without_the_extra(linear: OnnxProgram, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    linear.save(tmp_path)
    find = importlib.util.find_spec
    for missing in ("onnxscript", "onnxruntime"):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, gone=missing: None if name == gone else find(name)
        )
        with pytest.raises(UsageError, match=r"gracile\[onnx\]"):
            OnnxRuntime().compile(nn.Linear(3, 2).eval(), torch.ones(1, 3))
    with pytest.raises(UsageError, match=r"gracile\[onnx\]"):
        OnnxRuntime().load(tmp_path)


def test_no_other_threads_than_allowed() -> None:
    with pytest.raises(UsageError, match="0 threads"):
        OnnxRuntime(threads=0).compile(nn.Linear(3, 2).eval(), torch.ones(1, 3))
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip(reason="the system does not list threads")
    model, x = conv(), torch.randn(2, 3, 6, 6)
    OnnxRuntime().compile(model, x)  # the first time torch starts threads of its own
    counts = []
    for threads in (1, 3):
        before = len(list(tasks.iterdir()))
        program = OnnxRuntime(threads).compile(model, x)
        program(x)
        counts.append(len(list(tasks.iterdir())) - before)
        assert program.report()["threads"] == str(threads)
        del program
    assert counts == [0, 2]  # the calling one works, too
