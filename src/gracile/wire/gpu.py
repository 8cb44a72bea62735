"""Gradients packed on a GPU by Triton, in the layout and with the bits of :mod:`gracile.wire.blocks`.

A program treats some blocks at a time: blocks in one direction, columns in the other, so that every row is a
line of memory. Arguments that differ from call to call are not specialized on: each kernel is compiled once.
"""

# Without postponed annotations, for Triton reads them.

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gracile.algebra.philox import Random
from gracile.wire.blocks import BLOCK, factor_of

_AT_ONCE = 8  # blocks of a program

_kernel = triton.jit(
    do_not_specialize=["count", "seed", "layer", "step", "lane", "first", "n", "size", "offset"]
)


def ternarize(x: Tensor, scale: float, random: Random, first: int, out: Tensor) -> None:
    """Digits 0, 1, 2 at random: P(digit is not 1) = |x| / scale."""
    _start(_ternarize, _blocks(x), x, out, x.numel(), factor_of(2.0**24, scale), *_stream(random), first)


def round_(x: Tensor, scale: float, random: Random, first: int, out: Tensor) -> None:
    """Digits 0 to 14 at random, of the neighboring multiples of scale / 7."""
    _start(_round, _blocks(x), x, out, x.numel(), factor_of(7.0, scale), *_stream(random), first)


