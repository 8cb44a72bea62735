"""Terms on whole networks: gradient, proximal step and threshold against closed forms."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.algebra import (
    L1,
    GroupHoyer,
    Grouping,
    HoyerSquare,
    Lasso,
    Term,
    View,
    add_gradient_,
    blocks,
    channels,
    columns,
    elements,
    filters,
    layer,
    loss_of,
    proximal_,
    threshold_,
)
from gracile.errors import ShapeError, UsageError


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.randn(shape, generator=generator) for i, shape in enumerate(shapes)}


def test_gradient_of_filters_and_channels_is_the_formula():
    tensors = weights((5, 4, 3, 3), (6, 5))
    terms = [Term(named(name), Lasso(), 0.2) for name in tensors for named in (filters, channels)]
    tensors["w0"][2] = 0
    add_gradient_(terms, tensors)
    for w in tensors.values():
        rows = w.flatten(1).norm(dim=1).reshape(-1, *[1] * (w.dim() - 1))
        columns = w.transpose(0, 1).flatten(1).norm(dim=1).reshape(1, -1, *[1] * (w.dim() - 2))
        expected = 0.2 * (torch.nan_to_num(w / rows) + torch.nan_to_num(w / columns))
        torch.testing.assert_close(w.grad, expected)


def test_proximal_step_is_group_soft_thresholding():
    tensors = weights((5, 4, 3, 3), (6, 5))
    before = {name: w.clone() for name, w in tensors.items()}
    proximal_([Term(filters(name), Lasso(), 2.0) for name in tensors], tensors, step={"w0": 1.5, "w1": 0.5})
    for name, step in (("w0", 1.5), ("w1", 0.5)):
        norms = before[name].flatten(1).norm(dim=1)
        factor = (1 - 2.0 * step / norms).clamp(min=0).reshape(-1, *[1] * (before[name].dim() - 1))
        torch.testing.assert_close(tensors[name], before[name] * factor)
    assert (tensors["w0"].flatten(1).norm(dim=1) > 0).any()


def test_proximal_step_makes_exact_zeros_and_leaves_zeros():
    tensors = {"w": torch.tensor([[1e-20, 0.0], [0.0, 0.0], [5.0, 0.0]])}
    proximal_([Term(filters("w"), Lasso())], tensors, 0.5)
    assert tensors["w"].tolist() == [[0.0, 0.0], [0.0, 0.0], [4.5, 0.0]]


def test_proximal_step_of_coupled_slices():
    coupled = Grouping((View("a", "unit in", ("unit",)), View("b", "out unit", ("unit",), index=(1, 0, -1))))
    tensors = {"a": torch.tensor([[3.0], [0.1]]), "b": torch.tensor([[0.1, 4.0, 7.0]])}
    proximal_([Term(coupled, Lasso())], tensors, 1.0)
    torch.testing.assert_close(tensors["a"], torch.tensor([[3.0 * 4 / 5], [0.0]]))
    torch.testing.assert_close(tensors["b"], torch.tensor([[0.0, 4.0 * 4 / 5, 7.0]]))


def test_lasso_on_elements_is_soft_thresholding():
    tensors = weights((7, 3))
    before = tensors["w0"].clone()
    proximal_([Term(elements("w0"), Lasso(), 1.0)], tensors, 0.3)
    torch.testing.assert_close(tensors["w0"], torch.nn.functional.softshrink(before, 0.3))


def test_overlapping_groups_have_no_proximal_step():
    tensors = weights((5, 4))
    with pytest.raises(UsageError, match="'w0' in 2 views"):
        proximal_([Term(filters("w0"), Lasso()), Term(channels("w0"), Lasso())], tensors, 0.1)
    with pytest.raises(UsageError, match="proximal penalty"):
        proximal_([Term(filters("w0"), GroupHoyer())], tensors, 0.1)
    shared = Grouping((View("w0", "out in", ("out",)), View("w1", "out in", ("out",))))
    with pytest.raises(UsageError, match="one learning rate"):
        proximal_([Term(shared, Lasso())], weights((5, 4), (5, 2)), {"w0": 0.1, "w1": 0.2})


def test_strength_zero_changes_no_bit():
    tensors = weights((5, 4))
    before = tensors["w0"].clone()
    tensors["w0"].grad = torch.randn(5, 4)
    gradient = tensors["w0"].grad.clone()
    add_gradient_([Term(filters("w0"), Lasso(), 0.0)], tensors)
    proximal_([Term(filters("w0"), Lasso(), 0.0)], tensors, 0.1)
    assert torch.equal(tensors["w0"], before)
    assert torch.equal(tensors["w0"].grad, gradient)


def test_hoyer_square_gradient_is_the_published_formula_and_trims():
    w = torch.randn(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tensors = {"w": w}
    add_gradient_([Term(layer("w"), HoyerSquare())], tensors)
    absolute, square = w.abs().sum(), w.square().sum()
    expected = 2 * w.sign() * absolute / square**2 * (square - w.abs() * absolute)
    torch.testing.assert_close(tensors["w"].grad, expected)
    small = w.abs() < square / absolute
    pushes_down = tensors["w"].grad * w.sign() > 0
    assert torch.equal(small, pushes_down)


def test_hoyer_square_counts_equal_members_and_ignores_scale():
    for scale in (1e-15, 1.0, 1e15):
        w = torch.zeros(100)
        w[:7] = scale
        assert math.isclose(float(HoyerSquare()(layer("w").of({"w": w}))), 7, rel_tol=1e-5)


def test_l1_of_any_grouping_is_the_sum_of_absolute_values():
    tensors = weights((5, 4))
    for grouping in (filters("w0"), elements("w0"), layer("w0")):
        torch.testing.assert_close(L1()(grouping.of(tensors)), tensors["w0"].abs().sum())


def test_threshold_zeroes_small_numbers_only():
    tensors = [torch.tensor([1e-4, -1e-4, 2e-4, -1.0]), torch.tensor([[0.0, 3e-5]])]
    threshold_(tensors, 1e-4)
    assert [t.tolist() for t in tensors] == [
        [0.0, 0.0, pytest.approx(2e-4), -1.0],
        [[0.0, 0.0]],
    ]
    threshold_([], 1e-4)


def test_loss_of_nothing_is_zero():
    assert loss_of([], {}) == 0


class _Operators(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_whole_network_steps_take_few_operators():
    """21 weights, as in ResNet-18: at most 90 operators for a call."""
    tensors = {name: torch.nn.Parameter(t) for name, t in weights(*[(8, 8, 3, 3)] * 20, (10, 8)).items()}
    for tensor in tensors.values():
        tensor.grad = torch.zeros_like(tensor)
    by_filter = [Term(filters(name), Lasso(), 1e-3) for name in tensors]
    by_channel = [Term(channels(name), Lasso(), 1e-3) for name in tensors]
    for call in (
        lambda: proximal_(by_filter, tensors, 0.1),
        lambda: add_gradient_(by_filter + by_channel, tensors),
    ):
        with _Operators() as counted:
            call()
        assert counted.count <= 90


@pytest.mark.parametrize("penalty", [Lasso(), L1(), HoyerSquare(), GroupHoyer(), 2 * Lasso() + L1()])
def test_a_network_without_units_costs_nothing(penalty):
    tensors = weights((3, 2))
    before = tensors["w0"].clone()
    terms = [Term(Grouping(()), penalty)]
    assert loss_of(terms, tensors) == 0
    assert penalty(Grouping((), count=2).of(tensors)) == 0
    add_gradient_(terms, tensors)
    assert tensors["w0"].grad is None
    proximal_([Term(Grouping(()), Lasso())], tensors, 0.1)
    assert torch.equal(tensors["w0"], before)


@pytest.mark.parametrize("gradient", [torch.channels_last, torch.contiguous_format, None])
def test_columns_do_not_depend_on_the_memory_layout(gradient):
    want, w = (weights((4, 3, 2, 2))["w0"] for _ in range(2))
    w = w.to(memory_format=torch.channels_last)
    if gradient:
        want.grad, w.grad = torch.ones_like(want), torch.ones_like(want).contiguous(memory_format=gradient)
    for tensor in (want, w):
        add_gradient_([Term(columns("w"), Lasso(), 0.1)], {"w": tensor})
        proximal_([Term(columns("w"), Lasso())], {"w": tensor}, 0.1)
    torch.testing.assert_close(w, want)
    torch.testing.assert_close(w.grad, want.grad)


@pytest.mark.parametrize("gradient", [torch.channels_last, torch.contiguous_format])
def test_tiles_of_a_gradient_in_another_layout(gradient):
    want, w = (weights((4, 3, 2, 2))["w0"] for _ in range(2))
    want.grad, w.grad = torch.ones_like(want), torch.ones_like(want).contiguous(memory_format=gradient)
    for tensor in (want, w):
        add_gradient_([Term(blocks("w", 2, 6), Lasso())], {"w": tensor})
    torch.testing.assert_close(w.grad, want.grad)


def test_tiles_across_a_layout_are_refused_in_words():
    w = weights((4, 3, 2, 2))["w0"].to(memory_format=torch.channels_last)
    with pytest.raises(ShapeError, match=r"strides.*contiguous_format"):
        add_gradient_([Term(blocks("w", 2, 6), Lasso())], {"w": w})


def test_half_precision_elsewhere_leaves_small_groups_exact():
    tensors = {"small": torch.full((2, 2), 1e-5), "half": torch.ones(2, 2, dtype=torch.float16)}
    add_gradient_([Term(filters(name), Lasso()) for name in tensors], tensors)
    torch.testing.assert_close(tensors["small"].grad, torch.full((2, 2), 0.5**0.5))


def test_groups_across_precisions():
    grouping = Grouping((View("a", "o", ("o",), (0, 1)), View("b", "o i", ("o",), (0, 1))))
    tensors = {"a": torch.full((2,), 3.0), "b": torch.ones(2, 16, dtype=torch.bfloat16)}
    groups = grouping.of(tensors)
    assert groups.absolute.tolist() == [19, 19]
    assert groups.norms.tolist() == [5, 5]


def test_a_tensor_without_a_step_is_named():
    with pytest.raises(UsageError, match="no step for 'w0'"):
        proximal_([Term(filters("w0"), Lasso())], weights((3, 2)), {"other": 0.1})


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda w: Grouping((View("w", "o i", ("o",), (0, 1, -2)),)).of({"w": w}), "group number -2"),
        (lambda w: filters("w").of({"w": w}).scale_(torch.ones(1)), r"factors of shape \(1,\)"),
        (lambda w: filters("w").of({"w": w}).take(torch.tensor([True, False])), r"a mask of shape \(2,\)"),
        (lambda w: filters("w").of({"w": w.long()}).norms, "torch.int64"),
    ],
)
def test_what_does_not_fit_is_refused(act, says):
    with pytest.raises(ShapeError, match=says):
        act(torch.ones(3, 2))


def test_a_group_without_members_has_an_empty_row():
    groups = Grouping((View("w", "o i", ("o",), (0, 2)),)).of({"w": torch.ones(2, 3)})
    assert groups.matrix.tolist() == [[1, 1, 1], [0, 0, 0], [1, 1, 1]]
