"""save and load: bit-identical, and deaf to damaged or hostile files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from gracile.errors import FileError, UsageError
from gracile.graph.cut import Cut, Dropped
from gracile.reduce import Attention, apply_, load, make_attention_explicit_, save


class Net(nn.Module):
    """Convolution, batch norm, attention, tied embedding and head, a buffer outside of the state dict."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width = width
        self.conv = nn.Conv1d(width, 6, 3, padding=1)
        self.bn = nn.BatchNorm1d(6)
        self.back = nn.Conv1d(6, width, 1)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.embed = nn.Embedding(11, width)
        self.head = nn.Linear(width, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("scale", torch.rand(6), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        h = h + self.back((self.bn(self.conv(h.transpose(1, 2))) * self.scale[:, None]).relu()).transpose(
            1, 2
        )
        return self.head(h + self.attention(h, h, h, need_weights=False)[0])


CONV = {
    "conv.weight": 0,
    "conv.bias": 0,
    "bn.weight": 0,
    "bn.bias": 0,
    "bn.running_mean": 0,
    "bn.running_var": 0,
}
FIRST = Cut(
    {
        **{n: {d: [0, 2, 3, 5]} for n, d in CONV.items()},
        "back.weight": {1: [0, 2, 3, 5]},
        "scale": {0: [0, 2, 3, 5]},
    }
)
SECOND = Cut(
    {
        **{n: {d: [1, 3]} for n, d in CONV.items()},
        "back.weight": {1: [1, 3]},
        "scale": {0: [1, 3]},
        "attention.in_proj_weight": {0: [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]},
        "attention.in_proj_bias": {0: [0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19]},
        "attention.out_proj.weight": {1: [0, 1, 2, 3]},
    },
    {"attention.num_heads": 1, "attention.parts": [4, 4, 4]},
)
TOKENS = torch.arange(10).reshape(2, 5)


def reduced(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(3)
    model = Net().to(dtype)
    model.train()
    model(TOKENS)  # moves the running statistics and num_batches_tracked
    make_attention_explicit_(model)
    apply_(model, FIRST)
    apply_(model, SECOND)
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "net", reduced(), FIRST, SECOND).parent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bit_identical(dtype: torch.dtype, tmp_path: Path) -> None:
    model = reduced(dtype)
    save(tmp_path / "net", model, FIRST, SECOND)
    fresh = Net()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    again = load(tmp_path / "net", fresh).eval()
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    others = dict(again.named_parameters(remove_duplicate=False)) | dict(again.named_buffers())
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype
        assert torch.equal(tensor, others[name]), name
    assert again.bn.num_batches_tracked == 1
    assert again.head.weight is again.embed.weight
    assert isinstance(again.attention, Attention)
    assert str(again) == str(model)
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert type(fresh.attention) is nn.MultiheadAttention
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before.items())


def test_saving_again_replaces_whole_versions(tmp_path: Path) -> None:
    model = reduced()
    save(tmp_path, model, FIRST, SECOND)
    with torch.no_grad():
        model.head.weight.add_(1)
    (tmp_path / "weights-notes.safetensors").write_bytes(b"the user's own")
    save(tmp_path, model, FIRST, SECOND)
    assert torch.equal(load(tmp_path, Net()).head.weight, model.head.weight)
    assert len(list(tmp_path.iterdir())) == 3


def test_crash_between_the_two_files_keeps_the_old_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reduced()
    save(tmp_path, model, FIRST, SECOND)
    old = model.head.weight.detach().clone()
    with torch.no_grad():
        model.head.weight.add_(1)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gracile.reduce.store.write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, model, FIRST, SECOND)
    assert torch.equal(load(tmp_path, Net()).head.weight, old)


def test_wrong_models(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="attention"):
        load(saved, nn.Linear(2, 2))
    with pytest.raises(FileError, match="16"):
        load(saved, Net(16))
    with pytest.raises(FileError, match=r"structure\.json"):
        load(tmp_path, Net())

    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return object()

    with pytest.raises(UsageError, match="extra state"):
        save(tmp_path, Extra(2, 2))


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(content: Any) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


