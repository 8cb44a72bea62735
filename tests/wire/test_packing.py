"""Packed gradients: compiled kernels against their twin, the twin against single numbers in plain Python."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra.philox import Random, philox
from gracile.errors import ShapeError, UsageError
from gracile.wire import (
    add_,
    base3_words,
    decode_,
    from_base3_,
    kernels,
    mean_,
    round_,
    scaler,
    sum_bits,
    ternarize_,
    to_base3_,
    words,
)
from gracile.wire.packing import MOST

LENGTHS = [0, 1, 15, 16, 17, 511, 512, 513, 1025, 5000]
COMPILED = kernels()[1:]
STREAM = Random(2**50 + 3, layer=7, step=9, lane=2)


def numbers(size, seed=0, scale=1.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def buffer(size):
    return torch.full((size,), 0x5A5A5A5A, dtype=torch.int32)


def ternary(x, scale, random=STREAM, first=0, kernel=None):
    out = buffer(words(len(x)))
    ternarize_(out, x, scale, random, first, kernel)
    return out


def meant(packed, size, width=2, offset=1, factor=1.0, kernel=None):
    out = torch.full((size,), math.nan)
    decode_(out, packed, width=width, offset=offset, factor=factor, kernel=kernel)
    return out


def test_digits_are_those_of_plain_python():
    """Element by element: the random number, the comparison and the place in memory, from the definition."""
    x, first = numbers(700), 3
    packed = ternary(x, 1.5, first=first, kernel="torch").view(-1, 2, 16)
    factor = float(torch.tensor(2.0**24) / torch.tensor(1.5))
    for i in range(0, 700, 7):
        block, row, column = i // 512, i % 512 // 16, i % 16
        index = torch.tensor((first + block) * 64 + row // 8 * 16 + column)
        word = int(philox(index, STREAM)[row % 8 // 2])
        if row % 2:
            word = (word << 16 | word >> 16) & 0xFFFFFFFF
        size = float(x[i].abs() * torch.tensor(factor))
        digit = 1 + (1 if x[i] > 0 else -1) * ((word >> 8) < size)
        assert int(packed[block, row // 16, column]) >> 2 * (row % 16) & 3 == digit


@pytest.mark.parametrize("kernel", COMPILED)
@pytest.mark.parametrize("size", LENGTHS)
def test_kernels_have_the_bits_of_torch(kernel, size):
    x = numbers(size, scale=1e-3)
    two, four = [], []
    for on in ("torch", kernel):
        two.append(ternary(x, 2e-3, first=5, kernel=on))
        four.append(buffer(words(size, 4)))
        round_(four[-1], x, 2e-3, STREAM, 5, on)
    assert torch.equal(*two)
    assert torch.equal(*four)
    others = [ternary(x, 2e-3, Random(seed), kernel="torch") for seed in range(3)]
    for n in (1, 3):
        sums, means = [], []
        for on in ("torch", kernel):
            sums.append(buffer(words(size, sum_bits(n))))
            add_(sums[-1], others[:n], on)
            means.append(torch.full((size,), math.nan))
            mean_(means[-1], others[:n], 1e-3 / 3, on)
        assert torch.equal(*sums)
        assert torch.equal(*means)
        decoded = [meant(sums[0], size, sum_bits(n), n, 1e-3 / 3, on) for on in ("torch", kernel)]
        assert torch.equal(*decoded)
        assert torch.equal(decoded[0], means[0])
    assert torch.equal(*(meant(four[0], size, 4, 7, 0.1, on) for on in ("torch", kernel)))


@given(
    st.integers(1, 3000),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 1000),
    st.floats(1e-20, 1e20),
)
def test_kernels_have_the_bits_of_torch_for_any_stream(size, seed, step, first, scale):
    x = numbers(size, seed % 1000, scale)
    random = Random(seed, step=step)
    made = [ternary(x, scale, random, first, kernel) for kernel in kernels()]
    assert all(torch.equal(made[0], other) for other in made[1:])


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("n", [1, 2, 7, 127, 128, 300])
def test_sums_of_many(kernel, n):
    digits = [ternary(numbers(600, seed), 1.0, Random(seed), kernel="torch") for seed in range(n % 11 + 1)]
    messages = [digits[i % len(digits)] for i in range(n)]
    expected = sum(meant(message, 600, kernel="torch") for message in messages)
    out = buffer(words(600, sum_bits(n)))
    add_(out, messages, kernel)
    assert torch.equal(meant(out, 600, sum_bits(n), n, kernel=kernel), expected)


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("blocks", [0, 1, 4, 5, 6, 23])
def test_base3_there_and_back(kernel, blocks):
    packed = ternary(numbers(blocks * 512), 0.8, kernel="torch")
    three, two = buffer(base3_words(packed.numel())), buffer(packed.numel())
    to_base3_(three, packed, kernel)
    from_base3_(two, three, kernel)
    assert torch.equal(two, packed)
    reference = buffer(three.numel())
    to_base3_(reference, packed, "torch")
    assert torch.equal(three, reference)
    assert three.nbytes == blocks // 5 * 512 + blocks % 5 * 128


@pytest.mark.parametrize("kernel", kernels()[-1:])
@pytest.mark.parametrize("value", [0.37, -0.37, 1e-3, -0.999])
def test_unbiased(kernel, value):
    """A million samples of one number: the mean is off by less than four standard errors."""
    size, scale = 1_000_000, 1.7
    x = torch.full((size,), value * scale)
    found = meant(ternary(x, scale, kernel=kernel), size, factor=scale).double() / scale
    assert sorted(found.unique().abs().unique().tolist()) == pytest.approx([0.0, 1.0], abs=1e-7)
    error = abs(value) * (1 - abs(value))
    assert abs(found.mean() - value) < 4 * (error / size) ** 0.5
    out = buffer(words(size, 4))
    round_(out, x, scale, STREAM, kernel=kernel)
    found = meant(out, size, 4, 7, kernel=kernel).double()
    part = abs(value) * 7 % 1
    assert len(found.unique()) == 2
    assert abs(found.mean() - value * 7) < 4 * (part * (1 - part) / size) ** 0.5 + 1e-7


def test_neighbors_are_independent():
    """The halves of one random word serve two rows: nothing of one can be seen in the other."""
    size = 1_048_576
    found = meant(ternary(torch.full((size,), 0.5), 1.0), size).view(-1, 32, 16) - 0.5
    for distance in (1, 2, 8, 16):
        product = found[:, distance:] * found[:, :-distance]
        assert abs(product.mean()) < 4 * 0.25 / product.numel() ** 0.5


def test_parts_make_the_bits_of_the_whole():
    x = numbers(5 * 512 + 100)
    whole = ternary(x, 2.0)
    parts = [
        ternary(x[start * 512 : stop * 512], 2.0, first=start) for start, stop in ((0, 2), (2, 3), (3, 6))
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_beyond_the_scale_is_certain():
    x = torch.tensor([3.0, -3.0, 2.0, -2.0, 0.0, -0.0, 1e30, math.nan]).repeat(100)
    found = meant(ternary(x, 2.0), 800).view(100, 8)
    assert torch.equal(found, torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0, 0.0, 1.0, 0.0]).expand(100, 8))
    assert not meant(ternary(x, 0.0), 800)[:6].any()
    assert not meant(ternary(numbers(600, scale=1e-38), 1e-38), 600).any()  # too small to divide by


@pytest.mark.parametrize("kernel", kernels())
@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e25, 1e-38])
def test_scaler(kernel, scale):
    for size in (1, 2, 700):
        x = numbers(size, size, scale)
        rms = x.double().square().mean().sqrt().item()
        expected = min(2.5 * rms, x.abs().max().item())
        assert scaler(x, kernel=kernel) == pytest.approx(expected, rel=1e-5)
        assert scaler(x, None, kernel) == x.abs().max().item()
    for broken in (math.nan, math.inf, -math.inf):
        x = numbers(700, scale=scale)
        x[650] = broken
        assert scaler(x, kernel=kernel) == math.inf
    assert scaler(torch.zeros(9), kernel=kernel) == 0.0
    assert scaler(torch.zeros(0), kernel=kernel) == 0.0


def test_what_does_not_fit_is_refused():
    x, out = numbers(600), buffer(words(600))
    with pytest.raises(ShapeError, match="packed gradients"):
        ternarize_(out[:-1], x, 1.0, STREAM)
    with pytest.raises(ShapeError, match="packing gradients"):
        ternarize_(out, x.double(), 1.0, STREAM)
    with pytest.raises(ShapeError, match="packing gradients"):
        ternarize_(out, numbers(1200)[::2], 1.0, STREAM)
    for scale in (-1.0, math.inf, math.nan):
        with pytest.raises(UsageError, match="scale"):
            ternarize_(out, x, scale, STREAM)
    with pytest.raises(UsageError, match="kernel"):
        scaler(x, kernel="abacus")
    with pytest.raises(UsageError, match="clip"):
        scaler(x, 0.0)
    with pytest.raises(UsageError, match="1 to"):
        add_(out, [])
    with pytest.raises(UsageError, match=f"1 to {MOST}"):
        add_(out, [out] * (MOST + 1))
    with pytest.raises(ShapeError, match="packed gradients"):
        add_(out, [out, out[:32]])
    with pytest.raises(UsageError, match="width"):
        decode_(x, out, width=13, offset=1, factor=1.0)
    with pytest.raises(ShapeError, match="packed gradients"):
        to_base3_(buffer(160), buffer(160))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kernel", kernels("cuda"))
@pytest.mark.parametrize("size", [1, 511, 513, 5000, 1_000_003])
@pytest.mark.parametrize("random", [STREAM, Random(2**64 - 1, step=2**32 - 1, lane=0xFFFFFFFF)])
def test_a_gpu_makes_the_same_bits(kernel, size, random):
    """Whatever kernel is there against the best one on the CPU."""
    x, first = numbers(size, scale=1e-3), 2**20 + 3
    x[0] = math.nan
    there, scale = x.cuda(), 2e-3
    assert scaler(there[1:], kernel=kernel) == pytest.approx(scaler(x[1:]), rel=1e-6)
    assert scaler(there, kernel=kernel) == math.inf
    wanted = [ternary(x, scale, replace(random, layer=i), first) for i in range(3)]
    found = [torch.full_like(w, 7, device="cuda") for w in wanted]
    for i, out in enumerate(found):
        ternarize_(out, there, scale, replace(random, layer=i), first, kernel)
    assert all(torch.equal(f.cpu(), w) for f, w in zip(found, wanted, strict=True))
    four, there_four = buffer(words(size, 4)), buffer(words(size, 4)).cuda()
    round_(four, x.nan_to_num(), scale, random, first)
    round_(there_four, there.nan_to_num(), scale, random, first, kernel)
    assert torch.equal(there_four.cpu(), four)
    for n in (1, 2, 3):
        width = sum_bits(n)
        sums, mean = buffer(words(size, width)).cuda(), torch.full_like(there, math.nan)
        on_cpu = buffer(words(size, width))
        add_(sums, found[:n], kernel)
        add_(on_cpu, wanted[:n])
        assert torch.equal(sums.cpu(), on_cpu)
        expected = meant(on_cpu, size, width, n, scale / n)
        decode_(mean, sums, width=width, offset=n, factor=scale / n, kernel=kernel)
        assert torch.equal(mean.cpu(), expected)
        mean_(mean.fill_(math.nan), found[:n], scale / n, kernel)
        assert torch.equal(mean.cpu(), expected)
    packed, on_cpu = (buffer(base3_words(len(wanted[0]))).to(d) for d in ("cuda", "cpu"))
    to_base3_(packed, found[0], kernel)
    to_base3_(on_cpu, wanted[0])
    assert torch.equal(packed.cpu(), on_cpu)
    again = torch.full_like(found[0], 7)
    from_base3_(again, packed, kernel)
    assert torch.equal(again, found[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_tensors_on_two_devices_are_refused():
    with pytest.raises(ShapeError, match="one device"):
        ternarize_(buffer(32), torch.zeros(512, device="cuda"), 1.0, STREAM)
