"""Labels against a brute-force reading of what each operation promises."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gracile.graph.labels import WIDTH, Axis, Labels
from gracile.graph.reshape import reshape

SHAPES = st.sampled_from(
    [(12,), (3, 4), (4, 3), (2, 6), (6, 2), (2, 2, 3), (3, 2, 2), (2, 3, 2), (1, 12), (4, 1, 3)]
)


def lives(labels: Labels, axis: Axis, size: int, dead: np.ndarray) -> np.ndarray:
    resolved = labels.resolve(axis)
    return np.ones(size, bool) if resolved is None else ~dead[resolved].any(1)


def volume(labels: Labels, axes: list[Axis], shape: tuple[int, ...], dead: np.ndarray) -> np.ndarray:
    """Which numbers of a tensor live, in row-major order: those of which every index lives."""
    grid = np.ones(shape, bool)
    for d, axis in enumerate(axes):
        view = [1] * len(shape)
        view[d] = shape[d]
        grid &= lives(labels, axis, shape[d], dead).reshape(view)
    return grid.reshape(-1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_promise_holds_whatever_dies(data: st.DataObject) -> None:
    """A random program of reshapes, unions and pins; then random labels die."""
    labels = Labels()
    tensors: list[tuple[tuple[int, ...], list[Axis]]] = []
    equal: list[tuple[int, int]] = []  # numbers in the same place live and die together
    pinned: list[tuple[Axis, int]] = []
    for _ in range(data.draw(st.integers(2, 4))):
        shape = data.draw(SHAPES)
        tensors.append((shape, [labels.fresh(n) if n > 1 else None for n in shape]))
    for _ in range(data.draw(st.integers(1, 8))):
        source = data.draw(st.integers(0, len(tensors) - 1))
        shape, axes = tensors[source]
        action = data.draw(st.sampled_from(["reshape", "reshape", "unify", "pin"]))
        if action == "reshape":
            after = data.draw(SHAPES)
            tensors.append((after, reshape(labels, axes, shape, after)))
            equal.append((source, len(tensors) - 1))
        elif action == "unify":
            other = data.draw(st.integers(0, len(tensors) - 1))
            if tensors[other][0] == shape:
                for a, b in zip(axes, tensors[other][1], strict=True):
                    labels.unify(a, b)
                equal.append((source, other))
        else:
            d = data.draw(st.integers(0, len(shape) - 1))
            first = data.draw(st.integers(0, shape[d] - 1))
            part = None if axes[d] is None else axes[d][first:]
            labels.pin(part)
            if part is not None:
                pinned.append((part, shape[d] - first))
    dead = np.array(data.draw(st.lists(st.booleans(), min_size=labels.count, max_size=labels.count)))
    dead[0] = False
    for a, b in equal:
        (shape, axes), (other_shape, other_axes) = tensors[a], tensors[b]
        assert np.array_equal(
            volume(labels, axes, shape, dead), volume(labels, other_axes, other_shape, dead)
        )
    for axis, size in pinned:
        assert lives(labels, axis, size, dead).all()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20))
def test_unions_are_connected_components(pairs: list[tuple[int, int]]) -> None:
    labels = Labels()
    axis = labels.fresh(10)
    for a, b in pairs:
        labels.union(axis[[a], 0], axis[[b], 0])
    component = list(range(10))
    for _ in range(10):
        for a, b in pairs:
            component[a] = component[b] = min(component[a], component[b])
    roots = labels.find(axis[:, 0])
    for i in range(10):
        for j in range(10):
            assert (roots[i] == roots[j]) == (component[i] == component[j])


@given(SHAPES, SHAPES)
def test_a_reshape_and_back_is_the_identity(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    labels = Labels()
    axes: list[Axis] = [labels.fresh(n) if n > 1 else None for n in before]
    back = reshape(labels, reshape(labels, axes, before, after), after, before)
    for axis, returned in zip(axes, back, strict=True):
        first, second = labels.resolve(axis), labels.resolve(returned)
        assert (first is None) == (second is None)
        if first is not None and second is not None:
            assert np.array_equal(np.sort(first, 1), np.sort(second, 1))


def test_a_split_into_a_grid_loses_nothing() -> None:
    labels = Labels()
    axis = labels.fresh(12)
    heads, width = reshape(labels, [axis], (12,), (3, 4))
    resolved = labels.resolve(axis)
    assert resolved is not None
    assert resolved.shape == (12, 2)
    assert len(np.unique(labels.find(heads))) == 3
    assert len(np.unique(labels.find(width))) == 4


def test_fresh_rows_adopt_a_grid() -> None:
    labels = Labels()
    grid, weight = labels.fresh(12), labels.fresh(12)
    reshape(labels, [grid], (12,), (3, 4))
    labels.unify(weight, grid)
    assert np.array_equal(labels.resolve(weight), labels.resolve(grid))
    assert labels.resolve(weight).shape == (12, 2)


def test_two_grids_meet_column_by_column() -> None:
    labels = Labels()
    a, b = labels.fresh(12), labels.fresh(12)
    reshape(labels, [a], (12,), (3, 4))
    reshape(labels, [b], (12,), (3, 4))
    labels.unify(a, b)
    assert np.array_equal(labels.resolve(a), labels.resolve(b))
    assert len(np.unique(labels.resolve(a))) == 7


def test_a_coarse_grid_adopts_a_finer_one() -> None:
    labels = Labels()
    a, b = labels.fresh(12), labels.fresh(12)
    reshape(labels, [a], (12,), (3, 4))
    reshape(labels, [b], (12,), (3, 2, 2))
    labels.unify(a, b)
    assert labels.resolve(a).shape == (12, 3)
    assert len(np.unique(labels.resolve(a))) == 7


def test_what_does_not_factor_is_merged() -> None:
    labels = Labels()
    a, b = labels.fresh(12), labels.fresh(12)
    reshape(labels, [a], (12,), (3, 4))
    reshape(labels, [b], (12,), (4, 3))
    labels.unify(a, b)
    dead = np.zeros(labels.count, bool)
    for label in np.unique(labels.resolve(a)):
        dead[:] = False
        dead[label] = label > 0
        assert np.array_equal(lives(labels, a, 12, dead), lives(labels, b, 12, dead))


def test_a_constant_column_is_pinned() -> None:
    labels = Labels()
    one = np.repeat(labels.fresh(1), 6, 0)
    reshape(labels, [one], (6,), (2, 3))
    assert labels.resolve(one) is None


def test_pins_say_why() -> None:
    labels = Labels()
    a, b = labels.fresh(4), labels.fresh(4)
    labels.reason = 7
    labels.pin(a[1:3])
    labels.unify(a, b)
    assert labels.why(b).tolist() == [-1, 7, 7, -1]


def test_a_product_is_held_when_all_its_factors_are() -> None:
    labels = Labels()
    axis = labels.fresh(6)
    outer, inner = reshape(labels, [axis], (6,), (2, 3))
    labels.reason = 3
    labels.pin(outer)
    assert (labels.why(axis) == -1).all()
    labels.reason = 4
    labels.pin(inner[:1])
    assert labels.why(axis).tolist() == [4, -1, -1, 4, -1, -1]


def test_too_many_factors_are_pinned() -> None:
    labels = Labels()
    shape = (2,) * (WIDTH + 1)
    axes: list[Axis] = [labels.fresh(2) for _ in shape]
    (flat,) = reshape(labels, axes, shape, (prod(shape),))
    assert labels.resolve(flat) is None
    assert labels.resolve(axes[0]) is None


def test_a_copy_is_independent() -> None:
    labels = Labels()
    axis = labels.fresh(3)
    other = labels.copy()
    other.pin(axis)
    assert labels.resolve(axis) is not None
    assert other.resolve(axis) is None


def test_resolving_many_is_resolving_each() -> None:
    labels = Labels()
    axes = [labels.fresh(n) for n in (4, 6, 2, 12)]
    labels.pin(axes[0])
    labels.pin(axes[1][:2])
    reshape(labels, [axes[3]], (12,), (3, 4))
    for found, axis in zip(labels.resolve_all(axes), axes, strict=True):
        expected = labels.resolve(axis)
        assert (found is None) == (expected is None)
        assert expected is None or np.array_equal(found, expected)


@pytest.mark.parametrize("n", [1, 5000])
def test_room_grows(n: int) -> None:
    labels = Labels()
    assert len({int(x) for _ in range(3) for x in labels.fresh(n)[:, 0]}) == 3 * n


def test_what_is_held_holds_its_likes_and_those_they_meet() -> None:
    labels = Labels()
    mirrored = labels.fresh(4)
    labels.unify(mirrored, mirrored[::-1])
    pinned, last = labels.fresh(2), labels.fresh(2)
    labels.pin(pinned)
    labels.unify(mirrored, np.concatenate((pinned, last)))  # 0 and 1 are held, so 3 and 2 are, so `last` is
    assert labels.resolve(mirrored) is None
    assert labels.resolve(last) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_has_met_lives_and_dies_together(seed: int) -> None:
    """Any axes, in part the same labels, in part held, of one or two columns, after any reshape."""
    random = np.random.default_rng(seed)
    labels = Labels()
    pool = labels.fresh(10)
    pairs: list[tuple[Axis, Axis]] = []
    for _ in range(random.integers(1, 4)):
        a, b = (pool[random.integers(0, 10, (6, random.integers(1, 3))), 0].astype(np.int32) for _ in "ab")
        if random.random() < 0.4:
            labels.pin(a[: random.integers(1, 4)])
        if random.random() < 0.4:
            reshape(labels, [labels.fresh(6)], (6,), (2, 3))
            rows = reshape(labels, reshape(labels, [b], (6,), (3, 2)), (3, 2), (6,))
            b = rows[0] if rows[0] is not None else b
        labels.unify(a, b)
        pairs.append((a, b))
    for _ in range(5):
        dead = random.random(labels.count) < 0.3
        dead[0] = False
        for a, b in pairs:
            assert np.array_equal(lives(labels, a, 6, dead), lives(labels, b, 6, dead))
