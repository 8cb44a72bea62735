"""What every grouping promises. A new grouping is one row in ``CASES``."""

import math

import pytest
import torch

from gracile.algebra import (
    Grouping,
    View,
    blocks,
    channels,
    columns,
    crossbar_columns,
    crossbar_rows,
    elements,
    filters,
    kernels,
    layer,
    rows,
    shapes,
)
from gracile.errors import ShapeError


def brute_force(grouping, tensors):
    """Group number of every single number, one by one: {group: [(tensor, flat index), ...]}."""
    members = {}
    for view in grouping.views:
        tensor = tensors[view.tensor]
        found = view.layout(tuple(tensor.shape))
        axes = found.positions(view.by)
        for order, flat in enumerate(looked_at(view, tuple(tensor.shape))):
            position = torch.unravel_index(torch.tensor(order), found.shape)
            number = 0
            for axis in axes:
                number = number * found.shape[axis] + int(position[axis])
            group = number if view.index is None else view.index[number]
            if group >= 0:
                members.setdefault(group, []).append((view.tensor, flat))
    return members


def looked_at(view, shape):
    """Flat indices of the part of a tensor that a view sees, in order."""
    if view.narrow is None:
        return list(range(math.prod(shape)))
    dim, start, length = view.narrow
    if "...(" in view.pattern:  # the weights' first dimension is apart, the others are one
        shape = (shape[0], math.prod(shape[1:]))
    before, after = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    part = range(start, start + length)
    return [(b * shape[dim] + i) * after + a for b in range(before) for i in part for a in range(after)]


CONV = {"w": (6, 4, 3, 2)}
LSTM = {"ih": (12, 5), "hh": (12, 3), "out": (7, 3)}
CASES = {
    "filters": (filters("w"), CONV),
    "channels": (channels("w"), CONV),
    "shapes": (shapes("w"), CONV),
    "kernels": (kernels("w"), CONV),
    "layer": (layer("w"), CONV),
    "elements": (elements("w"), CONV),
    "rows": (rows("w"), CONV),
    "columns": (columns("w"), CONV),
    "blocks": (blocks("w", 3, 8), CONV),
    "filters of a linear layer": (filters("w"), {"w": (5, 3)}),
    "blocks of a linear layer": (blocks("w", 2, 4), {"w": (6, 8)}),
    "tiles by name": (
        Grouping((View("w", "(tile out:2) (tile_in in:3)", ("tile", "tile_in")),)),
        {"w": (4, 6)},
    ),
    "crossbar rows": (crossbar_rows("w", CONV["w"], (5, 4)), CONV),
    "crossbar columns": (crossbar_columns("w", CONV["w"], (5, 4)), CONV),
    "crossbar rows without a rest": (crossbar_rows("w", CONV["w"], (5, 3)), CONV),
    "crossbar columns of one tile": (crossbar_columns("w", CONV["w"]), CONV),
    "crossbar columns of a linear layer": (crossbar_columns("w", (7, 10), (4, 3)), {"w": (7, 10)}),
    "a part in no group": (Grouping((View("w", "out ...(in)", ("in",), None, (1, 2, 9)),)), CONV),
    "hidden units of an LSTM": (
        Grouping(
            (
                View("ih", "(gate:4 unit) in", ("unit",)),
                View("hh", "(gate:4 unit) in", ("unit",)),
                View("hh", "out unit", ("unit",)),
                View("out", "out unit", ("unit",)),
            )
        ),
        LSTM,
    ),
    "shuffled channels": (Grouping((View("w", "out in", ("in",), index=(2, 0, 1, 0, 2, 1)),)), {"w": (4, 6)}),
    "some slices in no group": (
        Grouping(
            (
                View("w", "out in", ("out",), index=(0, -1, 1, -1)),
                View("b", "out", ("out",), index=(0, -1, 1, -1)),
            ),
            count=3,
        ),
        {"w": (4, 6), "b": (4,)},
    ),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request):
    grouping, sizes = CASES[request.param]
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in sizes.items()
    }
    return grouping, tensors


def test_norms_sizes_and_absolutes_equal_brute_force(case):
    grouping, tensors = case
    groups, members = grouping.of(tensors), brute_force(*case)
    for number in range(groups.count):
        values = torch.stack(
            [tensors[name].flatten()[flat] for name, flat in members.get(number, [])] or [torch.zeros(())]
        ).double()
        assert int(groups.sizes[number]) == len(members.get(number, []))
        torch.testing.assert_close(groups.norms[number], values.norm())
        torch.testing.assert_close(groups.absolute[number], values.abs().sum())


