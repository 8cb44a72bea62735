"""Rivals: each runs what the network computes, on the threads allowed, or says why it cannot."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gracile.errors import RefusedError, ShapeError, UsageError
from gracile.runtime import ENGINES, DeepSparse, Engine, OnnxRuntimeEngine, Torch, compare, engines
from gracile.runtime.engines import limited
from gracile.runtime.onnx_engines import once
from gracile.zoo import build

QUICK = [engine for engine in ENGINES if not engine.patient]
MODELS = {
    "conv": (nn.Conv2d(3, 8, 3, padding=1), torch.randn(2, 3, 6, 6)),
    "linear": (nn.Linear(12, 5), torch.randn(3, 12)),
    "lstm": (nn.LSTM(4, 6, batch_first=True), torch.randn(2, 5, 4)),
    "network": (build("lenet", (1, 8, 8)), torch.randn(2, 1, 8, 8)),
    "tokens": (build("lstm", (5,), 20), torch.randint(20, (2, 5))),
}


def prepared(engine: Engine, model: nn.Module, *example: Any, threads: int = 1) -> Any:
    """The engine at work, or a test that is skipped with the reason."""
    if engine.version is None:
        pytest.skip(reason=f"an optional extra: {engine.package}")
    if isinstance(engine, OnnxRuntimeEngine):
        pytest.importorskip("onnxscript", reason="an optional extra")
    try:
        return engine.prepare(model.eval(), *example, threads=threads)
    except RefusedError as error:
        if "channels last" in str(error):
            pytest.skip(reason="the engine is for convolutions")
        raise


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [leaf for part in value for leaf in flat(part)]


@pytest.mark.parametrize("engine", QUICK, ids=lambda engine: engine.name)
@pytest.mark.parametrize("name", MODELS)
def test_engines_compute_what_the_network_does(engine: Engine, name: str) -> None:
    model, x = MODELS[name]
    run = prepared(engine, model, x)
    for _ in range(2):  # the same memory, then other memory
        with torch.no_grad():
            for found, want in zip(flat(run(x)), flat(model(x)), strict=True):
                torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)
                assert not found.requires_grad
        x = x.flip(0).contiguous()
    x.copy_(x.flip(-1))  # in place: the engine has to look again
    with torch.no_grad():
        torch.testing.assert_close(flat(run(x)), flat(model(x)), rtol=1e-4, atol=1e-5)


def test_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engines(["torch.compile"]).present[0]
    model, x = MODELS["linear"]
    try:
        run = engine.prepare(model.eval(), x)
    except RefusedError as error:
        if "compiler" in str(error).lower():
            pytest.skip(reason="torch finds no C++ compiler")
        raise
    torch.testing.assert_close(run(x), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_bound_memory_takes_only_what_it_was_bound_for() -> None:
    model, x = MODELS["conv"]
    run = prepared(OnnxRuntimeEngine(), model, x)
    for other in (x[:1], x.double(), x.permute(0, 1, 3, 2)):
        with pytest.raises(ShapeError, match=r"contiguous torch.float32 \[2, 3, 6, 6\]"):
            run(other)
    torch.testing.assert_close(flat(run(x)), [model(x).detach()], rtol=1e-4, atol=1e-5)


def test_states_of_a_recurrent_layer() -> None:
    model, x = MODELS["lstm"]
    states = (torch.randn(1, 2, 6), torch.randn(1, 2, 6))
    for engine in QUICK:
        if engine.version is None or engine.name == "torch channels-last":
            continue
        run = prepared(engine, model, x, states)
        with torch.no_grad():
            torch.testing.assert_close(flat(run(x, states)), flat(model(x, states)), rtol=1e-4, atol=1e-5)


def test_torch_threads_are_set_for_the_call_alone() -> None:
    seen = []

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_num_threads(), torch.is_grad_enabled()))
            return x

    before = torch.get_num_threads()
    run = Torch().prepare(Asking().eval(), torch.ones(1), threads=2)
    run(torch.ones(1))
    assert seen[1:] == [(2, False)] * 2  # the first was the reference
    assert torch.get_num_threads() == before
    failing = limited(lambda: 1 / 0, before + 1)
    with pytest.raises(ZeroDivisionError):
        failing()
    assert torch.get_num_threads() == before


def test_openvino_runs_in_single_precision_on_the_threads_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="an optional extra")
    pytest.importorskip("onnxscript", reason="an optional extra")
    compiled = []
    original = openvino.Core.compile_model

    def noting(self: Any, *given: Any) -> Any:
        compiled.append(original(self, *given))
        return compiled[-1]

    monkeypatch.setattr(openvino.Core, "compile_model", noting)
    model, x = MODELS["linear"]
    for threads in (1, 2):
        prepared(engines(["openvino"]).present[0], model, x, threads=threads)
        assert compiled[-1].get_property("INFERENCE_NUM_THREADS") == threads
        assert compiled[-1].get_property("INFERENCE_PRECISION_HINT") == openvino.Type.f32
        assert compiled[-1].get_property("NUM_STREAMS") == 1


def test_onnx_runtime_starts_no_other_threads_than_allowed() -> None:
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip(reason="the system does not list threads")
    model, x = MODELS["conv"]
    runs, counts = [prepared(OnnxRuntimeEngine(), model, x)], []
    for threads in (1, 3):
        before = len(list(tasks.iterdir()))
        runs.append(prepared(OnnxRuntimeEngine(), model, x, threads=threads))
        counts.append(len(list(tasks.iterdir())) - before)
    assert counts == [0, 2]  # the calling one works, too


class Unlike(Engine):
    """Computes something else."""

    name = "unlike"
    package = "torch"

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Any:
        return lambda x: model(x) + 1


class Failing(Engine):
    name = "failing"
    package = "torch"

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Any:
        raise ValueError("could not")


class Absent(Engine):
    name = "Ab-sent"
    package = "no_such_package"
    hint = "pip install it"

    def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Any:
        raise AssertionError


@pytest.mark.parametrize(
    ("engine", "train", "threads", "error", "says"),
    [
        (Unlike(), False, 1, RefusedError, "relative error"),
        (Absent(), False, 1, UsageError, "pip install it"),
        (Torch(), True, 1, UsageError, "training mode"),
        (Torch(), False, 0, UsageError, "0 threads"),
    ],
)
def test_what_cannot_be_prepared(
    engine: Engine, train: bool, threads: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        engine.prepare(nn.Linear(2, 2).train(train), torch.ones(1, 2), threads=threads)


def test_an_engine_that_fails_says_why() -> None:
    class ByValue(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    for name in ("onnxruntime", "openvino"):
        for engine in engines([name]).present:
            with pytest.raises(RefusedError, match="torch can export"):
                engine.prepare(ByValue().eval(), torch.ones(2))
    with pytest.raises(RefusedError, match="ValueError: could not"):
        Failing().prepare(nn.Identity().eval(), torch.ones(2))


def test_an_export_is_made_once_for_each_shape() -> None:
    made = []
    export, model = once(lambda model, example: made.append(model) or b"x"), nn.Linear(2, 2)
    for example in (torch.ones(1, 2), torch.zeros(1, 2), torch.ones(3, 2)):
        export(model, (example,))
    assert made == [model, model]
    export(nn.Linear(2, 2), (torch.ones(1, 2),))
    assert len(made) == 3


def test_choosing_engines() -> None:
    everything = engines(known=[*ENGINES, Absent()])
    names = {engine.name for engine in everything.present}
    assert "torch" in names
    assert "takes long" in everything.missing["torch.compile"]
    assert everything.missing["Ab-sent"] == "no package no_such_package: pip install it"
    assert names | everything.missing.keys() == {engine.name for engine in ENGINES} | {"Ab-sent"}
    chosen = engines(["Torch Channels Last", "torch", "torch"])
    assert [engine.name for engine in chosen.present] == ["torch channels-last", "torch"]
    assert not chosen.missing
    for wrong in (["torch", "warp"], [], [""]):
        with pytest.raises(UsageError, match="channelslast"):
            engines(wrong)


def test_without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: find(name) if name == "torch" else None)
    found = engines()
    assert [engine.name for engine in found.present] == ["torch", "torch channels-last"]
    assert "gracile[onnx]" in found.missing["ONNX Runtime"]
    assert "gracile[openvino]" in found.missing["OpenVINO"]


@pytest.mark.parametrize("name", ["conv", "network", "lstm"])
def test_the_older_exporter_serves_where_the_newer_is_missing(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pytest.importorskip("onnx", reason="an optional extra")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    model, x = MODELS[name]
    for engine in engines(["onnxruntime", "openvino"]).present:
        run = engine.prepare(model.eval(), x)
        with torch.no_grad():
            torch.testing.assert_close(flat(run(x)), flat(model(x)), rtol=1e-4, atol=1e-5)


def test_deepsparse_is_given_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot be installed beside a current onnx, so another runtime stands in for it here."""
    onnx = pytest.importorskip("onnx", reason="an optional extra")
    onnxruntime = pytest.importorskip("onnxruntime", reason="an optional extra")
    asked = []

    class StandIn:
        def __init__(self, model: str, batch_size: int, num_cores: int) -> None:
            opset = onnx.load(model).opset_import[0].version
            asked.append((opset, batch_size, num_cores))
            self.session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])

        def run(self, arrays: list[Any], val_inp: bool) -> list[Any]:
            return self.session.run(None, {self.session.get_inputs()[0].name: arrays[0]})

    module = types.ModuleType("deepsparse")
    module.Engine = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepsparse", module)
    monkeypatch.setattr(DeepSparse, "version", "0")
    monkeypatch.delenv("NM_DISABLE_ANALYTICS", raising=False)
    model, x = MODELS["linear"]
    run = DeepSparse().prepare(model.eval(), x, threads=2)
    torch.testing.assert_close(flat(run(x)), [model(x).detach()], rtol=1e-4, atol=1e-5)
    assert asked == [(13, 3, 2)]


