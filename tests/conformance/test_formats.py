"""What every format promises. A new format is one row in ``FORMATS``."""

import pytest
import torch

from gracile.algebra import (
    Format,
    OneLevel,
    Random,
    Ternary,
    Uniform,
    filters,
    kernels,
    stochastic,
)
from gracile.errors import ShapeError, UsageError

FORMATS = {f"uniform {bits}": Uniform(bits) for bits in (2, 3, 4, 8, 12, 16)} | {"ternary": Ternary()}
SHAPES = [(7,), (4, 3, 2), (5, 1)]


@pytest.fixture(params=FORMATS, ids=list(FORMATS))
def form(request) -> Format:
    return FORMATS[request.param]


def numbers(shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("along", [None, 0, -1])
def test_rounding_twice_is_rounding_once(form, shape, along):
    once = form.round(numbers(shape), along)
    torch.testing.assert_close(form.round(once, along), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("along", [None, 0])
def test_no_error_exceeds_half_a_step(form, along):
    x = numbers((40, 30), dtype=torch.float64)
    codes = form.encode(x, along)
    assert ((form.decode(codes) - x).abs() <= codes.scale * (0.5 + 1e-9)).all()
    # and the nearest of all numbers of the format is taken, found by trying them all
    steps = torch.arange(int(codes.values.min()), int(codes.values.max()) + 1, dtype=torch.float64)
    for row in range(0, 40, 13):
        scale = codes.scale.expand(40, -1)[row, 0]
        nearest = ((steps * scale)[None] - x[row][:, None]).abs().min(1).values
        torch.testing.assert_close((form.decode(codes)[row] - x[row]).abs(), nearest, rtol=0, atol=1e-12)


def test_codes_fit_the_bits(form):
    values = form.encode(numbers((100, 10))).values
    assert len(values.unique()) <= 2**form.bits
    assert int(values.abs().max()) < 2 ** (form.bits - 1)


@pytest.mark.parametrize("along", [None, 0, 1])
def test_zero_stays_zero_and_the_largest_stays(form, along):
    x = numbers((6, 4))
    x[2] = 0
    found = form.round(x, along)
    assert (found[2] == 0).all()
    dims = [d for d in (0, 1) if d != along]
    torch.testing.assert_close(found.abs().amax(dims), x.abs().amax(dims))


def test_every_index_has_a_scale_of_its_own(form):
    x = numbers((3, 8))
    whole = form.round(x, along=0)
    for row in range(3):
        assert torch.equal(whole[row], form.round(x[row]))


def test_tiny_and_half_precision_numbers(form):
    tiny = numbers((50,)) * 1e-40
    assert (form.round(tiny) - tiny).abs().max() <= tiny.abs().max()
    half = numbers((50,), dtype=torch.bfloat16)
    assert form.round(half).dtype == torch.bfloat16
    assert form.encode(torch.zeros(0, 3)).values.shape == (0, 3)


@pytest.mark.parametrize(
    "bad", [torch.tensor([1.0, float("nan")]), torch.tensor([float("inf")]), torch.arange(3)]
)
def test_what_is_no_number_is_refused(form, bad):
    with pytest.raises(ShapeError, match="encoding"):
        form.encode(bad)


@pytest.mark.parametrize("bits", [1, 17, 2.5, True])
def test_impossible_bits(bits):
    with pytest.raises(UsageError, match="uniform format"):
        Uniform(bits)


@pytest.fixture(params=[*FORMATS, "one level", "clipped"])
def any_form(request) -> Format:
    """Also those that leave the largest number where it is."""
    return (FORMATS | {"one level": OneLevel(), "clipped": Ternary(clip=1.5)})[request.param]


def test_random_rounding_is_right_in_the_mean(any_form):
    """Over 4000 draws; each number is only ever rounded to its two neighbors."""
    x = numbers((60,), dtype=torch.float64)
    codes = any_form.encode(x)
    clipped = x.clamp(-any_form.levels * codes.scale, any_form.levels * codes.scale)
    drawn = stochastic(any_form, Random(3)).round(x.repeat(4000, 1))
    assert not torch.equal(drawn, stochastic(any_form, Random(4)).round(x.repeat(4000, 1)))
    assert (drawn - clipped).abs().max() < codes.scale * (1 + 1e-9)
    part = (clipped / codes.scale) % 1
    error = codes.scale * (part * (1 - part) / len(drawn)).sqrt()
    assert ((drawn.mean(0) - clipped).abs() <= 4 * error + 1e-9 * codes.scale).all()


def test_every_group_has_a_scale_of_its_own(any_form):
    """A kernel of 3x3 as a group is the same as that kernel alone."""
    w = numbers((3, 2, 3, 3), dtype=torch.float64)
    expected = torch.stack([any_form.round(one) for one in w.flatten(0, 1)]).view_as(w)
    any_form.round_(kernels("w").of({"w": w}))
    torch.testing.assert_close(w, expected)


def test_groups_that_share_numbers_are_refused():
    views = filters("w").views * 2
    with pytest.raises(ShapeError, match="share"):
        Uniform(4).round_(type(filters("w"))(views).of({"w": torch.ones(2, 3)}))


def test_one_level_is_the_best_of_all():
    """No q of a fine grid comes nearer."""
    x = numbers((200,), dtype=torch.float64)
    found = OneLevel().round(x)
    grid = torch.linspace(0.01, 3, 3000, dtype=torch.float64)[:, None]
    rounded = torch.where(x.abs() > grid / 2, grid * x.sign(), 0.0)
    best = (rounded - x).square().sum(1).min()
    assert float((found - x).square().sum()) <= float(best) + 1e-12
    torch.testing.assert_close(OneLevel().round(found), found)


@pytest.mark.parametrize("clip", [0.0, -1.0, float("nan")])
def test_impossible_clips(clip):
    with pytest.raises(UsageError, match="ternary format"):
        Ternary(clip)