HOSTILE = {
    "format": _set("format", to="other"),
    "version": _set("version", to=2),
    "version text": _set("version", to="1"),
    "digest": _set("sha256", to="0" * 64),
    "digest traversal": _set("sha256", to="../../../../etc/passwd"),
    "digest nul": _set("sha256", to="\0" * 64),
    "cuts missing": lambda c: c.pop("cuts"),
    "cuts twice": lambda c: c["cuts"].append(c["cuts"][0]),
    "one cut less": lambda c: c["cuts"].pop(),
    "no cuts": _set("cuts", to=[]),
    "cuts number": _set("cuts", to=3),
    "huge index": _set("cuts", 0, "tensors", "scale", "0", to=[0, 10**40]),
    "negative index": _set("cuts", 0, "tensors", "scale", "0", to=[-1, 0]),
    "repeated index": _set("cuts", 0, "tensors", "scale", "0", to=[0, 0, 1, 2]),
    "nothing stays": _set("cuts", 0, "tensors", "scale", "0", to=[]),
    "text index": _set("cuts", 0, "tensors", "scale", "0", to=["0"]),
    "fraction": _set("cuts", 0, "tensors", "scale", "0", to=[0.5]),
    "nan": _set("cuts", 0, "tensors", "scale", "0", to=[float("nan")]),
    "null": _set("cuts", 0, "tensors", "scale", "0", to=None),
    "huge dimension": _set("cuts", 0, "tensors", "scale", to={str(10**30): [0]}),
    "unknown tensor": _set("cuts", 0, "tensors", "x", to={"0": [0]}),
    "dunder": _set("cuts", 0, "attributes", "__class__", to=1),
    "dunder path": _set("cuts", 0, "attributes", "forward.__globals__", to=1),
    "a method": _set("cuts", 0, "attributes", "forward", to=1),
    "a class": _set("cuts", 0, "attributes", "conv.__class__.bias", to=1),
    "unknown attribute": _set("cuts", 0, "attributes", "rm -rf", to=1),
    "training": _set("cuts", 0, "attributes", "training", to=0),
    "deep path": _set("cuts", 0, "attributes", "." * 100000, to=1),
    "attribute nan": _set("cuts", 0, "attributes", "width", to=float("nan")),
    "attribute huge": _set("cuts", 0, "attributes", "width", to=10**30),
    "attribute null": _set("cuts", 0, "attributes", "width", to=None),
    "stride of nothing": _set("cuts", 0, "attributes", "conv.stride", to=[0]),
    "another kernel": _set("cuts", 0, "attributes", "conv.padding", to=[0]),
    "attribute nested": _set("cuts", 0, "attributes", "width", to=[[1]]),
    "attention elsewhere": _set("attention", to=["conv"]),
    "attention nowhere": _set("attention", to=["../x"]),
    "attention at the root": _set("attention", to=[""]),
    "attention left out": _set("attention", to=[]),
    "tensor left out": lambda c: c["tensors"].pop("scale"),
    "tensor too many": _set("tensors", "more", to={"shape": [1], "dtype": "float32"}),
    "shape": _set("tensors", "scale", "shape", to=[10**12]),
    "dtype": _set("tensors", "scale", "dtype", to="os.system"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_structure(case: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "net")
    content = json.loads((folder / "structure.json").read_text())
    HOSTILE[case](content)
    (folder / "structure.json").write_text(json.dumps(content))
    _refused(folder)


def test_objects_of_the_rest_of_the_program_are_out_of_reach(tmp_path: Path) -> None:
    def model() -> nn.Module:
        net = nn.Sequential(nn.Linear(2, 2))
        net.log = logging.getLogger("gracile.tests.store")
        return net

    logging.getLogger("gracile.tests.store").setLevel(30)
    path = save(tmp_path, model())
    content = json.loads(path.read_text())
    content["cuts"] = [{"tensors": {}, "attributes": {"log.level": 10}, "shared": {}}]
    path.write_text(json.dumps(content))
    with pytest.raises(FileError, match=r"log\.level"):
        load(tmp_path, model())
    assert logging.getLogger("gracile.tests.store").level == 30


class Deep(nn.Module):
    """Two blocks around which shortcuts lead."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(2))
        self.again = self.blocks[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return x


SHIFTED = Cut(dropped={"blocks.0": Dropped("silent", [1, 4]), "blocks.1": Dropped("bypass", None, "relu")})


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = Deep()
    apply_(model, SHIFTED)
    model.blocks[0].shift.copy_(torch.arange(4.0))
    return save(tmp_path_factory.mktemp("models") / "deep", model, SHIFTED).parent


def test_modules_that_went_whole(dropped: Path) -> None:
    x = torch.randn(5, 3)
    fresh = Deep()
    again = load(dropped, fresh)
    assert isinstance(fresh.blocks[0], nn.Sequential)
    assert isinstance(again.again, nn.Sequential)  # a name that the cut does not mention
    h = again.first(x) + torch.arange(4.0)
    assert torch.equal(again(x), h + h.relu())


DROP = ("cuts", 0, "dropped")
DROPPED: dict[str, Callable[[Any], None]] = {
    "unknown path": lambda c: c["cuts"][0]["dropped"].update(nowhere={"kind": "bypass"}),
    "a file": lambda c: c["cuts"][0]["dropped"].update({"../../etc/passwd": {"kind": "bypass"}}),
    "the root": lambda c: c["cuts"][0]["dropped"].update({"": {"kind": "bypass"}}),
    "inside of one that goes": lambda c: c["cuts"][0]["dropped"].update({"blocks.0.0": {"kind": "bypass"}}),
    "a parameter": lambda c: c["cuts"][0]["dropped"].update({"first.weight": {"kind": "bypass"}}),
    "one more": lambda c: c["cuts"][0]["dropped"].update({"first": {"kind": "bypass"}}),
    "one less": lambda c: c["cuts"][0]["dropped"].pop("blocks.0"),
    "none": _set(*DROP, to={}),
    "twice": lambda c: c["cuts"].append(c["cuts"][0]),
    "with slices": _set("cuts", 0, "tensors", to={"first.weight": {"1": [0, 1, 2]}}),
    "with attributes": _set("cuts", 0, "attributes", to={"first.in_features": 3}),
    "no constant": _set(*DROP, "blocks.0", "shift", to=None),
    "a constant": _set(*DROP, "blocks.1", "shift", to=[1, 4]),
    "another shape": _set(*DROP, "blocks.0", "shift", to=[4]),
    "huge": _set(*DROP, "blocks.0", "shift", to=[10**12]),
    "many": _set(*DROP, "blocks.0", "shift", to=[1] * 10**5),
    "negative": _set(*DROP, "blocks.0", "shift", to=[-1, -4]),
    "empty": _set(*DROP, "blocks.0", "shift", to=[0]),
    "text": _set(*DROP, "blocks.0", "shift", to="4"),
    "kind": _set(*DROP, "blocks.0", "kind", to="os.system"),
    "activation": _set(*DROP, "blocks.1", "activation", to="os.system"),
    "position": _set(*DROP, "blocks.0", "given", to=-1),
    "huge position": _set(*DROP, "blocks.0", "given", to=10**30),
    "length": _set(*DROP, "blocks.0", "returned", to=10**9),
    "negative length": _set(*DROP, "blocks.0", "returned", to=-2),
    "attention": _set("attention", to=["blocks.0"]),
}


@pytest.mark.parametrize("case", DROPPED)
def test_hostile_drop(case: str, dropped: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(dropped, tmp_path / "deep")
    content = json.loads((folder / "structure.json").read_text())
    DROPPED[case](content)
    (folder / "structure.json").write_text(json.dumps(content))
    fresh = Deep()
    before = str(fresh), {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(FileError):
        load(folder, fresh)
    assert str(fresh) == before[0]
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before[1].items())


def _refused(folder: Path) -> None:
    fresh = Net()
    before = str(fresh), fresh.width, {k: v.clone() for k, v in fresh.state_dict().items()}
    with pytest.raises(FileError):
        load(folder, fresh)
    assert (str(fresh), fresh.width) == before[:2]
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before[2].items())


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 200_000, '{"a":' * 200_000, "\x00", "\ud800"])
def test_not_a_structure(text: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "net")
    (folder / "structure.json").write_bytes(text.encode(errors="surrogatepass"))
    _refused(folder)


def test_weights_of_another_version(saved: Path, tmp_path: Path) -> None:
    """Right names and shapes, other numbers under the old name: the digest tells."""
    other = reduced()
    with torch.no_grad():
        other.head.weight.add_(1)
    foreign = next(save(tmp_path / "other", other, FIRST, SECOND).parent.glob("weights-*"))
    folder = shutil.copytree(saved, tmp_path / "net")
    shutil.copy(foreign, next(folder.glob("weights-*")))
    _refused(folder)


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_structure(data: st.DataObject, saved: Path, tmp_path: Path) -> None:
    """Any value anywhere: refused, or the very model that was saved."""
    content = json.loads((saved / "structure.json").read_text())
    place = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(_values)
    _load_or_refuse(saved, tmp_path, json.dumps(content).encode(), None)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_fuzzed_bytes(data: st.DataObject, saved: Path, tmp_path: Path) -> None:
    """Flipped, cut off or inserted bytes in either file."""
    structure = (saved / "structure.json").read_bytes()
    weights = next(saved.glob("weights-*")).read_bytes()
    target = bytearray(data.draw(st.sampled_from([structure, weights])))
    is_structure = len(target) == len(structure)
    at = data.draw(st.integers(0, len(target) - 1))
    kind = data.draw(st.sampled_from(["flip", "truncate", "insert"]))
    if kind == "flip":
        target[at] ^= data.draw(st.integers(1, 255))
    elif kind == "truncate":
        del target[at:]
    else:
        target[at:at] = data.draw(st.binary(min_size=1, max_size=8))
    _load_or_refuse(
        saved, tmp_path, bytes(target) if is_structure else structure, None if is_structure else bytes(target)
    )


def _load_or_refuse(saved: Path, tmp_path: Path, structure: bytes, weights: bytes | None) -> None:
    folder = tmp_path / "fuzz"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(saved, folder)
    (folder / "structure.json").write_bytes(structure)
    if weights is not None:
        next(folder.glob("weights-*")).write_bytes(weights)
    fresh = Net()
    before = {k: v.clone() for k, v in fresh.state_dict().items()}
    try:
        model = load(folder, fresh)
    except FileError:
        pass
    else:
        want = reduced()
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in want.state_dict().items())
        assert weights is None  # no damage to the numbers goes unseen
    assert all(torch.equal(v, fresh.state_dict()[k]) for k, v in before.items())
