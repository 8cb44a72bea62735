"""What every grouping promises. A new grouping is one row in ``CASES``."""

import pytest
import torch

from gracile.algebra import (
    Grouping,
    View,
    blocks,
    channels,
    columns,
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
        for flat in range(tensor.numel()):
            position = torch.unravel_index(torch.tensor(flat), found.shape)
            number = 0
            for axis in axes:
                number = number * found.shape[axis] + int(position[axis])
            group = number if view.index is None else view.index[number]
            if group >= 0:
                members.setdefault(group, []).append((view.tensor, flat))
    return members


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
    if any(len(s.by) != 1 for s in groups.slices):
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


def test_views_that_disagree_are_refused():
    both = Grouping((View("a", "out in", ("out",)), View("b", "out in", ("out",))))
    with pytest.raises(ShapeError, match="different numbers of slices"):
        both.of({"a": torch.ones(3, 2), "b": torch.ones(4, 2)})


def test_norms_of_several_views_neither_overflow_nor_underflow():
    both = Grouping((View("a", "out in", ("out",)), View("b", "out", ("out",))))
    for scale in (1e-15, 1e15):
        groups = both.of({"a": torch.full((2, 4), scale), "b": torch.zeros(2)})
        torch.testing.assert_close(groups.norms, torch.full((2,), 2 * scale))
