"""Domains: the parts, what is done to pixels and counts, and files that are not what they should be."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from gracile.errors import FileError, UsageError
from gracile.zoo import DOMAINS, Images, domain, domain_available
from gracile.zoo.data import source
from gracile.zoo.data.domains import postal, shares, small
from gracile.zoo.data.unpack import read_npz

USPS, OFFICE = "domain-adaptation/usps_16x16.npz", "domain-adaptation/office_caltech10_surf_l10.npz"


def put(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **arrays: np.ndarray) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(stream.getvalue())
    monkeypatch.setitem(source.CHECKSUMS, name, hashlib.sha256(stream.getvalue()).hexdigest())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    generator = np.random.default_rng(0)
    put(
        tmp_path,
        monkeypatch,
        USPS,
        train_images=generator.random((200, 16, 16), np.float32),
        train_labels=(np.arange(200) % 10).astype(np.uint8),
        test_images=generator.random((30, 16, 16), np.float32),
        test_labels=(np.arange(30) % 10).astype(np.uint8),
    )
    objects = {}
    for name in ("amazon", "caltech", "dslr", "webcam"):
        counts = np.minimum(generator.poisson(1.0, (80, 800)), 255).astype(np.uint8)
        objects[f"{name}_features"] = np.asfortranarray(counts)
        objects[f"{name}_labels"] = (1 + np.arange(80) % 10).astype(np.uint8)
    put(tmp_path, monkeypatch, OFFICE, **objects)
    return tmp_path


def test_postal_digits_keep_their_published_parts(folder: Path) -> None:
    first, second = domain("usps", folder, seed=0), domain("usps", folder, seed=1)
    assert [len(part) for part in (first.train, first.validation, first.test)] == [180, 20, 30]
    assert torch.equal(first.test.pixels, second.test.pixels)
    assert not torch.equal(first.validation.pixels, second.validation.pixels)
    image, target = first.train[0]
    assert image.shape == (1, 16, 16)
    assert target.dtype == torch.int64
    assert image.min() >= -1
    assert image.max() <= 1
    raw = np.load(folder / USPS)["test_images"]
    order = first.test.pixels.flatten(1).sum(1).argsort()
    expected = torch.from_numpy(np.rint(raw * 255)).flatten(1)
    assert torch.equal(first.test.pixels.flatten(1)[order].float(), expected[expected.sum(1).argsort()])


@pytest.mark.parametrize("name", ["amazon", "caltech", "dslr", "webcam"])
def test_objects_are_split_by_class_and_measured_by_the_training_part(folder: Path, name: str) -> None:
    parts = domain(name, folder, seed=3)
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [50, 10, 20]
    assert torch.bincount(parts.test.targets).tolist() == [2] * 10
    read = torch.stack([features for features, _ in parts.train.__getitems__(range(50))])
    torch.testing.assert_close(read.mean(0), torch.zeros(800), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.std(0), torch.ones(800), atol=1e-3, rtol=0)
    assert torch.equal(read[7], parts.train[7][0])
    assert torch.equal(parts.test.mean, parts.train.mean)
    everything = torch.cat([part.features for part in (parts.train, parts.validation, parts.test)])
    torch.testing.assert_close(everything.sum(1), torch.ones(80))
    counts = np.load(folder / OFFICE)[f"{name}_features"].astype(np.float64)
    expected = counts / counts.sum(1, keepdims=True)
    np.testing.assert_allclose(
        np.sort(everything.numpy(), 0), np.sort(expected, 0), rtol=1e-5
    )  # every sample once
    assert not torch.equal(domain(name, folder, 4).validation.features, parts.validation.features)


def test_a_word_that_nobody_has_does_no_harm() -> None:
    counts = np.array([[2, 0, 2], [1, 0, 3]], np.uint8)
    assert shares(counts, np.array([1, 10])).tolist() == [[0.5, 0, 0.5], [0.25, 0, 0.75]]


def test_small_images_are_weighted_means() -> None:
    """Each new pixel is a triangle, twice as wide as its distance to the next, over the old ones."""
    pixels = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    scale = 28 / 16
    weights = np.zeros((16, 28))
    for new in range(16):
        for old in range(28):
            weights[new, old] = max(0.0, 1 - abs((old + 0.5) - (new + 0.5) * scale) / scale)
    weights /= weights.sum(1, keepdims=True)
    expected = np.einsum("ij,bjk,lk->bil", weights, pixels[:, 0].double().numpy(), weights)
    found = small(Images(pixels, torch.arange(3), 10, (0.1,), (0.2,)))
    assert np.abs(found.pixels[:, 0].numpy() - expected).max() <= 0.51
    assert (found.mean, found.std, found.targets.tolist()) == ((0.5,), (0.5,), [0, 1, 2])


def test_what_is_damaged_is_refused() -> None:
    images, labels = np.zeros((2, 16, 16), np.float32), np.array([0, 9], np.uint8)
    postal(images, labels)
    for bad_images, bad_labels in (
        (images[:1], labels),
        (images[:, :8], labels),
        (images + 1.5, labels),
        (images * np.float32("nan"), labels),
        (images, labels + 1),
        (images[:0], labels[:0]),
    ):
        with pytest.raises(FileError, match="16x16 images"):
            postal(bad_images, bad_labels)
    counts, labels = np.ones((2, 5), np.uint8), np.array([1, 10], np.uint8)
    for bad_counts, bad_labels in ((counts[:1], labels), (counts * 0, labels), (counts, labels - 1)):
        with pytest.raises(FileError, match="samples that have words"):
            shares(bad_counts, bad_labels)


def test_arrays_of_several_dimensions_are_read_in_either_order() -> None:
    for order in ("C", "F"):
        stream = io.BytesIO()
        np.savez(stream, a=np.asarray(np.arange(24, dtype=np.uint8).reshape(2, 3, 4), order=order))
        found = read_npz(stream.getvalue(), "f", {"a": "|u1"}, dimensions={"a": 3})["a"]
        np.testing.assert_array_equal(found, np.arange(24).reshape(2, 3, 4))
        with pytest.raises(FileError, match="2 dimensions of uint8"):
            read_npz(stream.getvalue(), "f", {"a": "|u1"}, dimensions={"a": 2})


def test_mistakes_are_explained(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"got 'svhn'; expected one of mnist16, usps, amazon"):
        domain("svhn", folder)
    assert [domain_available(name, folder) for name in DOMAINS] == [False, *[True] * 5]
    (folder / USPS).write_bytes(b"PK")
    with pytest.raises(FileError, match="2 bytes with SHA-256"):
        domain("usps", folder)
    monkeypatch.delenv("GRACILE_DATA", raising=False)
    assert not domain_available("usps")


@pytest.mark.data
def test_the_known_sets() -> None:
    if not all(domain_available(name) for name in DOMAINS):
        pytest.skip(reason="GRACILE_DATA has no domains")
    sizes = {name: [len(part) for part in _parts(name)] for name in DOMAINS}
    assert sizes["usps"] == [6564, 727, 2007]
    assert sizes["mnist16"] == [54001, 5999, 10000]
    assert {name: sum(sizes[name]) for name in DOMAINS[2:]} == {
        "amazon": 958,
        "caltech": 1123,
        "dslr": 157,
        "webcam": 295,
    }
    assert torch.bincount(_parts("usps")[2].targets)[0] == 359


def _parts(name: str) -> tuple:
    parts = domain(name)
    return parts.train, parts.validation, parts.test
