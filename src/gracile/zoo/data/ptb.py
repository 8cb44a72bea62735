"""The Penn Treebank as a stream of words, cut into windows for truncated back-propagation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Dataset

from gracile.errors import FileError, UsageError
from gracile.train import Splits
from gracile.zoo.data.source import content
from gracile.zoo.data.unpack import unxz

_LIMIT = 1 << 26


@final
@dataclass(frozen=True, eq=False)
class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Windows of a token stream, paired with the same windows one token later.

    The stream is laid out as ``batch_size`` parallel streams; item ``k * batch_size + b`` is
    window ``k`` of stream ``b``. Read in order with that batch size, row ``b`` of each batch
    goes on where row ``b`` of the batch before ended, so a hidden state can be carried along;
    read in any order, every item is a pair of its own. What does not fill a window is left out.

    Attributes:
        stream: tokens, int64 of shape ``(count,)``.
        vocabulary: token -> word.
        steps: length of a window.
        batch_size: number of parallel streams.

    >>> windows = Windows(torch.arange(14), ("a",) * 14, steps=3, batch_size=2)
    >>> [windows[i][0].tolist() for i in range(len(windows))]
    [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]
    >>> windows[3][1].tolist()
    [10, 11, 12]
    """

    stream: Tensor
    vocabulary: tuple[str, ...]
    steps: int = 35
    batch_size: int = 20

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not len(self):
            raise UsageError(
                "cutting windows",
                got=f"{len(self.stream)} tokens, steps={self.steps}, batch_size={self.batch_size}",
                expected="positive numbers and more than steps * batch_size tokens",
            )

    @property
    def classes(self) -> int:
        """Number of words."""
        return len(self.vocabulary)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input, ``(steps,)``."""
        return (self.steps,)

    def __len__(self) -> int:
        return (len(self.stream) - 1) // self.batch_size // self.steps * self.batch_size

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        window, row = divmod(index, self.batch_size)
        start = row * ((len(self.stream) - 1) // self.batch_size) + window * self.steps
        return self.stream[start : start + self.steps], self.stream[start + 1 : start + self.steps + 1]


def ptb(folder: str | Path | None = None, steps: int = 35, batch_size: int = 20) -> Splits:
    """Penn Treebank, Mikolov's edition: 929589 / 73760 / 82430 words, vocabulary 10000.

    Lines end in ``<eos>``; the vocabulary is that of the training text, frequent words first.

    Args:
        folder: holds ``ptb/ptb.{train,valid,test}.txt.xz``; ``GRACILE_DATA`` by default.
        steps: length of the windows.
        batch_size: number of parallel streams; load with this batch size, in order, to carry state.

    Raises:
        FileError: a file is missing or is not the known one.
    """
    texts = [
        words(unxz(content(folder, f"ptb/ptb.{part}.txt.xz"), f"ptb.{part}", _LIMIT), f"ptb.{part}")
        for part in ("train", "valid", "test")
    ]
    vocabulary = vocabulary_of(texts[0])
    return Splits(*(Windows(encode(text, vocabulary), vocabulary, steps, batch_size) for text in texts))


def words(text: bytes, name: str) -> list[str]:
    """Split UTF-8 text at white space; every line end becomes the word ``<eos>``.

    >>> words(b" no it\\n", "text")
    ['no', 'it', '<eos>']
    """
    try:
        return text.decode().replace("\n", " <eos> ").split()
    except UnicodeDecodeError as error:
        raise FileError(f"reading '{name}'", got=str(error), expected="UTF-8 text") from error


def vocabulary_of(text: Sequence[str]) -> tuple[str, ...]:
    """Distinct words, the most frequent first, equals in alphabetical order.

    >>> vocabulary_of(["b", "a", "c", "c"])
    ('c', 'a', 'b')
    """
    counts = Counter(text)
    return tuple(sorted(counts, key=lambda word: (-counts[word], word)))


def encode(text: Sequence[str], vocabulary: Sequence[str]) -> Tensor:
    """Replace words by their places in the vocabulary; words that it lacks by that of ``<unk>``.

    Raises:
        FileError: a word is missing and the vocabulary has no ``<unk>``.

    >>> encode(["b", "zebra"], ("<unk>", "b"))
    tensor([1, 0])
    """
    places = {word: place for place, word in enumerate(vocabulary)}
    missing = [] if "<unk>" in places else sorted(set(text) - set(places))
    if missing:
        raise FileError("encoding words", got=f"'{missing[0]}'", expected="words of the training text")
    return torch.tensor([places.get(word, places.get("<unk>", 0)) for word in text])
