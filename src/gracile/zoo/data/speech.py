"""Spoken digits, as logarithmic mel spectra of fixed length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gracile.errors import FileError, UsageError
from gracile.train import Splits
from gracile.zoo.data.images import split
from gracile.zoo.data.source import content
from gracile.zoo.data.unpack import Array, read_npz

SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RATE = 8000  # samples in a second
WINDOW, HOP = 256, 128  # samples: 32 ms, every 16 ms
BANDS, FRAMES = 24, 50  # 50 frames are 0.82 s; 98 of 100 recordings are shorter

_FILE = "speech/fsdd_8khz_int16.npz"
_COLUMNS = {"samples": "<i2", "offsets": "<i8", "label": "|u1", "speaker": "|u1", "take": "|u1"}
_LIMIT = 1 << 26
_TEST_TAKES = 5  # the first of each speaker and digit
_VALIDATION = 1 / 9  # 5 of the 45 other takes
_FLOOR = 1e-3  # of power; a full-scale sine has about 4000 in its band


@final
@dataclass(frozen=True, eq=False)
class Clips(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (spectrum over time, class), ``(log power - mean) / std`` per band.

    Attributes:
        spectra: log mel powers, float32 of shape ``(count, frames, bands)``.
        targets: class of each clip, int64 of shape ``(count,)``.
        mean, std: per band, shape ``(bands,)``.
        classes: number of classes.

    >>> clips = Clips(torch.ones(3, 5, 2), torch.tensor([0, 1, 1]), torch.zeros(2), torch.full((2,), 2.0))
    >>> spectrum, target = clips[1]
    >>> spectrum.shape, float(spectrum[0, 0]), int(target)
    (torch.Size([5, 2]), 0.5, 1)
    """

    spectra: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor
    classes: int = 10

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one clip, ``(frames, bands)``."""
        return tuple(self.spectra.shape[1:])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return (self.spectra[index] - self.mean) / self.std, self.targets[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Read many at once, which data loaders do when they can."""
        chosen = torch.as_tensor(indices)
        spectra = (self.spectra[chosen] - self.mean) / self.std
        return list(zip(spectra, self.targets[chosen], strict=True))


def speech(folder: str | Path | None = None, seed: int = 0, speakers: Sequence[str] = SPEAKERS) -> Splits:
    """Free Spoken Digit Dataset, 10 digits by 6 speakers: 2400 clips to train, 300 to validate, 300 to test.

    The test part is takes 0 to 4 of every speaker and digit, whatever the ``seed``, which moves only the
    border between training and validation. All three parts have the same speakers. Means and
    deviations are those of the training clips.

    Args:
        folder: holds ``speech/fsdd_8khz_int16.npz``; ``GRACILE_DATA`` by default.
        seed: of the validation part, 5 takes of every speaker and digit.
        speakers: some of :data:`SPEAKERS`, for less data.

    Raises:
        FileError: the file is missing or is not the known one.
        UsageError: there is no such speaker.
    """
    strangers = set(speakers) - set(SPEAKERS)
    if strangers or not speakers:
        raise UsageError(
            "choosing speakers",
            got=f"'{min(strangers)}'" if strangers else "none",
            expected=f"some of {', '.join(SPEAKERS)}",
        )
    arrays = read_npz(content(folder, _FILE), _FILE, _COLUMNS, limit=_LIMIT)
    samples, offsets, labels, speaker, take = (arrays[name] for name in _COLUMNS)
    check(samples, offsets, labels, speaker, take)
    chosen = np.flatnonzero(np.isin(speaker, [SPEAKERS.index(name) for name in speakers]))
    spectra = log_mel(stack([samples[offsets[i] : offsets[i + 1]] for i in chosen]))
    tests = take[chosen] < _TEST_TAKES
    learning, test = np.flatnonzero(~tests), np.flatnonzero(tests)
    kinds = speaker[chosen].astype(np.int64) * 10 + labels[chosen]
    train, validation = split(kinds[learning], _VALIDATION, seed)
    known = spectra[learning[train]].flatten(0, 1)
    mean, std = known.mean(0), known.std(0)
    targets = torch.from_numpy(labels[chosen].astype(np.int64))
    return Splits(
        *(
            Clips(spectra[part], targets[part], mean, std)
            for part in (learning[train], learning[validation], test)
        )
    )


