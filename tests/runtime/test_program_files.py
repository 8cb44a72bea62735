"""Programs are saved as two files without pickle; damaged and hostile ones are refused, and say why."""

import hashlib
import json
import os

import pytest
import torch
from torch import nn
from traced_networks import make

from gracile.errors import FileError
from gracile.files import read_tensors, write_tensors
from gracile.runtime import Plan, SparseCPU, SparseProgram, load, program
from gracile.runtime.onnx import OnnxProgram
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
    again = load(tmp_path, fresh(name), inputs(2))
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
        again = load(tmp_path, fresh("odd"), inputs(2))
        assert isinstance(again.run, Whole)
        assert torch.equal(again(x := inputs(3)), made(x))
        with pytest.raises(FileError):
            load(tmp_path, fresh("lenet"), torch.zeros(1, 1, 28, 28))


def test_onnx_programs_too(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = make("mlp")
    made = SparseCPU(plan=Plan((), runs="ONNX Runtime")).compile(model, inputs(2))
    made.save(tmp_path)
    again = load(tmp_path, fresh("mlp"), inputs(2))
    assert isinstance(again.run, OnnxProgram)
    assert torch.equal(again(x := inputs(3)), made(x))


def test_the_model_given_stays_as_it_is(folder, saved):
    model = fresh()
    load(folder, model, saved[2](2))
    assert model.training
    assert not any(parameter.any() for parameter in model.parameters())


def test_saving_again_replaces(folder, saved):
    _, made, inputs = saved
    model, _ = make("lenet")
    model.fc2.bias.data += 1
    other = SparseCPU(plan=made.plan).compile(model, inputs(2))
    other.save(folder)
    assert len(list(folder.glob("weights-*.safetensors"))) == 1
    assert torch.equal(load(folder, fresh(), inputs(2))(x := inputs(2)), other(x))
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
        load(folder, fresh(), saved[2](2))


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
        load(folder, fresh(), saved[2](2))


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
        load(folder, fresh(), saved[2](2))


@pytest.mark.parametrize("field", ["kernel", "layer"])
def test_hostile_layers_are_refused(folder, saved, field):
    path = folder / "sparse.json"
    header = json.loads(path.read_text())
    header["plan"]["layers"][1][field] = "*"
    path.write_text(json.dumps(header))
    with pytest.raises(FileError):
        load(folder, fresh(), saved[2](2))


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
        load(folder, fresh(), saved[2](2))


def test_another_model_is_refused(folder, saved):
    for model, x in ((make("vgg")[0], torch.zeros(1, 3, 16, 16)), (nn.Linear(3, 3), torch.zeros(1, 3))):
        with pytest.raises(FileError, match="model"):
            load(folder, model, x)


def test_an_example_that_does_not_fit(folder):
    with pytest.raises(FileError):
        load(folder, fresh(), torch.zeros(1, 3))
    with pytest.raises(FileError, match="as the example has it"):
        load(folder, fresh(), torch.zeros(3, 1, 28, 28))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_cannot_be_written(saved, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(FileError):
        saved[1].save(tmp_path / "new")
