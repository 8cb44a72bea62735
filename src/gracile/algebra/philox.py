"""Random numbers as a function of what they are for: the same on every device, nothing to keep or resume."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from gracile.errors import UsageError

_LOWER = 0xFFFFFFFF


@final
@dataclass(frozen=True)
class Random:
    """A stream of random numbers; streams that differ in any of these are independent.

    Args:
        seed: of the whole run, 0 to 2^64 - 1.
        layer: number of the tensor.
        step: of training.
        lane: whatever else tells streams apart, e.g. the rank.

    Raises:
        UsageError: a number that does not fit: 32 bits for all but the seed.
    """

    seed: int
    layer: int = 0
    step: int = 0
    lane: int = 0

    def __post_init__(self) -> None:
        for name, bits in (("seed", 64), ("layer", 32), ("step", 32), ("lane", 32)):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**bits:
                raise UsageError(
                    "random numbers",
                    got=f"{name}={value!r}",
                    expected=f"a whole number from 0 to 2^{bits} - 1",
                )


def philox(index: Tensor, random: Random, rounds: int = 7) -> Tensor:
    """Four random words of 32 bits for every index: Philox4x32 with the key ``seed``.

    The counter is (index, layer, step, lane); every word of it has 32 bits.

    Args:
        index: int64, any shape (...), of which the lower 32 bits count.
        random: the stream.
        rounds: 7 are the fewest that pass every test of randomness; its authors take 10.

    Returns:
        int64 from 0 to 2^32 - 1, shape (4, ...).

    Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).

    >>> [f"{int(word):08x}" for word in philox(torch.tensor(0), Random(0), rounds=10)]
    ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    x = [index & _LOWER, *(torch.full_like(index, n) for n in (random.layer, random.step, random.lane))]
    key = [random.seed & _LOWER, random.seed >> 32]
    for _ in range(rounds):
        # int64 wraps around at 2^64, which leaves all bits right; the mask makes the shift a logical one
        a, b = x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [
            (b >> 32 & _LOWER) ^ x[1] ^ key[0],
            b & _LOWER,
            (a >> 32 & _LOWER) ^ x[3] ^ key[1],
            a & _LOWER,
        ]
        key = [(key[0] + 0x9E3779B9) & _LOWER, (key[1] + 0xBB67AE85) & _LOWER]
    return torch.stack(x)
