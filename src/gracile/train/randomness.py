"""The state of every random number generator that training draws from: seed it, keep it, restore it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import final

import numpy as np
import torch


@final
@dataclass(frozen=True)
class Randomness:
    """Snapshot of Python's, NumPy's and PyTorch's global generators, in plain types.

    CUDA's generator is that of the current device; it is empty where there is none.
    """

    torch: str
    cuda: str
    numpy: tuple[str, list[int], int, int, float]
    python: tuple[int, list[int], float | None]


def seed(number: int) -> None:
    """Seed all generators, also those of GPUs.

    >>> seed(1); a = torch.rand(()); seed(1); bool(a == torch.rand(()))
    True
    """
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002  (user code draws from the global generator)
    torch.manual_seed(number)


def mixed(*numbers: int) -> int:
    """One seed that follows from several numbers, each 0 or more, e.g. a seed and a step.

    A stream that starts anew from such a seed at every step needs no state: a resumed run draws the same
    numbers, ranks that count alike draw the same numbers, and the global generators are left alone.

    >>> mixed(0, 1) == mixed(0, 1), mixed(0, 1) == mixed(1, 0)
    (True, False)
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def capture() -> Randomness:
    """Take a snapshot of all generators.

    >>> seed(3); before = capture(); a = torch.rand(()), random.random()
    >>> restore(before); (torch.rand(()), random.random()) == a
    True
    """
    kind, key, position, has_gauss, gauss = np.random.get_state()  # noqa: NPY002
    version, words, pending = random.getstate()
    return Randomness(
        torch=_hex(torch.get_rng_state()),
        cuda=_hex(torch.cuda.get_rng_state()) if torch.cuda.is_initialized() else "",
        numpy=(str(kind), [int(word) for word in key], int(position), int(has_gauss), float(gauss)),
        python=(version, list(words), pending),
    )


def restore(snapshot: Randomness) -> None:
    """Put all generators back to ``snapshot``."""
    kind, key, position, has_gauss, gauss = snapshot.numpy
    np.random.set_state((kind, np.array(key, dtype=np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    version, words, pending = snapshot.python
    random.setstate((version, tuple(words), pending))
    torch.set_rng_state(_tensor(snapshot.torch))
    if snapshot.cuda and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(snapshot.cuda))


def _hex(state: torch.Tensor) -> str:
    return state.numpy().tobytes().hex()


def _tensor(state: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(bytes.fromhex(state)), dtype=torch.uint8)