def check(samples: Array, offsets: Array, labels: Array, speaker: Array, take: Array) -> None:
    """Refuse arrays that do not describe one another.

    Raises:
        FileError: counts differ, clips do not tile the samples, or a label or speaker is unknown.
    """
    count = len(labels)
    counts = len(offsets) == count + 1 == len(speaker) + 1 == len(take) + 1 > 1
    tiling = counts and bool((np.diff(offsets) > 0).all()) and offsets[0] == 0 and offsets[-1] == len(samples)
    if not (tiling and labels.max() <= 9 and speaker.max() < len(SPEAKERS)):
        raise FileError(
            f"unpacking '{_FILE}'",
            got=f"{count} labels, {len(offsets)} offsets into {len(samples)} samples",
            expected=f"clips that tile the samples, with labels from 0 to 9 and {len(SPEAKERS)} speakers",
            hint="restore the original file",
        )


def stack(clips: Sequence[Array]) -> Tensor:
    """Clips of equal length and loudness: cut or filled up with silence, the loudest sample being 1.

    Returns:
        float32 of shape ``(count, samples)``, as long as :data:`FRAMES` frames need.

    >>> stack([np.array([3, -6], np.int16)])[0, :3]
    tensor([ 0.5000, -1.0000,  0.0000])
    """
    stacked = torch.zeros(len(clips), (FRAMES - 1) * HOP + WINDOW)
    for row, clip in zip(stacked, clips, strict=True):
        part = torch.from_numpy(clip[: len(row)].astype(np.float32))
        row[: len(part)] = part / part.abs().max().clamp_min(1.0)
    return stacked


def log_mel(waves: Tensor) -> Tensor:
    """Logarithm of the power in each mel band over time.

    log max(sum_f B[f, b] |sum_t h_t x_t e^(-2 pi i f t / WINDOW)|^2, floor) with a Hann window h and the
    triangular bands B of :func:`mel_bands`.

    Args:
        waves: samples at 8 kHz, shape ``(count, samples)``, at least one window long.

    Returns:
        shape ``(count, frames, bands)``.

    >>> log_mel(torch.zeros(1, 512)).shape
    torch.Size([1, 3, 24])
    """
    window, bands = torch.hann_window(WINDOW), mel_bands()
    parts = []
    for some in waves.split(256):  # a spectrum takes eight times the memory of its wave
        power = torch.fft.rfft(some.unfold(1, WINDOW, HOP) * window).abs().square()
        parts.append((power @ bands).clamp_min(_FLOOR).log())
    return torch.cat(parts)


@lru_cache(maxsize=1)
def mel_bands() -> Tensor:
    """Triangles of height 1, evenly spaced on the mel scale, each reaching to the centers beside it.

    mel = 2595 log10(1 + f / 700 Hz). Shape ``(WINDOW / 2 + 1, BANDS)``.

    >>> mel_bands().shape, float(mel_bands().max()) <= 1.0
    (torch.Size([129, 24]), True)
    """
    top = 2595 * np.log10(1 + RATE / 2 / 700)
    corners = 700 * (10 ** (np.linspace(0.0, top, BANDS + 2) / 2595) - 1)
    hertz = np.arange(WINDOW // 2 + 1)[:, None] * RATE / WINDOW
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    sides = np.minimum((hertz - left) / (center - left), (right - hertz) / (right - center))
    return torch.from_numpy(np.clip(sides, 0.0, None).astype(np.float32))
