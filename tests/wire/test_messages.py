"""Averages of workers in one process: against sums of decoded messages, in every mode."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra.philox import Random
from gracile.errors import UsageError
from gracile.wire import BLOCK, decode_, scaler, ternarize_, words
from gracile.wire.messages import SECOND, Code, Memory, average
from gracile.wire.modes import bytes_sent, choose, rounds, seconds
from gracile.wire.parts import Layer, shares, whole

LAYERS = [
    Layer(0, 5000, True),
    Layer(1, 37, False),
    Layer(3, 513, True),
    Layer(4, 1, True),
    Layer(9, 2, False),
]
MODES = ("gather", "exact", "four-bit", "ternary", "base3")


def gradients(ranks, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [{n: torch.randn(n.numbers, generator=generator) for n in LAYERS} for _ in range(ranks)]


def decoded(x, scale, random, first=0):
    packed, out = torch.empty(words(len(x)), dtype=torch.int32), torch.empty_like(x)
    ternarize_(packed, x, scale, random, first)
    decode_(out, packed, width=2, offset=1, factor=scale)
    return out


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
def test_exact_is_the_mean_of_what_each_worker_sends(ranks):
    given = gradients(ranks)
    found = average(given, "exact", Random(5, step=7))
    for layer in LAYERS:
        if layer.packed:
            scale = max(scaler(g[layer]) for g in given)
            sent = [
                decoded(g[layer], scale, Random(5, layer.number, 7, rank)) for rank, g in enumerate(given)
            ]
        else:
            sent = [g[layer] for g in given]
        torch.testing.assert_close(found[layer], sum(sent) / ranks)


@pytest.mark.parametrize("ranks", [1, 2, 4, 5, 8, 16])
def test_modes_that_carry_the_same_numbers_otherwise(ranks):
    given = gradients(ranks)
    for one, other in (("gather", "exact"), ("base3", "ternary")):
        a, b = (average(given, mode, Random(1)) for mode in (one, other))
        assert all(torch.equal(a[n], b[n]) for n in LAYERS)


@pytest.mark.parametrize("mode", MODES)
def test_buckets_do_not_matter(mode):
    """All layers at once have the bits of any division of them."""
    given = gradients(3)
    whole = average(given, mode, Random(8, step=4))
    for cut in range(1, len(LAYERS)):
        for bucket in (LAYERS[:cut], LAYERS[cut:][::-1]):
            found = average([{n: g[n] for n in bucket} for g in given], mode, Random(8, step=4))
            assert all(torch.equal(found[n], whole[n]) for n in bucket)


@pytest.mark.parametrize("mode", MODES)
def test_seed_and_step_decide(mode):
    given = gradients(3)
    found = average(given, mode, Random(2, step=6))
    again = average(given, mode, Random(2, step=6))
    assert all(torch.equal(found[n], again[n]) for n in LAYERS)
    for other in (Random(3, step=6), Random(2, step=7)):
        assert not torch.equal(average(given, mode, other)[LAYERS[0]], found[LAYERS[0]])


def test_second_rounding_has_a_scale_of_the_owners_part():
    ranks, layer, random = 4, LAYERS[0], Random(3, step=2)
    given = gradients(ranks)
    exact, found = (average(given, mode, random)[layer] for mode in ("exact", "ternary"))
    for part in layer.parts(ranks):
        span = layer.span(part)
        stream = Random(3, layer.number, 2, SECOND)
        expected = decoded(exact[span], scaler(exact[span]), stream, part.start)
        assert torch.equal(found[span], expected)


@pytest.mark.parametrize("mode", MODES)
def test_unbiased_where_nothing_is_clipped(mode):
    """The mean over many steps comes nearer to the true one as its standard error says."""
    layer, steps = Layer(2, 1500, True), 300
    given = [{layer: torch.rand(1500, generator=torch.Generator().manual_seed(i)) - 0.5} for i in range(3)]
    true = sum(g[layer] for g in given) / 3
    drawn = torch.stack([average(given, mode, Random(1, step=s), clip=None)[layer] for s in range(steps)])
    error = (drawn.double().mean(0) - true) / (drawn.double().std(0) / steps**0.5 + 1e-9)
    assert abs(float(error.mean())) * 1500**0.5 < 4
    assert float(error.square().mean()) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("mode", MODES)
def test_unbiased_over_a_million_numbers(mode):
    """Errors have no mean, and none in the direction of the numbers: nothing shrinks, nothing grows."""
    layer, generator = Layer(2, 1_000_000, True), torch.Generator().manual_seed(5)
    given = [{layer: torch.randn(layer.numbers, generator=generator)} for _ in range(2)]
    true = sum(g[layer] for g in given).double() / 2
    error = average(given, mode, Random(7), clip=None)[layer] - true
    for direction in (torch.ones_like(true), true, true.sign()):
        parts = error * direction
        assert abs(float(parts.mean() / parts.std())) * layer.numbers**0.5 < 4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_number_that_is_none_breaks_its_layer_alone(mode, broken):
    given, fine = gradients(3), gradients(3)
    given[1][LAYERS[2]][100] = broken
    found, expected = average(given, mode, Random(1)), average(fine, mode, Random(1))
    assert found[LAYERS[2]].isnan().all()
    assert all(torch.equal(found[n], expected[n]) for n in LAYERS if n is not LAYERS[2])


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(1, 5000), st.booleans()), min_size=1, max_size=8))
def test_every_number_has_one_owner(ranks, sizes):
    layers = tuple(Layer(i, size, packed) for i, (size, packed) in enumerate(sizes))
    for layer in layers:
        parts = layer.parts(ranks)
        spans = [layer.span(part) for part in parts]
        assert [i for s in spans for i in range(s.start, s.stop)] == list(range(layer.numbers))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
    every = shares(layers, ranks)
    assert sum(share.blocks for share in every) == whole(layers).blocks
    for share in every:
        at = [piece.at for piece in share.packed]
        assert at == sorted(at)


def test_layers_of_one_block_take_turns():
    layers = tuple(Layer(i, BLOCK, True) for i in range(8))
    assert [share.blocks for share in shares(layers, 4)] == [2, 2, 2, 2]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("mode", ["exact", "four-bit", "ternary", "base3"])
def test_messages_are_as_long_as_the_formula_says(mode, ranks):
    layers = (Layer(0, 3_000_001, True), Layer(1, 12_345, True))
    code, every = Code(mode, ranks), shares(layers, ranks)
    sent = 4 * sum(code.there(share) for share in every[1:])
    sent += 4 * code.back(every[0]) * (ranks - 1)
    assert sent == pytest.approx(bytes_sent(mode, 3_012_346, ranks), rel=0.01)


def test_buffers_are_made_once():
    layers, memory = tuple(LAYERS), Memory.new()
    code, share, own = Code("base3", 2), whole(tuple(LAYERS)), gradients(1)[0]
    scales = {n: 1.0 for n in layers if n.packed}
    out = torch.empty(code.there(share), dtype=torch.int32)
    code.write(out, share, own, scales, Random(0), memory)
    before = {name: b.data_ptr() for name, b in memory.buffers.items()}
    code.write(out, share, own, scales, Random(0), memory)
    assert before == {name: b.data_ptr() for name, b in memory.buffers.items()}
    assert before


class Link:
    def __init__(self, latency_s, bytes_per_s):
        self.latency_s, self.bytes_per_s, self.packing_s = latency_s, bytes_per_s, 0.6e-9


def test_ratios_of_the_study():
    """Bytes beside a ring all-reduce of single precision, as the design study has them."""
    n = 1_000_000

    def ratio(mode, ranks):
        return bytes_sent("fp32", n, ranks) / bytes_sent(mode, n, ranks)

    assert ratio("gather", 2) == pytest.approx(16)
    assert [round(ratio("exact", ranks), 1) for ranks in (2, 4, 8, 32)] == [12.8, 10.7, 9.1, 7.1]
    assert ratio("ternary", 512) == pytest.approx(16)
    assert ratio("base3", 7) == pytest.approx(20)
    assert ratio("fp16", 3) == pytest.approx(2)


def test_choice_follows_the_link():
    n = 25_000_000
    assert choose(n, 4, Link(1e-4, 12.5e6)) == "exact"
    assert choose(n, 2, Link(1e-4, 125e6)) == "gather"
    assert choose(n, 4, Link(2e-5, 25e9)) == "fp32"  # packing takes longer than sending
    assert choose(n, 64, Link(1e-4, 12.5e6)) == "four-bit"
    assert choose(n, 1) == "fp32"
    assert choose(1000, 16, Link(0.1, 1e6)) == "fp32"  # all latency
    exact = seconds("exact", n, 4, Link(0.01, 125e6), exchanges=3)
    assert exact == pytest.approx(3 * 9 * 0.01 + bytes_sent("exact", n, 4) / 125e6 + n * 0.6e-9)
    assert rounds("exact", 4) == 9


def test_unknown_modes_are_refused():
    with pytest.raises(UsageError, match="bytes on the wire"):
        bytes_sent("sixteen", 10, 2)
    with pytest.raises(UsageError, match="bytes on the wire"):
        bytes_sent("exact", 10, 0)
