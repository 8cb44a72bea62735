"""Forces between filters against a loop over all pairs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gracile.algebra import Attraction, Grouping, View, add_force_, channels, filters, mean_cosine
from gracile.errors import PatternError, ShapeError, UsageError

SHAPES = {"w": (6, 4, 3, 2), "b": (6,), "m": (6, 5), "bank": (6, 2, 3)}
BOTH = Grouping((View("w", "out ...", ("out",)), View("b", "out", ("out",))))
GROUPINGS = {
    "filters": filters("w"),
    "channels": channels("w"),
    "rows": filters("m"),
    "columns": channels("m"),
    "filters with bias": BOTH,
    "a view that leaves slices out": Grouping((View("w", "out ...", ("out",), (1, -1, 0, 2, -1, 3)),)),
}


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, dtype=dtype) for name, size in SHAPES.items()}


def by_hand(matrix, kind="l2", banks=1):
    """dW of the definition, pair by pair."""
    dw = torch.zeros_like(matrix)
    size = len(matrix) // banks
    for i, a in enumerate(matrix):
        for j, b in enumerate(matrix):
            if i == j or i // size != j // size or a.norm() <= 1e-4 or b.norm() <= 1e-4:
                continue
            unit = a / a.norm()
            f = b / b.norm() - unit
            if kind == "l1":
                if f.norm() <= 1e-4:
                    continue
                f = f / f.norm()
            dw[i] += a.norm() * (f - (f @ unit) * unit)
    return dw


def force_on(grouping, values, **more):
    """What is added to gradients of ones, as the matrix of the grouping."""
    leaves = {name: value.clone() for name, value in values.items()}
    for leaf in leaves.values():
        leaf.grad = torch.ones_like(leaf)
    add_force_([Attraction(grouping, **more)], leaves)
    return grouping.of({name: leaf.grad - 1 for name, leaf in leaves.items()}).matrix


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("grouping", GROUPINGS.values(), ids=GROUPINGS)
def test_equals_the_sum_over_pairs(grouping, kind):
    values = tensors()
    expected = by_hand(grouping.of(values).matrix, kind)
    torch.testing.assert_close(
        force_on(grouping, values, kind=kind, pairs="sum", strength=0.3), -0.3 * expected
    )
    mean = force_on(grouping, values, kind=kind, strength=0.3)
    torch.testing.assert_close(mean, -0.3 * expected / len(expected))


def test_what_is_in_no_group_gets_no_force():
    leaf = tensors()["w"]
    add_force_([Attraction(GROUPINGS["a view that leaves slices out"])], {"w": leaf})
    assert leaf.grad.flatten(1).any(1).tolist() == [True, False, True, True, False, True]


@pytest.mark.parametrize("kind", ["l2", "l1"])
@given(seed=st.integers(0, 10**6), filters_=st.integers(1, 9), size=st.integers(1, 7), alike=st.booleans())
@settings(max_examples=30, deadline=None)
def test_equals_the_sum_over_pairs_of_any_matrix(kind, seed, filters_, size, alike):
    """Also with short filters, equal filters, and filters nearer than the force reaches."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(filters_, size, generator=generator, dtype=torch.float64)
    matrix *= 10.0 ** torch.randint(-6, 4, (filters_, 1), generator=generator)
    if alike and filters_ > 2:
        matrix[1] = 3 * matrix[0]
        matrix[2] = matrix[0] + 5e-5 * matrix[0].norm() * torch.randn(size, generator=generator).double()
    expected = -by_hand(matrix, kind)
    found = force_on(filters("w"), {"w": matrix}, kind=kind, pairs="sum")
    # 1 / D of a pair about 1e-4 apart makes 1e4 of a rounding error, on a filter of the same length
    near = alike and filters_ > 2 and kind == "l1"
    tolerance = (1e-4 if near else 1e-8) * (0.01 + matrix.norm(dim=1, keepdim=True) * filters_)
    assert ((found - expected).abs() <= tolerance).all()


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_it_is_tangential_and_turns_filters_towards_each_other(kind):
    w = tensors()["w"].requires_grad_()
    groups = filters("w").of({"w": w.detach()})
    before, lengths = mean_cosine(groups), groups.norms.clone()
    optimizer = torch.optim.SGD([w], lr=1e-3)
    for _ in range(20):
        optimizer.zero_grad()
        add_force_([Attraction(filters("w"), kind=kind)], {"w": w})
        rows, gradient = w.detach().flatten(1), w.grad.flatten(1)
        torch.testing.assert_close((rows * gradient).sum(1), torch.zeros(6, dtype=torch.float64))
        optimizer.step()
    groups = filters("w").of({"w": w.detach()})
    assert mean_cosine(groups) > before + 1e-3
    torch.testing.assert_close(groups.norms, lengths, rtol=1e-4, atol=0)


def test_the_l2_force_is_the_gradient_of_the_distances_times_the_square_of_the_length():
    """Of D = 1/2 sum over pairs of ||w_i - w_j||^2, whose gradient is divided by ||W_i||, not multiplied."""
    matrix = tensors()["m"].requires_grad_()
    units = matrix / matrix.norm(dim=1, keepdim=True)
    (gradient,) = torch.autograd.grad(torch.cdist(units, units).square().sum() / 4, matrix)
    found = force_on(filters("m"), {"m": matrix.detach()}, pairs="sum")
    torch.testing.assert_close(found, gradient * matrix.detach().norm(dim=1, keepdim=True) ** 2)


