"""Patterns of named axes, against shapes worked out by hand and by einops-like unfolding."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gracile.algebra import Grouping, Layout, View, filters, layout
from gracile.errors import PatternError, ShapeError


@pytest.mark.parametrize(
    ("pattern", "shape", "sizes", "names"),
    [
        ("out in kh kw", (8, 4, 3, 5), (8, 4, 3, 5), ("out", "in", "kh", "kw")),
        ("(gate:4 unit) in", (12, 7), (4, 3, 7), ("gate", "unit", "in")),
        ("(unit gate:4) in", (12, 7), (3, 4, 7), ("unit", "gate", "in")),
        ("(a:2 b:3 c) d", (12, 5), (2, 3, 2, 5), ("a", "b", "c", "d")),
        ("(tile out:2) (tile_in in:3)", (4, 6), (2, 2, 2, 3), ("tile", "out", "tile_in", "in")),
        ("out ...", (8, 4, 3, 5), (8, 4, 3, 5), ("out", "...", "...", "...")),
        ("...", (), (), ()),
        ("... last", (8, 4, 3), (8, 4, 3), ("...", "...", "last")),
        ("out ...(tile column:6)", (8, 4, 3, 5), (8, 10, 6), ("out", "tile", "column")),
        ("out ...(column)", (8, 4, 3, 5), (8, 60), ("out", "column")),
        ("  out   in ", (2, 3), (2, 3), ("out", "in")),
    ],
)
def test_layout(pattern, shape, sizes, names):
    assert layout(pattern, shape) == Layout(sizes, names)


@pytest.mark.parametrize(
    ("pattern", "shape", "says"),
    [
        ("out in", (2, 3, 4), "expected 2 dimensions"),
        ("out in ...", (2,), "2 or more dimensions"),
        ("(tile out:5) in", (8, 2), "multiple of 5"),
        ("(a:2 b:3) in", (8, 2), "length of 6"),
        ("(a:0 b) in", (8, 2), "of 0"),
        ("(a b) in", (8, 2), "no size for any of a, b"),
        ("(a:2 in", (8, 2), "never closed"),
        ("a) b", (8, 2), "without names"),
        ("() b", (8, 2), "without names"),
        ("(a (b)) c", (8, 2), "inside a parenthesis"),
        ("a a", (8, 2), "'a' twice"),
        ("... a ...", (8, 2), "'...' twice"),
        ("out; in", (8, 2), "'; in'"),
        ("out in->x", (8, 2), "'->x'"),
    ],
)
def test_bad_patterns_are_explained(pattern, shape, says):
    with pytest.raises(PatternError) as error:
        layout(pattern, shape)
    assert says in str(error.value)
    assert pattern in str(error.value)


def test_view_names_its_tensor_and_its_axes_in_errors():
    with pytest.raises(PatternError, match=r"view of 'w': got by=\('hat',\)"):
        View("w", "out in", ("hat",)).layout((2, 3))
    with pytest.raises(ShapeError, match="'missing'"):
        filters("missing").of({"w": torch.ones(2, 3)})
    short = Grouping((View("w", "out in", ("out",), index=(0, 1)),))
    with pytest.raises(ShapeError, match="2 group numbers"):
        short.of({"w": torch.ones(3, 3)})


@given(st.text(alphabet="ab ():.23-", max_size=14), st.lists(st.integers(0, 6), max_size=4))
def test_any_text_gives_a_layout_of_the_same_size_or_an_error(pattern, shape):
    try:
        found = layout(pattern, tuple(shape))
    except PatternError:
        return
    assert len(found.shape) == len(found.names)
    assert torch.Size(found.shape).numel() == torch.Size(shape).numel()


def test_ellipsis_is_an_axis_only_where_the_pattern_has_it():
    with pytest.raises(PatternError, match="names out of"):
        View("w", "o i", ("...",)).layout((3, 2))
    with pytest.raises(PatternError, match="names out of"):
        View("w", "o ...(column)", ("...",)).layout((3, 2))
    assert View("w", "o ...", ("...",)).layout((3,)).names == ("o",)