def test_comparing_networks_under_engines() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(300):
                x = x + 0
            return x

    known = [Torch(), Unlike()]
    found = compare(
        {"slow": Slow().eval(), "fast": nn.Identity().eval()}, torch.ones(2), engines=known, rounds=5
    )
    assert found.baseline == ("slow", "torch")
    assert [(row.network, row.engine) for row in found.rows] == [("slow", "torch"), ("fast", "torch")]
    assert found.rows[0].timing.speedup == 1.0
    assert found.rows[1].timing.speedup > 1.0
    assert [refused[:2] for refused in found.refused] == [("slow", "unlike"), ("fast", "unlike")]
    assert "relative error" in found.refused[0][2]
    assert found.fastest("fast") == found.rows[1]
    assert found.fastest("other") is None
    with pytest.raises(RefusedError, match="unlike: a relative error"):
        compare({"one": nn.Identity().eval()}, torch.ones(2), engines=[Unlike()])
    with pytest.raises(RefusedError, match="no engine"):
        compare({"one": nn.Identity().eval()}, torch.ones(2), engines=[])
    with pytest.raises(UsageError, match="training mode"):
        compare({"one": nn.Identity()}, torch.ones(2), engines=known)


def test_claims_are_measured_by_dense_engines() -> None:
    class Sparse(Engine):
        name = "sparse"
        package = "torch"
        dense = False

        def start(self, model: nn.Module, example: tuple[Any, ...], threads: int) -> Any:
            return limited(model, threads)

    model = nn.Sequential(*(nn.Tanh() for _ in range(50))).eval()
    found = compare(
        {"a": model, "b": nn.Identity().eval()}, torch.ones(2), engines=[Sparse(), Torch()], rounds=5
    )
    assert found.baseline == ("a", "torch")
    assert len(found.rows) == 4


@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="an optional extra: openvino")
def test_openvino_leaves_the_signal_stack_as_it_was():
    """In a process of its own: other tests may have exchanged it before."""
    program = (
        "import faulthandler, torch; faulthandler.enable()\n"
        "from gracile.runtime import engines\n"
        "from gracile.runtime.signal_stack import signal_stack\n"
        "before, x = bytes(signal_stack()), torch.ones(1, 1, 8, 8)\n"
        "call = engines(('OpenVINO',)).present[0].prepare(torch.nn.Conv2d(1, 4, 3).eval(), x)\n"
        "call(x); assert bytes(signal_stack()) == before, 'prepared'\n"
        "del call; assert bytes(signal_stack()) == before, 'gone'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
