from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

from gracile import files
from gracile.errors import FileError, UsageError
from gracile.train import checkpoint


def state(step: int) -> dict:
    return {
        "model": {"w": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor(step)},
        "optimizer": {
            "state": {0: {"step": torch.tensor(1.0), "m": torch.ones(3, dtype=torch.bfloat16)}},
            "groups": [],
        },
        "progress": {"step": step, "best": float("inf"), "name": "run", "pair": (1, None)},
    }


def alike(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(alike, a, b))
    return a == b


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path / "new" / "run", state(3), step=3)
    assert path.name == "000001-step-3"
    assert sorted(p.name for p in path.iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert alike(checkpoint.load(tmp_path / "new" / "run"), state(3))
    assert set(files.read_tensors(path / "model.safetensors")) == {"w", "b"}


def test_only_the_newest_are_kept_and_drafts_are_swept(tmp_path):
    (tmp_path / ".draft-dead").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    for step in range(12):
        checkpoint.save(tmp_path, state(step), step, keep=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "000010-step-9",
        "000011-step-10",
        "000012-step-11",
        "latest",
        "notes.txt",
    ]
    assert checkpoint.load(tmp_path)["progress"]["step"] == 11


def test_the_same_step_can_be_saved_again(tmp_path):
    checkpoint.save(tmp_path, state(1), 5)
    checkpoint.save(tmp_path, state(2), 5)
    assert checkpoint.load(tmp_path)["progress"]["step"] == 2


class Killed(BaseException):
    """Stands for a process that is gone: nothing after it runs."""


def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    """Die before and after every flush and rename in turn; then load."""
    seen = set()
    for moment in range(100):
        folder = tmp_path / str(moment)
        checkpoint.save(folder, state(1), 1)
        with monkeypatch.context() as patch:
            left = [moment]

            def tick(left=left):
                if left[0] == 0:
                    raise Killed
                left[0] -= 1

            def around(original, tick=tick):
                def wrapped(*args, **kwargs):
                    tick()
                    result = original(*args, **kwargs)
                    tick()
                    return result

                return wrapped

            for owner, name in ((Path, "rename"), (Path, "replace"), (Path, "mkdir"), (os, "fsync")):
                patch.setattr(owner, name, around(getattr(owner, name)))
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # the dead do not clean up
            patch.setattr(Path, "unlink", lambda *a, **k: None)
            try:
                checkpoint.save(folder, state(2), 2)
                finished = True
            except Killed:
                finished = False
        found = checkpoint.load(folder)
        assert alike(found, state(1)) or alike(found, state(2))
        seen.add(found["progress"]["step"])
        checkpoint.save(folder, state(3), 3)  # and the next run goes on
        assert alike(checkpoint.load(folder), state(3))
        if finished:
            break
    assert finished
    assert moment > 15
    assert seen == {1, 2}


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, state(1), 1)
    original = os.fsync
    for fail_at in range(5):
        calls = [0]

        def full(handle, calls=calls, fail_at=fail_at):
            calls[0] += 1
            if calls[0] > fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(handle)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(FileError, match="No space left"):
                checkpoint.save(tmp_path, state(2), 2)
        assert alike(checkpoint.load(tmp_path), state(1))
        assert not list(tmp_path.glob(".draft-*"))


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="can be written"):
        checkpoint.save(tmp_path / "file" / "run", state(1), 1)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="function"):
        checkpoint.save(tmp_path, {"model": {"f": lambda: 0}}, 1)
    assert not checkpoint.exists(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint_is_a_clear_error(tmp_path):
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(FileError, match="latest"):
        checkpoint.load(tmp_path)


def spoil(path: Path, generator: random.Random) -> None:
    content = bytearray(path.read_bytes())
    match generator.randrange(4):
        case 0:
            content = content[: generator.randrange(len(content))]
        case 1:
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        case 2:
            content += bytes([generator.randrange(256)])
        case 3:
            at = generator.randrange(len(content))
            content[at : at + 40] = bytes(generator.randrange(256) for _ in range(40))
    path.write_bytes(bytes(content))


def test_damage_anywhere_is_found(tmp_path):
    """Truncate, flip, append and overwrite at random: an error, or (in blanks) the same content."""
    path = checkpoint.save(tmp_path / "good", state(7), 7)
    names = [p.name for p in path.iterdir()] + ["../latest"]
    refused = 0
    for trial in range(400):
        generator = random.Random(trial)
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        spoil(tmp_path / "bad" / path.name / generator.choice(names), generator)
        try:
            found = checkpoint.load(tmp_path / "bad")
        except FileError:
            refused += 1
        else:
            assert alike(found, state(7))
    assert refused > 350


@pytest.mark.parametrize(
    "name", ["state.json", "model.safetensors", "optimizer.safetensors", "manifest.json"]
)
def test_a_missing_file_is_named(tmp_path, name):
    path = checkpoint.save(tmp_path, state(1), 1)
    checkpoint.save(tmp_path, state(2), 2)  # an older one is not taken instead, in silence
    (tmp_path / "000002-step-2" / name).unlink()
    with pytest.raises(FileError, match=name):
        checkpoint.load(tmp_path)
    files.write_json(tmp_path / "latest", {"name": path.name})  # but can be chosen
    assert alike(checkpoint.load(tmp_path), state(1))


def reseal(path: Path) -> None:
    """Make the sums right again, as somebody hostile would."""
    sums = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in path.iterdir()
        if p.name != "manifest.json"
    }
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | {"sha256": sums}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'{"model": {"tensor": "nowhere"}}',
        b'{"model": {"dict": [[{}, 1]]}}',
        b'{"model": {"class": "os.system"}}',
        b"[" * 200_000,
        b'{"model":' + b'{"list":[' * 50_000,
        b"\x80\x04\x95cos\nsystem\n(S'touch owned'\ntR.",
        b'{"model": 1e999}',
        b"\xff\xfe",
    ],
)
def test_hostile_json_with_right_sums_is_refused(tmp_path, content):
    path = checkpoint.save(tmp_path, state(1), 1)
    (path / "state.json").write_bytes(content)
    reseal(path)
    with pytest.raises(FileError):
        checkpoint.load(tmp_path)
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 8, b"\x00" * 100, b"\x10" + b"\x00" * 7 + b'{"a":1}         ']
)
def test_hostile_tensors_with_right_sums_are_refused(tmp_path, content):
    path = checkpoint.save(tmp_path, state(1), 1)
    (path / "model.safetensors").write_bytes(content)
    reseal(path)
    with pytest.raises(FileError):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other/000001-step-1", "{}/other/000001-step-1", "000001-step-1/../x", ""]
)
def test_latest_cannot_point_elsewhere(tmp_path, name):
    """Not even at a checkpoint that is whole."""
    for folder in ("here", "other"):
        checkpoint.save(tmp_path / folder, state(1), 1)
    files.write_json(tmp_path / "here" / "latest", {"name": name.format(tmp_path)})
    with pytest.raises(FileError, match="the name"):
        checkpoint.load(tmp_path / "here")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"format": "1"},
        {"sha256": {"../../x.json": "0"}},
        {"sha256": {"/etc/passwd": "0"}},
        {"sha256": {}},
        {"sha256": []},
    ],
)
def test_a_manifest_of_another_kind_is_refused(tmp_path, change):
    path = checkpoint.save(tmp_path, state(1), 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(FileError):
        checkpoint.load(tmp_path)
