"""Plans say which kernel runs which layer, and why: shown, saved, forced, or losing to dense engines."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from traced_networks import make, sparse_

from gracile.cost import measure
from gracile.errors import FileError, GracileError, UsageError
from gracile.runtime import Choice, Plan, SparseCPU, sparse_cpu
from gracile.runtime.composed import Composed
from gracile.runtime.onnx import OnnxProgram
from gracile.runtime.whole import Whole

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.fixture(scope="module")
def measured():
    """LeNet with every layer measured, by itself."""
    model, inputs = make("lenet")
    return model, inputs, SparseCPU(against=(), rounds=5).compile(model, inputs(1))


def test_every_candidate_is_measured(measured):
    _, _, program = measured
    assert [choice.layer for choice in program.plan.layers] == ["conv1", "conv2", "fc1", "fc2"]
    for choice in program.plan.layers:
        assert choice.times_s.keys() == {"dense", "sparse", "block"}
        assert choice.times_s[choice.kernel] == min(choice.times_s.values())
        assert 0.1 < choice.density < 0.3
        assert choice.density <= choice.block_density
    assert program.plan.layers[1].shape == (1, 20, 12, 12)


def test_shown_as_a_table(measured):
    _, _, program = measured
    head, first, *_, last = str(program.plan).splitlines()
    assert head.split()[:5] == ["layer", "kind", "input", "density", "blocks"]
    assert head.split()[5:] == ["dense", "sparse", "block", "kernel"]
    assert first.startswith("conv1  conv 1-20 5x5")
    assert last == "microseconds, 1 thread; runs composed"
    assert max(map(len, str(program.plan).splitlines())) < 110


def test_saved_and_loaded(measured, tmp_path):
    _, _, program = measured
    assert Plan.load(program.plan.save(tmp_path / "plan.json")) == program.plan


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("runs", "fast"),
        ("runs", 3),
        ("threads", 0),
        ("threads", 10**9),
        ("version", 2),
        ("format", "gracile gossip"),
        ("layers", [{"layer": "x"}]),
        ("layers", "x"),
        ("times_s", {"torch": "soon"}),
    ],
)
def test_damaged_plans_are_refused(measured, tmp_path, field, value):
    path = measured[2].plan.save(tmp_path / "plan.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(FileError):
        Plan.load(path)


def test_unknown_kernels_are_refused(measured, tmp_path):
    plan = measured[2].plan
    wrong = replace(plan, layers=(replace(plan.layers[0], kernel="os.system"),))
    with pytest.raises(FileError, match=r"os\.system"):
        Plan.load(wrong.save(tmp_path / "plan.json"))
    (tmp_path / "plan.json").write_bytes(b"\x00" * 100)
    with pytest.raises(FileError):
        Plan.load(tmp_path / "plan.json")


def test_forced_by_name_and_pattern(monkeypatch):
    model, inputs = make("lenet")
    force = {"conv1": "dense", "conv*": "block", "fc?": "sparse"}
    program = SparseCPU(force=force).compile(model, inputs(1))
    assert program.plan.kernels == {"conv1": "dense", "conv2": "block", "fc1": "sparse", "fc2": "sparse"}
    assert not any(choice.times_s for choice in program.plan.layers)
    again = SparseCPU(plan=program.plan).compile(model, inputs(2))
    assert again.plan.kernels == program.plan.kernels


def test_unforced_layers_are_measured():
    model, inputs = make("lenet")
    plan = SparseCPU(force={"fc*": "sparse", "conv2": "dense"}, rounds=5).compile(model, inputs(1)).plan
    assert [bool(choice.times_s) for choice in plan.layers] == [True, False, False, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"force": {"conv3": "sparse"}},
        {"force": {"layer*": "sparse"}},
        {"force": {"conv1": "fastest"}},
        {"plan": Plan((Choice("conv9", "conv", (1,), 0.5, 0.5, "sparse"),))},
    ],
)
def test_force_has_to_fit(settings):
    model, inputs = make("lenet")
    with pytest.raises(UsageError, match="choosing"):
        SparseCPU(**settings).compile(model, inputs(1))


def test_what_has_no_kernel_is_dense():
    model, inputs = make("recurrent")
    kernels = SparseCPU(force={"*": "sparse"}, rounds=5).compile(model, inputs(1)).plan.kernels
    assert kernels == {"plain": "sparse", "both": "dense"}
    with pytest.raises(UsageError, match="both"):
        SparseCPU(force={"both": "sparse"}).compile(model, inputs(1))


def test_weights_that_are_not_finite_run_dense():
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).eval()
    model[0].weight.data[3, 3] = float("inf")
    x = torch.rand(2, 8)
    plan = SparseCPU(against=(), rounds=5).compile(model, x).plan
    assert plan.layers[0].kernel == "dense"
    assert plan.layers[1].times_s.keys() == {"dense", "sparse", "block"}
    with pytest.raises(UsageError, match="finite"):
        SparseCPU(force={"0": "sparse"}).compile(model, x)


def slowed(monkeypatch, *slow):
    """Measured times as they would be if some candidates were a thousand times slower."""

    def measuring(candidates, *inputs, **settings):
        found = measure(candidates, *inputs, **{**settings, "rounds": 5})
        return {
            name: replace(t, median_s=t.median_s * 1000 if name in slow else t.median_s)
            for name, t in found.items()
        }

    monkeypatch.setattr(sparse_cpu, "measure", measuring)


@pytest.mark.parametrize("engine", ["torch", "torch channels-last"])
def test_a_dense_engine_that_wins_is_what_runs(monkeypatch, engine):
    others = {"composed", "torch", "torch channels-last"} - {engine}
    slowed(monkeypatch, *others)
    model, inputs = make("odd")
    program = SparseCPU(against=("torch", "torchchannelslast"), rounds=5).compile(model, inputs(2))
    assert isinstance(program.run, Whole)
    assert program.plan.runs == engine
    assert program.plan.times_s.keys() == others | {engine}
    assert program.report()["runs in"] == engine
    assert f"{engine}, the fastest dense engine; so it is that which runs" in program.report()["speedup"]
    wanted = None
    for batch in (2, 5, 1):
        x = inputs(batch)
        with torch.no_grad():
            wanted = model(x)
        found = program(x)
        assert found.is_contiguous()
        assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    model.up.weight.data.zero_()
    assert (program(x) - wanted).abs().max() < 1e-4 * wanted.abs().max()  # a copy of the model
    again = SparseCPU(plan=program.plan).compile(*(lambda m, i: (m, i(2)))(*make("odd")))
    assert torch.allclose(again(x), program(x))


def test_onnx_runtime_may_win(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    slowed(monkeypatch, "composed", "torch")
    model, inputs = make("mlp")
    program = SparseCPU(against=("torch", "ONNX Runtime"), rounds=5).compile(model, inputs(2))
    assert isinstance(program.run, OnnxProgram)
    assert program.cost().macs == program.full.macs
    with torch.no_grad():
        assert torch.allclose(program(x := inputs(4)), model(x), atol=1e-5)


def test_composed_programs_that_win_run(monkeypatch):
    slowed(monkeypatch, "torch")
    model, inputs = make("mlp")
    program = SparseCPU(against=("torch",), rounds=5).compile(model.train(), inputs(2))
    assert model.training
    assert isinstance(program.run, Composed)
    assert program.plan.runs == "composed"
    assert float(program.report()["speedup"].split()[0]) > 1


def test_an_engine_that_cannot_run_the_model_is_left_out(monkeypatch):
    slowed(monkeypatch)
    model, inputs = make("mlp")
    program = SparseCPU(against=("torch channels-last",), rounds=5).compile(model, inputs(2))
    assert program.plan.times_s.keys() == {"composed"}
    assert "speedup" not in program.report()


def test_a_dense_network_is_not_slower_than_in_torch():
    torch.manual_seed(0)
    model = sparse_(nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512)), density=1.0)
    x = torch.randn(64, 512)
    program = SparseCPU(against=("torch",)).compile(model, x)
    assert program.plan.times_s[program.plan.runs] == min(program.plan.times_s.values())


class Tangled(nn.Module):
    def forward(self, x):
        return x.sum().item() + x


def test_what_cannot_be_measured_says_so():
    with pytest.raises(GracileError, match="depends on values"):
        SparseCPU().compile(Tangled().eval(), torch.ones(2, 2))
