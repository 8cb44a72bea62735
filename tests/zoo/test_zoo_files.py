"""Damaged, truncated, foreign and hostile files give one clear error, and nothing else."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gracile.errors import FileError, UsageError
from gracile.zoo import available, fashion_mnist, load, mnist, ptb
from gracile.zoo.data import source
from gracile.zoo.data.cifar10 import decode
from gracile.zoo.data.mnist import labeled
from gracile.zoo.data.ptb import encode, words
from gracile.zoo.data.unpack import gunzip, read_idx, read_npz, unxz


def idx(values: np.ndarray, sizes: tuple[int, ...] | None = None) -> bytes:
    sizes = values.shape if sizes is None else sizes
    return bytes([0, 0, 8, len(sizes)]) + np.array(sizes, ">u4").tobytes() + values.tobytes()


def test_missing_folder_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRACILE_DATA", raising=False)
    with pytest.raises(FileError, match="GRACILE_DATA"):
        mnist()
    with pytest.raises(FileError, match="not there"):
        mnist(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"put it at '.*mnist/train-images-idx3-ubyte.gz'"):
        mnist(tmp_path)
    monkeypatch.setenv("GRACILE_DATA", str(tmp_path))
    with pytest.raises(FileError, match="No such file"):
        ptb()


@pytest.mark.parametrize(
    "content", [b"", b"\x1f\x8b", gzip.compress(b"wrong")], ids=["empty", "header", "other"]
)
def test_wrong_checksum_names_file_and_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fashion-mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(FileError) as caught:
        fashion_mnist(tmp_path)
    message = str(caught.value)
    assert str(path) in message
    assert f"{len(content)} bytes with SHA-256 {hashlib.sha256(content).hexdigest()}" in message
    assert source.CHECKSUMS["fashion-mnist/train-images-idx3-ubyte.gz"] in message


def test_available_looks_for_every_file(tmp_path: Path) -> None:
    assert available("digits", tmp_path)
    assert not available("mnist", tmp_path)
    (tmp_path / "mnist").mkdir()
    names = [name for name in source.CHECKSUMS if name.startswith("mnist/")]
    for name in names:
        assert not available("mnist", tmp_path)
        (tmp_path / name).touch()
    assert available("mnist", tmp_path)
    with pytest.raises(UsageError, match="one of digits"):
        available("imagenet")
    with pytest.raises(UsageError, match="one of digits"):
        load("imagenet")


def test_idx_round_trip() -> None:
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(read_idx(idx(values), "a", 3), values)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "IDX magic"),
        (b"\0\0\x08", "IDX magic"),
        (idx(np.zeros(3, np.uint8)).replace(b"\x08", b"\x0d", 1), "IDX magic 00 00 08 01"),
        (idx(np.zeros((3, 1), np.uint8)), "IDX magic"),
        (idx(np.zeros(3, np.uint8), (4,)), "got 3 values; expected the declared 4 = 4"),
        (idx(np.zeros(3, np.uint8), (2,)), "got 3 values; expected the declared 2 = 2"),
        (idx(np.zeros(3, np.uint8), (0xFFFFFFFF,)), "declared 4294967295"),
    ],
)
def test_damaged_idx(data: bytes, message: str) -> None:
    with pytest.raises(FileError, match=message):
        read_idx(data, "labels", 1)


def test_images_and_labels_must_belong_together() -> None:
    images = idx(np.zeros((2, 4, 4), np.uint8))
    assert len(labeled(images, idx(np.array([9, 1], np.uint8)), "a", 0.0, 1.0)) == 2
    for labels in ([1], [1, 10]):
        with pytest.raises(FileError, match="one label from 0 to 9"):
            labeled(images, idx(np.array(labels, np.uint8)), "a", 0.0, 1.0)
    with pytest.raises(FileError, match="0 images and 0 labels"):
        labeled(idx(np.zeros((0, 4, 4), np.uint8)), idx(np.zeros(0, np.uint8)), "a", 0.0, 1.0)


@pytest.mark.parametrize(("pack", "unpack"), [(gzip.compress, gunzip), (lzma.compress, unxz)])
def test_streams(pack, unpack) -> None:
    packed = pack(b"x" * 1000)
    assert unpack(packed, "a") == b"x" * 1000
    assert unpack(packed, "a", limit=1000) == b"x" * 1000
    with pytest.raises(FileError, match="more than 999 bytes"):
        unpack(packed, "a", limit=999)
    with pytest.raises(FileError, match="complete stream"):
        unpack(packed[:-9], "a")
    with pytest.raises(FileError, match="5 bytes after the end"):
        unpack(packed + b"extra", "a")
    for damaged in (b"PK\3\4....", packed[:-5] + b"\xff" + packed[-4:]):
        with pytest.raises(FileError, match="restore the original"):
            unpack(damaged, "a")


@pytest.mark.parametrize(("pack", "unpack"), [(gzip.compress, gunzip), (lzma.compress, unxz)])
def test_a_bomb_is_not_unpacked(pack, unpack) -> None:
    bomb = pack(bytes(64 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(FileError, match="more than 1048576 bytes"):
            unpack(bomb, "bomb", limit=1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def test_npz_is_strict() -> None:
    good = npz(a=np.arange(5, dtype=np.uint8))
    np.testing.assert_array_equal(read_npz(good, "f", {"a": "|u1"})["a"], np.arange(5))
    with pytest.raises(FileError, match="npz archive"):
        read_npz(good, "f", {"b": "|u1"})
    with pytest.raises(FileError, match="npz archive"):
        read_npz(good[: len(good) // 2], "f", {"a": "|u1"})
    with pytest.raises(FileError, match="one dimension of int64"):
        read_npz(good, "f", {"a": "<i8"})
    with pytest.raises(FileError, match="one dimension"):
        read_npz(npz(a=np.zeros((2, 2), np.uint8)), "f", {"a": "|u1"})
    with pytest.raises(FileError, match="object of shape"):
        read_npz(npz(a=np.array([print], dtype=object)), "f", {"a": "|u1"})


def test_npz_that_declares_more_than_it_holds() -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)}
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + b"1234")
    with pytest.raises(FileError, match=f"4 bytes of values; expected {1 << 50} times 1"):
        read_npz(stream.getvalue(), "f", {"a": "|u1"})
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(64 << 20))
    with pytest.raises(FileError, match=r"'a' of 67108864 bytes; expected at most \d+ unpacked bytes"):
        read_npz(stream.getvalue(), "f", {"a": "|u1"})


def test_npz_is_unpacked_up_to_a_limit() -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, a=np.zeros(1000, np.uint8))
    size = 1000 + 128  # of the array and its header
    assert not read_npz(stream.getvalue(), "f", {"a": "|u1"}, limit=size)["a"].any()
    with pytest.raises(FileError, match=f"at most {size - 1} unpacked bytes"):
        read_npz(stream.getvalue(), "f", {"a": "|u1"}, limit=size - 1)


def jpeg(size: tuple[int, int] = (32, 32), mode: str = "RGB", form: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.new(mode, size, 128).save(stream, form)
    return stream.getvalue()


def photographs(pictures: list[bytes], labels: list[int], shift: int = 0) -> bytes:
    offsets = np.cumsum([0, *map(len, pictures)], dtype=np.int64) + shift
    part = {
        "jpeg": np.frombuffer(b"".join(pictures), np.uint8),
        "offsets": offsets,
        "labels": np.array(labels, np.uint8),
    }
    return npz(**{f"{name}_{key}": value for name in ("train", "test") for key, value in part.items()})


def test_photographs_are_decoded() -> None:
    arrays = decode(photographs([jpeg(), jpeg()], [3, 4]))
    assert arrays["train_pixels"].shape == (2, 3, 32, 32)
    assert int(arrays["train_pixels"].max()) <= 130
    assert sorted(arrays["test_targets"].tolist()) == [3, 4]


@pytest.mark.parametrize(
    "archive",
    [
        photographs([jpeg()], [10]),
        photographs([jpeg()], [1, 2]),
        photographs([jpeg()], [1], shift=1),
        photographs([jpeg()], [1], shift=-1),
        photographs([jpeg()[:300]], [1]),
        photographs([jpeg((31, 32))], [1]),
        photographs([jpeg(mode="L")], [1]),
        photographs([jpeg(form="PNG")], [1]),
        photographs([b"not a picture"], [1]),
        photographs([jpeg().replace(b"\x00\x20\x00\x20", b"\xff\xff\xff\xff", 1)], [1]),
    ],
    ids=["label", "count", "shift-up", "shift-down", "truncated", "size", "gray", "png", "text", "bomb"],
)
def test_damaged_photographs(archive: bytes) -> None:
    with pytest.raises(FileError, match="cifar10"):
        decode(archive)


def test_text_must_be_text() -> None:
    with pytest.raises(FileError, match="UTF-8"):
        words(b"\xff\xfe", "ptb.train")
    with pytest.raises(FileError, match="'zebra'"):
        encode(["zebra"], ("a", "b"))
