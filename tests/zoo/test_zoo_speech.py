"""Spoken digits: spectra against a Fourier sum written out, and parts that do not share a recording."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch

from gracile.errors import FileError, UsageError
from gracile.zoo import available, load, speech
from gracile.zoo.data import source
from gracile.zoo.data.speech import (
    BANDS,
    FRAMES,
    HOP,
    RATE,
    SPEAKERS,
    WINDOW,
    check,
    log_mel,
    mel_bands,
    stack,
)


def test_spectra_equal_the_fourier_sum() -> None:
    wave = np.random.default_rng(0).normal(size=WINDOW + 2 * HOP + 5)
    t = np.arange(WINDOW)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * t / WINDOW)
    expected = []
    for frame in range(3):
        part = hann * wave[frame * HOP : frame * HOP + WINDOW]
        spectrum = [
            abs((part * np.exp(-2j * np.pi * f * t / WINDOW)).sum()) ** 2 for f in range(WINDOW // 2 + 1)
        ]
        expected.append(np.log(np.maximum(np.array(spectrum) @ mel_bands().double().numpy(), 1e-3)))
    found = log_mel(torch.tensor(wave, dtype=torch.float32)[None])
    assert found.shape == (1, 3, BANDS)
    np.testing.assert_allclose(found[0], expected, atol=1e-3)


def test_bands_are_equally_wide_in_mel_and_add_up_to_one() -> None:
    bands = mel_bands().double().numpy()
    mel = 2595 * np.log10(1 + np.arange(WINDOW // 2 + 1) * RATE / WINDOW / 700)
    width = 2595 * np.log10(1 + RATE / 2 / 700) / (BANDS + 1)
    inner = (mel >= width) & (mel <= BANDS * width)
    np.testing.assert_allclose(bands[inner].sum(1), 1.0, atol=1e-6)
    for band in range(BANDS):
        center = (band + 1) * width
        assert not bands[(mel <= center - width) | (mel >= center + width), band].any()
        assert bands[np.abs(mel - center) < 0.3 * width, band].min(initial=1.0) > 0.6


@pytest.mark.parametrize("hertz", [250, 1000, 3000])
def test_a_tone_is_loudest_in_its_band(hertz: int) -> None:
    wave = torch.sin(2 * torch.pi * hertz * torch.arange(4 * WINDOW) / RATE)
    position = 2595 * np.log10(1 + hertz / 700) / (2595 * np.log10(1 + RATE / 2 / 700)) * (BANDS + 1) - 1
    assert abs(int(log_mel(wave[None])[0, 3].argmax()) - position) <= 1


def test_many_clips_are_the_same_as_one_by_one() -> None:
    waves = torch.randn(300, 2 * WINDOW, generator=torch.Generator().manual_seed(0))
    together = log_mel(waves)
    torch.testing.assert_close(together[290:291], log_mel(waves[290:291]))


def test_clips_become_equally_long_and_loud() -> None:
    length = (FRAMES - 1) * HOP + WINDOW
    short, long = np.array([2, -8, 4], np.int16), np.full(length + 9, -3, np.int16)
    stacked = stack([short, long, np.zeros(2, np.int16)])
    assert stacked.shape == (3, length)
    assert stacked[0, :4].tolist() == [0.25, -1.0, 0.5, 0.0]
    assert (stacked[1] == -1).all()
    assert not stacked[2].any()


def _archive(takes: int = 18) -> bytes:
    generator = np.random.default_rng(0)
    count = 6 * 10 * takes
    lengths = generator.integers(300, 400, count)
    offsets = np.concatenate([[0], lengths.cumsum()]).astype(np.int64)
    samples = generator.integers(-999, 999, offsets[-1]).astype(np.int16)
    speaker, label, take = np.unravel_index(np.arange(count), (6, 10, takes))
    stream = io.BytesIO()
    columns = {"label": label, "speaker": speaker, "take": take}
    np.savez_compressed(
        stream, samples=samples, offsets=offsets, **{k: v.astype(np.uint8) for k, v in columns.items()}
    )
    return stream.getvalue()


@pytest.fixture
def recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    data = _archive()
    name = "speech/fsdd_8khz_int16.npz"
    (tmp_path / "speech").mkdir()
    (tmp_path / name).write_bytes(data)
    monkeypatch.setitem(source.CHECKSUMS, name, hashlib.sha256(data).hexdigest())
    return tmp_path


def test_parts_share_no_recording_and_the_test_part_is_fixed(recordings: Path) -> None:
    first, second = (speech(recordings, seed, speakers=SPEAKERS[1:3]) for seed in (0, 1))
    parts = (first.train, first.validation, first.test)
    # Of 18 takes the first 5 are tested, and one of the 13 others validates: a ninth, rounded.
    assert [len(part) for part in parts] == [2 * 10 * 12, 2 * 10 * 1, 2 * 10 * 5]
    for part in parts:
        assert torch.bincount(part.targets).unique().numel() == 1
    spectra = torch.cat([part.spectra for part in parts]).flatten(1)
    assert len(spectra.unique(dim=0)) == len(spectra) == 2 * 10 * 18
    assert torch.equal(first.test.spectra, second.test.spectra)
    assert not torch.equal(first.validation.spectra, second.validation.spectra)
    assert torch.equal(first.validation.spectra, speech(recordings, 0, SPEAKERS[1:3]).validation.spectra)


def test_spectra_are_normalized_by_the_training_part(recordings: Path) -> None:
    parts = speech(recordings, speakers=SPEAKERS[:1])
    read = torch.stack([spectrum for spectrum, _ in parts.train.__getitems__(range(len(parts.train)))])
    torch.testing.assert_close(read.mean((0, 1)), torch.zeros(BANDS), atol=1e-3, rtol=0)
    torch.testing.assert_close(read.std((0, 1)), torch.ones(BANDS), atol=1e-2, rtol=0)
    assert torch.equal(read[7], parts.train[7][0])
    assert torch.equal(parts.test.mean, parts.train.mean)


def test_mistakes_are_explained(recordings: Path) -> None:
    with pytest.raises(UsageError, match=r"got 'adam'; expected some of george"):
        speech(recordings, speakers=("theo", "adam"))
    with pytest.raises(UsageError, match="got none"):
        speech(recordings, speakers=())
    (recordings / "speech" / "fsdd_8khz_int16.npz").write_bytes(b"PK")
    with pytest.raises(FileError, match="2 bytes with SHA-256"):
        speech(recordings)


def test_arrays_must_belong_together() -> None:
    clips = (np.zeros(5, np.int16), np.array([0, 2, 5]), np.array([0, 9]), np.array([0, 5]), np.array([0, 1]))
    check(*clips)
    wrong = {
        0: np.zeros(6, np.int16),  # samples that no clip has
        1: np.array([0, 6, 5]),
        2: np.array([0, 10]),
        3: np.array([0, 6]),
        4: np.array([0]),
    }
    for place, array in wrong.items():
        with pytest.raises(FileError, match="tile the samples"):
            check(*(array if i == place else good for i, good in enumerate(clips)))


@pytest.mark.data
def test_the_known_set() -> None:
    if not available("speech"):
        pytest.skip(reason="GRACILE_DATA has no speech")
    parts = load("speech")
    assert [len(part) for part in (parts.train, parts.validation, parts.test)] == [2400, 300, 300]
    assert torch.bincount(parts.validation.targets).tolist() == [30] * 10
    assert parts.train[0][0].shape == parts.train.shape == (FRAMES, BANDS)