def test_matrix_has_the_same_norms(case):
    grouping, tensors = case
    groups = grouping.of(tensors)
    if int(groups.sizes.min()) == 0:
        groups = Grouping(grouping.views).of(tensors)
    torch.testing.assert_close(groups.matrix.norm(dim=1), groups.norms)


def test_scaling_by_zero_zeroes_exactly_the_members(case):
    grouping, tensors = case
    groups, members = grouping.of(tensors), brute_force(*case)
    victim = groups.count - 1
    factor = torch.ones(groups.count, dtype=torch.float64)
    factor[victim] = 0
    before = {name: t.clone() for name, t in tensors.items()}
    groups.scale_(factor)
    for name, tensor in tensors.items():
        dead = {flat for owner, flat in members.get(victim, []) if owner == name}
        for flat in range(tensor.numel()):
            expected = 0.0 if flat in dead else float(before[name].flatten()[flat])
            assert float(tensor.flatten()[flat]) == expected


def test_taking_all_groups_is_the_identity(case):
    grouping, tensors = case
    groups = grouping.of(tensors)
    everything = torch.arange(groups.count)
    if any(len(s.by) != 1 or s.view.narrow for s in groups.slices):
        with pytest.raises(ShapeError, match="one dimension"):
            groups.take(everything)
        return
    for name, taken in groups.take(everything).items():
        torch.testing.assert_close(taken.reshape(tensors[name].shape), tensors[name])


def test_taking_a_mask_or_numbers_is_the_same():
    tensors = {"w": torch.arange(12.0).reshape(4, 3)}
    mask = torch.tensor([True, False, True, False])
    groups = filters("w").of(tensors)
    assert torch.equal(groups.take(mask)["w"], tensors["w"][[0, 2]])
    assert torch.equal(groups.take(mask.nonzero().flatten())["w"], tensors["w"][[0, 2]])


def test_disjoint_is_false_only_when_a_tensor_is_viewed_twice():
    assert filters("w").disjoint
    assert not CASES["hidden units of an LSTM"][0].disjoint


def test_disjoint_knows_the_parts_of_a_tensor():
    rows, columns = CASES["crossbar rows"][0], CASES["crossbar columns"][0]
    assert rows.disjoint
    assert columns.disjoint
    assert not Grouping(rows.views + columns.views).disjoint
    left, right = (View("w", "out in", ("out",), None, (1, start, 3)) for start in (0, 3))
    assert Grouping((left, right)).disjoint
    for narrow in ((1, 2, 3), (0, 3, 3), None):  # overlaps; another dimension; all of it
        assert not Grouping((left, View("w", "out in", ("out",), None, narrow))).disjoint
    flat = View("w", "out ...(in)", ("out",), None, (1, 3, 3))  # counts other indices
    assert not Grouping((left, flat)).disjoint


@pytest.mark.parametrize("narrow", [(2, 0, 1), (-1, 0, 1), (0, -1, 2), (0, 0, 0), (1, 3, 4)])
def test_parts_outside_of_the_tensor_are_refused(narrow):
    with pytest.raises(ShapeError, match="narrow"):
        Grouping((View("w", "out in", ("out",), None, narrow),)).of({"w": torch.ones(4, 6)})


def test_views_that_disagree_are_refused():
    both = Grouping((View("a", "out in", ("out",)), View("b", "out in", ("out",))))
    with pytest.raises(ShapeError, match="different numbers of slices"):
        both.of({"a": torch.ones(3, 2), "b": torch.ones(4, 2)})


def test_what_is_not_a_number_is_not_zero():
    both = Grouping((View("a", "out in", ("out",)), View("b", "out", ("out",))))
    norms = both.of({"a": torch.tensor([[1.0, float("nan")], [0.0, 0.0]]), "b": torch.zeros(2)}).norms
    assert torch.equal(norms.isnan(), torch.tensor([True, False]))
    assert norms[1] == 0


def test_norms_of_several_views_neither_overflow_nor_underflow():
    both = Grouping((View("a", "out in", ("out",)), View("b", "out", ("out",))))
    for scale in (1e-15, 1e15):
        groups = both.of({"a": torch.full((2, 4), scale), "b": torch.zeros(2)})
        torch.testing.assert_close(groups.norms, torch.full((2,), 2 * scale))
