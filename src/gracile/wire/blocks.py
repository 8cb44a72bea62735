"""Numbers of a few bits on torch alone, bit for bit as the compiled kernels make them.

A block is 512 numbers, seen as 32 rows of 16 columns. With fields of w bits, column c of a block is a stream
of 32 w bits, row r the bits r w to r w + w - 1 of it; word i of all columns lie together. So a block is ``w``
times 16 words of 32 bits, and one vector instruction treats as many columns as it has lanes. A field holds a
*digit*: what is meant plus an offset, so that digits are added up as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gracile.algebra.philox import Random, philox

ROWS, COLUMNS = 32, 16
BLOCK = ROWS * COLUMNS
_AT_ONCE = 2048  # blocks: what lies between is eight times as large as the numbers

Draw = Callable[[Tensor, Tensor], Tensor]


def squares(x: Tensor) -> tuple[float, float]:
    """Sum of squares in double precision, and the largest absolute value."""
    if not x.numel():
        return 0.0, 0.0
    norm = torch.linalg.vector_norm(x, dtype=torch.float64)
    largest = torch.linalg.vector_norm(x, torch.inf).double()
    found, top = torch.stack([norm, largest]).tolist()  # one wait for a GPU
    return found * found, top


def ternarize(x: Tensor, scale: float, random: Random, first: int, out: Tensor) -> None:
    """Digits 0, 1, 2 at random: P(digit is not 1) = |x| / scale."""

    def draw(x: Tensor, u: Tensor) -> Tensor:
        x = x * factor_of(2.0**24, scale)
        return 1 + (u < x).long() - (u < -x).long()

    _draw(x, random, first, out, 2, draw)


def round_(x: Tensor, scale: float, random: Random, first: int, out: Tensor) -> None:
    """Digits 0 to 14 at random, of the neighboring multiples of scale / 7."""

    def draw(x: Tensor, u: Tensor) -> Tensor:
        x = (x * factor_of(7.0, scale)).clamp(-7.0, 7.0) + 7.0
        return (x + u * 2.0**-24).long().clamp(max=14)

    _draw(x, random, first, out, 4, draw)


def add(messages: Sequence[Tensor], width: int, out: Tensor) -> None:
    """Sums of the digits of messages of 2 bits, in fields of ``width`` bits."""
    blocks = messages[0].numel() // (2 * COLUMNS)
    for part in _parts(blocks):
        total = sum(_unpack(message.view(blocks, 2, COLUMNS)[part]) for message in messages)
        out.view(blocks, width, COLUMNS)[part] = _pack(torch.as_tensor(total), width)


def decode(words: Tensor, width: int, offset: int, factor: float, out: Tensor) -> None:
    """out = factor * (digit - offset)."""
    blocks = -(-out.numel() // BLOCK)
    fields = words.view(blocks, width, COLUMNS)
    for part in _parts(blocks):
        found = (_unpack(fields[part]) - offset).float() * torch.tensor(factor, device=out.device)
        to = out[part.start * BLOCK : part.stop * BLOCK]
        to.copy_(found.flatten()[: to.numel()])


def to_base3(words: Tensor, out: Tensor) -> None:
    """Five blocks of 2 bits as 512 bytes of five digits."""
    digits = words.view(-1, 5, 2, COLUMNS).long()
    found = torch.stack([digits >> 2 * j & 0x03030303 for j in range(4)], dim=3)  # five, word, j
    powers = torch.tensor([3**i for i in range(5)], device=words.device).view(5, 1, 1, 1)
    out.view(-1, 2, 4, COLUMNS).copy_(_narrow((found * powers).sum(1)))


def from_base3(words: Tensor, out: Tensor) -> None:
    """Back from :func:`to_base3`."""
    packed = words.view(-1, 2, 4, COLUMNS).long()
    bytes_ = torch.stack([packed >> 8 * b & 0xFF for b in range(4)])
    digits = torch.zeros_like(out, dtype=torch.long).view(-1, 5, 2, COLUMNS)
    for i in range(5):
        for b in range(4):
            for j in range(4):
                digits[:, i] |= bytes_[b, :, :, j] // 3**i % 3 << 8 * b + 2 * j
    out.view(-1, 5, 2, COLUMNS).copy_(_narrow(digits))


def factor_of(levels: float, scale: float) -> float:
    """levels / scale in single precision; zero for a scale that is too small to divide by."""
    return 0.0 if scale < 2.0**-100 else float(torch.tensor(levels) / torch.tensor(scale))


def sum_bits(messages: int) -> int:
    """Bits of a field that holds a sum of ternary digits: ceil(log2(2 N + 1)).

    >>> [sum_bits(n) for n in (1, 2, 4, 8, 16)]
    [2, 3, 4, 5, 6]
    """
    return (2 * messages).bit_length()


def _draw(x: Tensor, random: Random, first: int, out: Tensor, width: int, draw: Draw) -> None:
    blocks = -(-x.numel() // BLOCK)
    padded = torch.nn.functional.pad(x, (0, blocks * BLOCK - x.numel())).view(blocks, ROWS, COLUMNS)
    for part in _parts(blocks):
        u = _uniform(first + part.start, part.stop - part.start, random, x.device)
        out.view(blocks, width, COLUMNS)[part] = _pack(draw(padded[part], u), width)


def _uniform(first: int, blocks: int, random: Random, device: torch.device) -> Tensor:
    """Whole numbers below 2^24 as float32: the halves of a word in turn, the other half as lower bits."""
    index = torch.arange(first * 64, (first + blocks) * 64, device=device)
    words = philox(index, random).view(4, blocks, 4, COLUMNS)
    turned = (words << 16 | words >> 16) & 0xFFFFFFFF
    halves = torch.stack([words, turned], dim=1).view(8, blocks, 4, COLUMNS)
    return (halves >> 8).float().permute(1, 2, 0, 3).reshape(blocks, ROWS, COLUMNS)


def _parts(blocks: int) -> Iterator[slice]:
    for start in range(0, blocks, _AT_ONCE):
        yield slice(start, min(blocks, start + _AT_ONCE))


def _pack(digits: Tensor, width: int) -> Tensor:
    words = digits.new_zeros(len(digits), width + 1, COLUMNS)  # one more than needed
    for row in range(ROWS):
        word, shift = divmod(row * width, 32)
        field = digits[:, row] << shift
        words[:, word] |= field & 0xFFFFFFFF
        words[:, word + 1] |= field >> 32
    return _narrow(words[:, :width])


def _unpack(words: Tensor) -> Tensor:
    blocks, width, _ = words.shape
    wide = torch.cat([words.long() & 0xFFFFFFFF, words.new_zeros(blocks, 1, COLUMNS)], dim=1)
    rows = []
    for row in range(ROWS):
        word, shift = divmod(row * width, 32)
        both = wide[:, word] | wide[:, word + 1] << 32  # the sign it may get is beyond the field
        rows.append(both >> shift & (1 << width) - 1)
    return torch.stack(rows, dim=1)


def _narrow(words: Tensor) -> Tensor:
    """32 bits as int32, whatever the highest is."""
    return ((words & 0xFFFFFFFF ^ 0x80000000) - 0x80000000).int()
