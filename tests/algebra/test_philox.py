"""Random numbers by counter: against published answers, and against whole numbers without a limit."""

import pytest
import torch

from gracile.algebra.philox import Random, philox
from gracile.errors import UsageError

ONES = 2**32 - 1
KNOWN = [  # kat_vectors of Random123
    (7, Random(0), 0, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, Random(2**64 - 1, ONES, ONES, ONES), ONES, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (10, Random(0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, Random(2**64 - 1, ONES, ONES, ONES), ONES, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
]


@pytest.mark.parametrize(("rounds", "random", "index", "words"), KNOWN)
def test_published_answers(rounds, random, index, words):
    found = philox(torch.tensor(index), random, rounds)
    assert " ".join(f"{int(word):08x}" for word in found) == words


def by_hand(index: int, random: Random, rounds: int) -> list[int]:
    x, k = [index, random.layer, random.step, random.lane], [random.seed & ONES, random.seed >> 32]
    for _ in range(rounds):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b >> 32 ^ x[1] ^ k[0], b & ONES, a >> 32 ^ x[3] ^ k[1], a & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return x


def test_every_word_of_the_counter_counts():
    random = Random(2**40 + 5, layer=3, step=2**31 + 7, lane=11)
    index = torch.tensor([0, 1, 77, ONES])
    found = philox(index, random)
    assert found.shape == (4, 4)
    for column, i in enumerate(index.tolist()):
        assert found[:, column].tolist() == by_hand(i, random, 7)


def test_streams_do_not_resemble_each_other():
    index = torch.arange(4096)
    streams = [Random(1), Random(2), Random(1, layer=1), Random(1, step=1), Random(1, lane=1)]
    bits = torch.stack([philox(index, s)[0] >> 31 for s in streams]).double() * 2 - 1
    like = (bits @ bits.T / len(index)).fill_diagonal_(0)
    assert like.abs().max() < 4 / len(index) ** 0.5


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**64}, {"seed": 0, "step": 2**32}, {"seed": 1.5}])
def test_numbers_that_do_not_fit(bad):
    with pytest.raises(UsageError, match="random numbers"):
        Random(**bad)
