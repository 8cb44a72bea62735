"""Programs are saved as two files without pickle; damaged and hostile ones are refused, and say why."""

import hashlib
import json
import os

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils._sympy.functions import FloorDiv, Max
from traced_networks import make

from gracile.errors import FileError, RefusedError, UsageError
from gracile.files import read_json, read_tensors, write_tensors
from gracile.runtime import Plan, SparseCPU, SparseProgram, load, program, store
from gracile.runtime.formulas import formula, plain
from gracile.runtime.onnx import OnnxProgram
from gracile.runtime.store import Header
from gracile.runtime.whole import Whole

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of one program, the program, and inputs; copies of the files for each test."""
    model, inputs = make("lenet")
    made = SparseCPU(force={"conv1": "block", "conv2": "sparse", "fc1": "dense", "fc2": "sparse"}).compile(
        model, inputs(2)
    )
    folder = tmp_path_factory.mktemp("saved")
    made.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}, made, inputs


@pytest.fixture
def folder(saved, tmp_path):
    for name, content in saved[0].items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def fresh(name="lenet"):
    """A network of the same class with other numbers."""
    model, _ = make(name)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone().zero_()
    return model.train()


@pytest.mark.parametrize(
    "name", ["lenet", "odd", "pre-activated", "lstm", "recurrent", "derived", "attending"]
)
def test_loaded_programs_give_the_same_bits(name, tmp_path):
    model, inputs = make(name)
    made = SparseCPU(force={"*": "sparse"}, rounds=5).compile(model, inputs(2))
    made.save(tmp_path)
    again = load(tmp_path)
    assert again.plan == made.plan
    for batch in (1, 2, 3):
        x = inputs(batch)
        found, wanted = (torch.utils._pytree.tree_leaves(p(x)) for p in (again, made))
        for a, b in zip(found, wanted, strict=True):
            assert torch.equal(a, b) if isinstance(b, torch.Tensor) else a == b
    assert again.report().keys() == made.report().keys() - {"relative error"}
    assert str(again.cost()) == str(made.cost())  # where nan is equal to nan


def test_dense_programs_too(tmp_path):
    model, inputs = make("odd")
    for channels_last, runs in ((False, "torch"), (True, "torch channels-last")):
        made = SparseProgram(
            Whole(model, channels_last),
            Plan((), runs=runs),
            "Odd",
            0.0,
            program.paper_cost(model, inputs(2)),
            "",
        )
        made.save(tmp_path)
        again = load(tmp_path, fresh("odd"))
        assert isinstance(again.run, Whole)
        assert torch.equal(again(x := inputs(3)), made(x))
        with pytest.raises(FileError):
            load(tmp_path, fresh("lenet"))


def test_onnx_programs_too(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = make("mlp")
    made = SparseCPU(plan=Plan((), runs="ONNX Runtime")).compile(model, inputs(2))
    made.save(tmp_path)
    again = load(tmp_path)
    assert isinstance(again.run, OnnxProgram)
    assert torch.equal(again(x := inputs(3)), made(x))


def test_the_model_given_stays_as_it_is(tmp_path):
    model, inputs = make("odd")
    whole, full = Whole(model, False), program.paper_cost(model, inputs(2))
    SparseProgram(whole, Plan((), runs="torch"), "Odd", 0.0, full, "").save(tmp_path)
    bare = fresh("odd")
    load(tmp_path, bare)
    assert bare.training
    assert not any(parameter.any() for parameter in bare.parameters())
    with pytest.raises(UsageError, match="no model"):
        load(tmp_path)


def test_saving_again_replaces(folder, saved):
    _, made, inputs = saved
    model, _ = make("lenet")
    model.fc2.bias.data += 1
    other = SparseCPU(plan=made.plan).compile(model, inputs(2))
    other.save(folder)
    assert len(list(folder.glob("weights-*.safetensors"))) == 1
    assert torch.equal(load(folder)(x := inputs(2)), other(x))
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".safetensors"]


@pytest.mark.parametrize("at", ["weights", "sparse"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "changed", "other"])
def test_damaged_files_are_refused(folder, saved, at, damage):
    (path,) = folder.glob(f"{at}*")
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "changed":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 255]) + content[-8:])
    else:
        path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "other": b"\x80\x04}."}[damage])
    with pytest.raises(FileError):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "gracile reduced model"},
        {"version": 99},
        {"sha256": "../../../etc/passwd"},
        {"sha256": "0" * 64},
        {"sha256": 3},
        {"plan": {}},
        {"network": None},
    ],
)
def test_hostile_headers_are_refused(folder, saved, change):
    path = folder / "sparse.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(FileError):
        load(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"runs": "ONNX Runtime"},  # of which there are no files
        {"runs": "torch"},
        {"runs": "/bin/sh"},
        {"layers": []},
        {"threads": -1},
    ],
)
def test_hostile_plans_are_refused(folder, saved, change):
    path = folder / "sparse.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"plan": header["plan"] | change}))
    with pytest.raises(FileError):
        load(folder)


@pytest.mark.parametrize("field", ["kernel", "layer"])
def test_hostile_layers_are_refused(folder, saved, field):
    path = folder / "sparse.json"
    header = json.loads(path.read_text())
    header["plan"]["layers"][1][field] = "*"
    path.write_text(json.dumps(header))
    with pytest.raises(FileError):
        load(folder)


@pytest.mark.parametrize("change", ["shape", "dtype", "name", "more", "fewer", "nan"])
def test_other_tensors_are_refused(folder, saved, change):
    (path,) = folder.glob("weights-*")
    tensors = read_tensors(path)
    first = "conv2.weight.0"
    if change == "shape":
        tensors[first] = tensors[first][:, :3]
    elif change == "dtype":
        tensors[first] = tensors[first].double()
    elif change == "name":
        tensors["__class__"] = tensors.pop(first)
    elif change == "more":
        tensors["more"] = torch.zeros(3)
    elif change == "fewer":
        del tensors[first]
    else:
        tensors[first] = tensors[first] * float("nan")
    path.unlink()
    draft = write_tensors(folder / "draft", tensors)
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    draft.rename(folder / f"weights-{digest[:16]}.safetensors")
    header = json.loads((folder / "sparse.json").read_text())
    (folder / "sparse.json").write_text(json.dumps(header | {"sha256": digest}))
    with pytest.raises(FileError):
        load(folder)


def rewritten(folder, change):
    """Change the header, and make the digests fit again: what somebody would do who means harm."""
    path = folder / "sparse.json"
    header = json.loads(path.read_text())
    change(header)
    path.write_text(json.dumps(header))
    typed = read_json(path, Header)
    header["digest"] = store._digest(typed.plan, typed.full, typed.listing)
    path.write_text(json.dumps(header))


def at(header, op="call_function"):
    return next(
        line for line in header["listing"]["lines"] if line["op"] == op and line["target"][:5] != "layer"
    )


HARM = {
    "a file": lambda h: at(h).update(
        target="aten.from_file.default", args=["/etc/passwd", False, 10], kwargs={}
    ),
    "writing": lambda h: at(h).update(target="aten.relu_.default"),
    "other operators": lambda h: at(h).update(target="prim.device.default"),
    "attributes": lambda h: at(h).update(target="aten.__class__"),
    "modules": lambda h: at(h).update(target="os.system"),
    "no operator": lambda h: at(h).update(target="aten.nonsense.default"),
    "arguments": lambda h: at(h).update(args=[{"node": "nobody"}]),
    "itself": lambda h: at(h).update(args=[{"node": at(h)["name"]}]),
    "objects": lambda h: at(h).update(kwargs={"dtype": {"dtype": "load"}}),
    "a device": lambda h: at(h).update(kwargs={"device": {"device": "meta"}}),
    "a kind of node": lambda h: at(h).update(op="call_module"),
    "a name": lambda h: at(h).update(name="import os"),
    "two of a name": lambda h: at(h).update(name=at(h, "placeholder")["name"]),
    "no end": lambda h: h["listing"]["lines"].pop(),
    "nothing": lambda h: h["listing"].update(lines=[]),
    "no listing": lambda h: h.update(listing=None),
    "a constant": lambda h: h["listing"]["lines"].insert(
        0, {"name": "c", "op": "get_attr", "target": "__dict__"}
    ),
    "a size": lambda h: at(h)["value"].update(shape=[10**30]),
    "a formula": lambda h: at(h)["value"].update(shape=[{"function": "Integral", "of": [1]}]),
    "a long power": lambda h: at(h)["value"].update(
        shape=[{"function": "Pow", "of": [{"function": "Pow", "of": [9, 4]}, 4]}]
    ),
    "a dtype": lambda h: at(h, "placeholder")["value"].update(dtype="nn"),
    "a layer's kind": lambda h: h["listing"]["layers"]["conv1"].update(kind="Chosen"),
    "a layer's settings": lambda h: h["listing"]["layers"]["conv1"]["settings"].update(stride="far"),
    "a stride of nothing": lambda h: h["listing"]["layers"]["conv1"]["settings"].update(stride=[0, 0]),
    "a field too many": lambda h: h["listing"]["layers"]["conv1"]["settings"].update(kernels=1),
    "a shape": lambda h: h["listing"]["layers"]["conv1"]["shapes"].update(weight=[-3]),
    "the example": lambda h: h["listing"].update(sizes=[[2, 9]]),
    "no example": lambda h: h["listing"].update(sizes=[]),
    "a cost": lambda h: h.update(full=[{"layer": 3}]),
}


@pytest.mark.parametrize("harm", HARM)
def test_hostile_operators_are_refused(folder, harm):
    rewritten(folder, lambda header: None)
    load(folder)  # so it is the change that is refused
    rewritten(folder, HARM[harm])
    with pytest.raises(FileError):
        load(folder)


def test_what_changed_by_accident_is_not_run(folder):
    path = folder / "sparse.json"
    header = json.loads(path.read_text())
    header["listing"]["layers"]["conv1"]["settings"]["padding"] = [1, 1]
    path.write_text(json.dumps(header))
    with pytest.raises(FileError, match="other content"):
        load(folder)


def test_operators_of_others_cannot_be_saved(tmp_path):
    class Own(nn.Module):
        def forward(self, x):
            return torch.ops.gracile.sparse_linear(x, torch.ones(2, 3), None, 1).relu()

    made = SparseCPU(against=()).compile(Own().eval(), torch.ones(1, 3))
    with pytest.raises(RefusedError, match="sparse_linear"):
        made.save(tmp_path)
    assert not any(tmp_path.iterdir())


@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 5))
def test_formulas_come_back(a, b, n):
    s = sympy.Symbol("s0", integer=True, positive=True)
    for value in (
        a * s + b,
        FloorDiv(a * s, b),
        Max(s, a) * s**2,
        sympy.Rational(a, b) * s,
    ):
        again = formula(json.loads(json.dumps(plain(value))))
        assert again == value
        assert again.subs(s, n) == value.subs(s, n)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_cannot_be_written(saved, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError):
        saved[1].save(tmp_path / "new")
