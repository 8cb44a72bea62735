"""What every penalty promises. A new penalty is one row in ``PENALTIES``."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gracile.algebra import (
    L1,
    GroupHoyer,
    Grouping,
    HoyerSquare,
    Lasso,
    NormPenalty,
    Proximal,
    Ridge,
    Term,
    Trimmed,
    View,
    add_gradient_,
    blocks,
    channels,
    crossbar_columns,
    crossbar_rows,
    elements,
    filters,
    layer,
    loss_of,
    proximal_,
    shapes,
)

PENALTIES = {
    "Lasso": Lasso(),
    "Ridge": Ridge(),
    "L1": L1(),
    "HoyerSquare": HoyerSquare(),
    "GroupHoyer": GroupHoyer(),
    "Trimmed": Trimmed(0.5),
}
GROUPINGS = {
    "filters": filters("w"),
    "channels": channels("w"),
    "shapes": shapes("w"),
    "blocks": blocks("w", 2, 6),
    "layer": layer("w"),
    "elements": elements("w"),
    "crossbar rows": crossbar_rows("w", (4, 4, 3, 1), (5, 3)),
    "crossbar columns": crossbar_columns("w", (4, 4, 3, 1), (5, 3)),
    "two tensors": Grouping((View("w", "out ...", ("out",)), View("b", "out", ("out",)))),
    "two overlapping views": Grouping(
        (View("w", "unit ...", ("unit",)), View("w", "out unit ...", ("unit",)))
    ),
}
SHAPES = {"w": (4, 4, 3, 1), "b": (4,)}


def tensors(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator, dtype=dtype) for name, size in SHAPES.items()}


@pytest.fixture(params=PENALTIES, ids=list(PENALTIES))
def penalty(request):
    return PENALTIES[request.param]


@pytest.fixture(params=GROUPINGS, ids=list(GROUPINGS))
def grouping(request):
    return GROUPINGS[request.param]


def test_gradcheck(penalty, grouping):
    leaves = {name: t.requires_grad_() for name, t in tensors().items()}
    used = {view.tensor for view in grouping.views}
    assert torch.autograd.gradcheck(
        lambda *given: penalty(grouping.of(dict(zip(leaves, given, strict=True)))),
        tuple(t if name in used else t.detach() for name, t in leaves.items()),
    )


@pytest.mark.parametrize("dead", ["one group", "everything"])
def test_gradient_at_zero_is_finite(penalty, grouping, dead):
    values = tensors(dtype=torch.float32)
    for tensor in values.values():
        if dead == "everything":
            tensor.zero_()
        else:
            tensor[0] = 0
            if tensor.dim() > 1:
                tensor[:, 0] = 0
    for tensor in values.values():
        tensor.requires_grad_()
    value = penalty(grouping.of(values))
    value.backward()
    assert torch.isfinite(value)
    for name in {view.tensor for view in grouping.views}:
        gradient = values[name].grad
        assert torch.isfinite(gradient).all()
        if dead == "everything":
            assert value == 0
            assert (gradient == 0).all()


def test_declared_homogeneity(penalty, grouping):
    for factor in (1e-3, 7.0):
        scaled = {name: factor * t for name, t in tensors().items()}
        torch.testing.assert_close(
            penalty(grouping.of(scaled)), factor**penalty.degree * penalty(grouping.of(tensors()))
        )


def test_order_of_groups_does_not_matter(penalty):
    values = tensors()
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    turned = {"w": values["w"][order], "b": values["b"][order]}
    for name in ("filters", "two tensors", "shapes"):
        torch.testing.assert_close(penalty(GROUPINGS[name].of(turned)), penalty(GROUPINGS[name].of(values)))


def test_explicit_gradient_equals_autograd(penalty, grouping):
    leaves = {name: t.requires_grad_() for name, t in tensors().items()}
    terms = [Term(grouping, 0.7 * penalty + Lasso(), 0.3), Term(filters("w"), Ridge(), 0.1)]
    loss_of(terms, leaves).backward()
    explicit = tensors()
    for name, tensor in explicit.items():
        tensor.grad = torch.ones_like(tensor)
        if leaves[name].grad is None:
            leaves[name].grad = torch.zeros_like(tensor)
    add_gradient_(terms, explicit)
    for name, tensor in explicit.items():
        torch.testing.assert_close(tensor.grad - 1, leaves[name].grad)


OF_NORMS = {name: p for name, p in PENALTIES.items() if isinstance(p, NormPenalty)}


@pytest.mark.parametrize("name", OF_NORMS)
def test_slope_is_the_derivative_of_the_norms(name):
    penalty = OF_NORMS[name]
    norms = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(penalty.of_norms(norms), norms)
    slope = torch.as_tensor(penalty.slope(norms.detach()), dtype=torch.float64).expand(3)
    torch.testing.assert_close(slope, expected)


PROXIMAL = {name: p for name, p in PENALTIES.items() if isinstance(p, Proximal)}


@pytest.mark.parametrize("name", PROXIMAL)
def test_no_numeric_optimizer_beats_the_proximal_step(name):
    penalty, strength, step = PROXIMAL[name], 0.6, 0.5
    start = tensors()["w"]
    grouping = filters("w")

    def objective(flat):
        w = torch.from_numpy(flat).reshape(start.shape)
        price = strength * penalty(grouping.of({"w": w}))
        return float((w - start).square().sum() / 2 + step * price)

    stepped = {"w": start.clone()}
    proximal_([Term(grouping, penalty, strength)], stepped, step)
    ours = objective(stepped["w"].numpy().ravel())
    for seed in range(3):
        guess = start.numpy().ravel() + 0.1 * np.random.default_rng(seed).standard_normal(start.numel())
        found = minimize(objective, guess, method="L-BFGS-B", options={"maxiter": 300})
        assert ours <= found.fun + 1e-9


def test_arithmetic_of_penalties():
    groups = filters("w").of(tensors())
    torch.testing.assert_close((2 * Lasso() + Ridge() * 3)(groups), 2 * Lasso()(groups) + 3 * Ridge()(groups))