def add(messages: Sequence[Tensor], width: int, out: Tensor) -> None:
    """Sums of the digits of messages of 2 bits, in fields of ``width`` bits."""
    size, together = messages[0].numel(), torch.cat(list(messages))
    _start(_add, size // 32, together, out, size // 32, len(messages), size, width=width)


def decode(words: Tensor, width: int, offset: int, factor: float, out: Tensor) -> None:
    """out = factor * (digit - offset)."""
    _start(_decode, _blocks(out), words, out, out.numel(), factor, offset, width=width)


def to_base3(words: Tensor, out: Tensor) -> None:
    """Five blocks of 2 bits as 512 bytes of five digits."""
    _start(_to_base3, words.numel() // 160, words, out, words.numel() // 160)


def from_base3(words: Tensor, out: Tensor) -> None:
    """Back from :func:`to_base3`."""
    _start(_from_base3, out.numel() // 160, words, out, out.numel() // 160)


def _start(kernel: Any, blocks: int, source: Tensor, *arguments: Any, **constants: int) -> None:
    if blocks:
        with torch.cuda.device_of(source):
            kernel[(triton.cdiv(blocks, _AT_ONCE),)](source, *arguments, **constants, at_once=_AT_ONCE)


def _blocks(x: Tensor) -> int:
    return -(-x.numel() // BLOCK)


def _stream(random: Random) -> tuple[int, int, int, int]:
    return random.seed, random.layer, random.step, random.lane


@triton.jit
def _own(at_once: tl.constexpr):
    """Blocks of this program, one below the other."""
    return (tl.program_id(0) * at_once + tl.arange(0, at_once)[:, None]).to(tl.int64)


@triton.jit
def _columns():
    return tl.arange(0, 16)[None, :]


@triton.jit
def _four(block, group: tl.constexpr, seed, layer, step, lane):
    """Four words of 32 random bits for every column, for 8 rows of it."""
    index = (block * 64 + group * 16 + _columns()).to(tl.uint32)
    zero = index & 0
    layer, step, lane = layer.to(tl.uint32), step.to(tl.uint32), lane.to(tl.uint32)
    return tl.philox(seed, index, zero + layer, zero + step, zero + lane, 7)


@triton.jit
def _uniform(a, b, c, d, h: tl.constexpr):
    """Whole numbers below 2^24 for row h of eight: the halves of a word in turn, the other as lower bits."""
    if h < 2:
        word = a
    elif h < 4:
        word = b
    elif h < 6:
        word = c
    else:
        word = d
    if h % 2 == 1:
        word = (word << 16) | (word >> 16)
    return (word >> 8).to(tl.float32)


@triton.jit
def _read(words, mask):
    return tl.load(words, mask=mask, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def _write(words, bits, mask):
    tl.store(words, bits.to(tl.int32, bitcast=True), mask=mask)


@_kernel
def _ternarize(x, out, count, factor, seed, layer, step, lane, first, at_once: tl.constexpr):
    block, column = _own(at_once), _columns()
    for word in tl.static_range(2):
        digits = tl.full((at_once, 16), 0x55555555, tl.uint32)
        for half in tl.static_range(2):
            a, b, c, d = _four(first + block, 2 * word + half, seed, layer, step, lane)
            for h in tl.static_range(8):
                at = block * 512 + (16 * word + 8 * half + h) * 16 + column
                value = tl.load(x + at, mask=at < count, other=0.0) * factor
                u = _uniform(a, b, c, d, h)
                step_ = (u < value).to(tl.int32) - (u < -value).to(tl.int32)
                digits += step_.to(tl.uint32, bitcast=True) << (2 * (8 * half + h))
        _write(out + (block * 2 + word) * 16 + column, digits, block * 512 < count)


@_kernel
def _round(x, out, count, factor, seed, layer, step, lane, first, at_once: tl.constexpr):
    block, column = _own(at_once), _columns()
    for group in tl.static_range(4):
        digits = tl.full((at_once, 16), 0, tl.uint32)
        a, b, c, d = _four(first + block, group, seed, layer, step, lane)
        for h in tl.static_range(8):
            at = block * 512 + (8 * group + h) * 16 + column
            value = tl.load(x + at, mask=at < count, other=0.0) * factor
            value = tl.where(value < -7.0, -7.0, value)
            value = tl.where(value > 7.0, 7.0, value) + 7.0
            value += _uniform(a, b, c, d, h) * 5.9604644775390625e-08  # 2^-24: exact, fused or not
            digit = value.to(tl.int32)
            digits |= tl.where(digit > 14, 14, digit).to(tl.uint32, bitcast=True) << (4 * h)
        _write(out + (block * 4 + group) * 16 + column, digits, block * 512 < count)


@triton.jit
def _sum(messages, n, size, block, row: tl.constexpr, there, at_once: tl.constexpr):
    """Digits of a row, added up over all messages."""
    total = tl.full((at_once, 16), 0, tl.uint32)
    at = messages + (block * 2 + row // 16) * 16 + _columns()
    for m in range(n):
        total += (_read(at + m * size.to(tl.int64), there) >> (2 * (row % 16))) & 3
    return total


@_kernel
def _add(messages, out, count, n, size, width: tl.constexpr, at_once: tl.constexpr):
    block = _own(at_once)
    there = block < count
    for word in tl.static_range(width):
        packed = tl.full((at_once, 16), 0, tl.uint32)
        for row in tl.static_range(word * 32 // width, (word * 32 + 31 + width) // width):
            total = _sum(messages, n, size, block, row, there, at_once)
            if row * width >= word * 32:
                packed |= total << (row * width - word * 32)
            else:  # a field in two words
                packed |= total >> (word * 32 - row * width)
        _write(out + (block * width + word) * 16 + _columns(), packed, there)


@_kernel
def _decode(words, out, count, factor, offset, width: tl.constexpr, at_once: tl.constexpr):
    block = _own(at_once)
    there = block * 512 < count
    for row in tl.static_range(32):
        at = words + (block * width + row * width // 32) * 16 + _columns()
        field = _read(at, there) >> (row * width % 32)
        if row * width % 32 + width > 32:
            field |= _read(at + 16, there) << (32 - row * width % 32)
        digit = (field & ((1 << width) - 1)).to(tl.int32, bitcast=True)
        to = block * 512 + row * 16 + _columns()
        tl.store(out + to, (digit - offset).to(tl.float32) * factor, mask=to < count)


@_kernel
def _to_base3(words, out, count, at_once: tl.constexpr):
    five, column = _own(at_once), _columns()
    for word in tl.static_range(2):
        for j in tl.static_range(4):
            total = tl.full((at_once, 16), 0, tl.uint32)
            for i in tl.static_range(5):
                four = _read(words + ((five * 5 + 4 - i) * 2 + word) * 16 + column, five < count) >> (2 * j)
                total = total * 3 + (four & 0x03030303)  # no byte exceeds 242
            _write(out + (five * 8 + word * 4 + j) * 16 + column, total, five < count)


@_kernel
def _from_base3(words, out, count, at_once: tl.constexpr):
    five, column = _own(at_once), _columns()
    for word in tl.static_range(2):
        for digit in tl.static_range(5):
            found = tl.full((at_once, 16), 0, tl.uint32)
            for j in tl.static_range(4):
                four = _read(words + (five * 8 + word * 4 + j) * 16 + column, five < count)
                for k in tl.static_range(2):
                    half = (four >> (8 * k)) & 0x00FF00FF
                    for _ in tl.static_range(digit):
                        half = ((half * 171) >> 9) & 0x007F007F  # a third, of numbers below 256
                    third = ((half * 171) >> 9) & 0x007F007F
                    found |= (half - third * 3) << (8 * k + 2 * j)
            _write(out + ((five * 5 + digit) * 2 + word) * 16 + column, found, five < count)
