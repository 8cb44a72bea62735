"""Atomic writing and safe reading."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.errors import FileError
from gracile.files import read_json, read_tensors, read_toml, write_bytes, write_json, write_tensors


@dataclass(frozen=True)
class Box:
    width: int
    names: list[str]


def test_json_round_trip_and_typed_errors(tmp_path):
    path = write_json(tmp_path / "deep" / "box.json", Box(3, ["a"]))
    assert read_json(path, Box) == Box(3, ["a"])
    assert json.loads(path.read_text()) == {"width": 3, "names": ["a"]}
    path.write_text('{"width": "wide", "names": []}')
    with pytest.raises(FileError, match=r"\$\.width"):
        read_json(path, Box)
    path.write_text('{"width": 1, "names":')
    with pytest.raises(FileError, match="truncated"):
        read_json(path, Box)
    path.write_text("[" * 100_000)
    with pytest.raises(FileError):
        read_json(path, Box)
    with pytest.raises(FileError, match="No such file"):
        read_json(tmp_path / "none.json", Box)


def test_toml(tmp_path):
    path = write_bytes(tmp_path / "a.toml", b'width = 2\nnames = ["x"]\n')
    assert read_toml(path, Box) == Box(2, ["x"])
    path.write_bytes(b"width = \n")
    with pytest.raises(FileError, match="TOML"):
        read_toml(path, Box)


def test_tensors_round_trip_with_shared_and_strided_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"a": base, "same": base, "turned": base.t(), "half": base.bfloat16(), "count": torch.tensor(3)}
    found = read_tensors(write_tensors(tmp_path / "t.safetensors", tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@given(st.data())
def test_damaged_tensor_files_give_an_error_or_plain_tensors(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = write_tensors(folder / "t.safetensors", {"a": torch.arange(8.0)})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    with contextlib.suppress(FileError):
        found = read_tensors(path)
        assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())


def test_a_failed_write_leaves_the_old_file_and_no_draft(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "a", b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_killed_writers_never_leave_half_a_file(tmp_path):
    path = tmp_path / "a"
    program = (
        "import sys\nfrom gracile.files import write_bytes\n"
        "i = 0\nwrite_bytes(sys.argv[1], b'0' * 2_000_000)\nprint('go', flush=True)\n"
        "while True:\n    i += 1\n    write_bytes(sys.argv[1], bytes([48 + i % 10]) * 2_000_000)\n"
    )
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as child:
            assert child.stdout.readline() == b"go\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(timeout=0.15)
            child.send_signal(signal.SIGKILL)
        content = path.read_bytes()
        assert len(content) == 2_000_000
        assert content == content[:1] * 2_000_000


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(FileError, match="writing"):
        write_bytes(tmp_path / name, b"")
    with pytest.raises(FileError, match="reading"):
        read_json(tmp_path / name, dict)


def test_a_path_without_a_name():
    with pytest.raises(FileError, match="empty name"):
        write_bytes("", b"")
