"""What every format promises. A new format is one row in ``FORMATS``."""

import pytest
import torch

from gracile.algebra import Format, Uniform
from gracile.errors import ShapeError, UsageError

FORMATS = {f"uniform {bits}": Uniform(bits) for bits in (2, 3, 4, 8, 12, 16)}
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