def test_banks_do_not_see_each_other():
    values = tensors()
    for kind in ("l2", "l1"):
        expected = by_hand(values["bank"].flatten(1), kind, banks=3)
        torch.testing.assert_close(
            force_on(filters("bank"), values, kind=kind, banks=3, pairs="sum"), -expected
        )
        torch.testing.assert_close(force_on(filters("bank"), values, kind=kind, banks=3), -expected / 2)
        assert not force_on(filters("bank"), values, kind=kind, banks=6).any()  # depthwise: each is alone


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_adaptive_is_as_long_as_the_gradient(kind):
    w = tensors()["w"]
    w.grad = torch.randn(w.shape, generator=torch.Generator().manual_seed(5), dtype=w.dtype)
    before = w.grad.clone()
    for pairs in ("mean", "sum"):
        w.grad = before.clone()
        add_force_([Attraction(filters("w"), 0.2, kind, pairs, "adaptive")], {"w": w})
        added = (w.grad - before).flatten(1)
        torch.testing.assert_close(added.norm(), 0.2 * before.norm())
        direction = -by_hand(w.flatten(1), kind)
        torch.testing.assert_close(added / added.norm(), direction / direction.norm())


def test_adaptive_without_a_force_or_a_gradient_adds_nothing():
    same = torch.ones(3, 4)
    same.grad = torch.ones(3, 4)
    add_force_([Attraction(filters("w"), scale="adaptive")], {"w": same})
    assert torch.equal(same.grad, torch.ones(3, 4))
    fresh = tensors()["w"]
    add_force_([Attraction(filters("w"), scale="adaptive")], {"w": fresh})
    assert not fresh.grad.any()


def test_short_filters_neither_pull_nor_are_pulled():
    values = tensors()
    alone = values["m"].clone()
    values["m"][2] = 1e-5
    values["m"][4] = 0
    for kind in ("l2", "l1"):
        found = force_on(filters("m"), values, kind=kind, pairs="sum")
        assert not found[[2, 4]].any()
        kept = alone[[0, 1, 3, 5]]
        torch.testing.assert_close(found[[0, 1, 3, 5]], -by_hand(kept, kind))


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize("matrix", [torch.zeros(4, 3), torch.ones(4, 3), torch.ones(1, 3)], ids=str)
def test_without_differences_there_is_no_force(kind, matrix):
    found = force_on(filters("w"), {"w": matrix}, kind=kind, pairs="sum")
    torch.testing.assert_close(found, torch.zeros_like(matrix), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["l2", "l1"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_other_precisions_and_layouts(kind, dtype, tolerance):
    w = tensors()["w"].to(dtype)
    expected = -by_hand(w.double().flatten(1), kind).view_as(w)
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = w.clone(memory_format=layout)
        add_force_([Attraction(filters("w"), kind=kind, pairs="sum")], {"w": leaf})
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(leaf.grad.double(), expected, rtol=tolerance, atol=4 * tolerance)


def test_mean_cosine_is_the_mean_over_pairs():
    values = tensors()
    units = values["w"].flatten(1) / values["w"].flatten(1).norm(dim=1, keepdim=True)
    pairs = [units[i] @ units[j] for i in range(6) for j in range(6) if i != j]
    torch.testing.assert_close(mean_cosine(filters("w").of(values)), torch.stack(pairs).mean())
    bank = values["bank"].flatten(1)
    bank = bank / bank.norm(dim=1, keepdim=True)
    highest = max(bank[0] @ bank[1], bank[2] @ bank[3], bank[4] @ bank[5])
    torch.testing.assert_close(mean_cosine(filters("bank").of(values), banks=3), highest)


def test_mean_cosine_at_its_ends():
    assert mean_cosine(filters("w").of({"w": torch.ones(5, 3)})) == pytest.approx(1.0)
    assert mean_cosine(filters("w").of({"w": torch.eye(3)})) == 0
    assert mean_cosine(filters("w").of({"w": torch.tensor([[1.0], [-1.0]])})) == -1
    assert mean_cosine(filters("w").of({"w": torch.tensor([[1.0, 0.0], [0.0, 0.0]])})) == 0
    assert mean_cosine(Grouping(()).of({})) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"strength": -1.0},
        {"strength": float("nan")},
        {"strength": float("inf")},
        {"kind": "l3"},
        {"pairs": "max"},
        {"scale": "log"},
        {"banks": 0},
    ],
)
def test_bad_arguments_are_refused(wrong):
    with pytest.raises(UsageError, match="attraction"):
        Attraction(filters("w"), **wrong)


def test_wrong_names_patterns_and_banks_are_told():
    with pytest.raises(ShapeError, match="'v'"):
        add_force_([Attraction(filters("v"))], tensors())
    with pytest.raises(PatternError, match="out in"):
        add_force_([Attraction(Grouping((View("b", "out in", ("out",)),)))], tensors())
    with pytest.raises(ShapeError, match="6 filters in 4 banks"):
        add_force_([Attraction(filters("bank"), banks=4)], tensors())


def test_strength_zero_touches_nothing():
    values = tensors()
    add_force_([Attraction(filters("w"), 0.0), Attraction(Grouping(()))], values)
    assert values["w"].grad is None
