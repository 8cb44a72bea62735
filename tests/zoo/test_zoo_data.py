"""Data sets: sizes, disjoint parts, normalization, windows, and the cache of decoded pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from gracile.errors import UsageError
from gracile.files import read_tensors, write_tensors
from gracile.zoo import Windows, available, cifar10, digits, load
from gracile.zoo.data.cifar10 import _digest, _recall, cache_folder
from gracile.zoo.data.images import split


def test_digits_hold_every_image_once() -> None:
    parts = digits(seed=3)
    pixels = torch.cat([part.pixels for part in (parts.train, parts.validation, parts.test)]).flatten(1)
    targets = torch.cat([part.targets for part in (parts.train, parts.validation, parts.test)])
    found = np.concatenate([pixels.numpy(), targets.numpy()[:, None]], 1)
    raw = load_digits()
    expected = np.concatenate([raw.data.astype(np.uint8), raw.target[:, None]], 1)
    np.testing.assert_array_equal(np.unique(found, axis=0), np.unique(expected, axis=0))
    assert len(found) == len(expected) == 1797


def test_the_test_part_does_not_depend_on_the_seed() -> None:
    first, second = digits(seed=0), digits(seed=1)
    assert torch.equal(first.test.pixels, second.test.pixels)
    assert not torch.equal(first.validation.pixels, second.validation.pixels)
    assert torch.equal(first.validation.pixels, digits(seed=0).validation.pixels)


def test_images_are_normalized_one_by_one_and_together() -> None:
    train = digits().train
    images, targets = next(iter(DataLoader(train, batch_size=len(train))))
    assert images.mean().item() == pytest.approx(0.0, abs=1e-3)
    assert images.std().item() == pytest.approx(1.0, abs=1e-3)
    for index in (0, 5):
        image, target = train[index]
        assert torch.equal(image, images[index])
        assert target == targets[index]
    assert int(train.pixels.max()) == 16  # reading must not change the stored bytes


@settings(deadline=None, max_examples=50)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    fraction=st.floats(0.0, 1.0),
    seed=st.integers(0, 9),
)
def test_split_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    targets = np.array(labels)
    rest, part = split(targets, fraction, seed)
    assert sorted([*rest, *part]) == list(range(len(labels)))
    for label in set(labels):
        count = int((targets == label).sum())
        assert abs((targets[part] == label).sum() - fraction * count) <= 0.5


@settings(deadline=None, max_examples=50)
@given(length=st.integers(2, 200), steps=st.integers(1, 9), batch=st.integers(1, 5))
def test_windows_in_order_are_parallel_streams(length: int, steps: int, batch: int) -> None:
    stream = torch.arange(length)
    if (length - 1) // batch // steps == 0:
        with pytest.raises(UsageError, match="more than steps"):
            Windows(stream, ("a",), steps, batch)
        return
    windows = Windows(stream, ("a",), steps, batch)
    inputs, targets = zip(*DataLoader(windows, batch_size=batch), strict=True)
    inputs, targets = torch.cat(inputs, 1), torch.cat(targets, 1)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs - inputs[:, :1], torch.arange(inputs.shape[1]).expand(batch, -1))
    assert inputs.unique().numel() == inputs.numel()
    assert length - 1 - inputs.numel() < batch * (steps + 1)


def test_windows_end() -> None:
    windows = Windows(torch.arange(14), ("a",), 3, 2)
    for index in (-1, 4):
        with pytest.raises(IndexError):
            windows[index]


def test_the_cache_is_believed_only_when_intact(tmp_path: Path) -> None:
    arrays = {"a": torch.arange(9, dtype=torch.uint8), "b": torch.zeros(2, 2, dtype=torch.uint8)}
    path = tmp_path / "cache.safetensors"
    assert _recall(path) is None
    write_tensors(path, arrays)
    assert _recall(path) is None  # no checksum
    write_tensors(path, {**arrays, "sha256": _digest(arrays)})
    assert torch.equal(_recall(path)["a"], arrays["a"])
    content = bytearray(path.read_bytes())
    content[content.index(bytes(range(9)))] ^= 1
    path.write_bytes(content)
    assert _recall(path) is None
    path.write_bytes(content[:50])
    assert _recall(path) is None


def test_cache_folder_follows_the_desktop_convention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gracile"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "gracile"


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes", "shape"),
    [
        ("mnist", (54001, 5999, 10000), (1, 28, 28)),
        ("fashion-mnist", (54000, 6000, 10000), (1, 28, 28)),
        ("cifar10", (45000, 5000, 10000), (3, 32, 32)),
        ("ptb", (26540, 2100, 2340), (35,)),
    ],
)
def test_known_sets(name: str, sizes: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    if not available(name):
        pytest.skip(reason=f"GRACILE_DATA has no {name}")
    parts = load(name)
    assert (len(parts.train), len(parts.validation), len(parts.test)) == sizes
    assert parts.train[0][0].shape == parts.train.shape == shape
    assert parts.train.classes == (10000 if name == "ptb" else 10)


@pytest.mark.data
def test_ptb_tokens_are_those_of_the_literature() -> None:
    if not available("ptb"):
        pytest.skip(reason="GRACILE_DATA has no ptb")
    parts = load("ptb")
    assert [len(p.stream) for p in (parts.train, parts.validation, parts.test)] == [929589, 73760, 82430]
    assert parts.train.vocabulary[:3] == ("the", "<unk>", "<eos>")
    assert int(parts.test.stream.max()) < 10000


@pytest.mark.data
def test_cifar10_is_mixed_and_its_cache_restores_the_same() -> None:
    if not available("cifar10"):
        pytest.skip(reason="GRACILE_DATA has no cifar10")
    parts = cifar10()
    assert torch.bincount(parts.test.targets[:1000]).min() > 50
    assert torch.bincount(parts.validation.targets).tolist() == [500] * 10
    files = list(cache_folder().glob("cifar10-*.safetensors"))
    assert files
    assert torch.equal(read_tensors(files[0])["test_pixels"], parts.test.pixels)
