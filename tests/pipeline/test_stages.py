"""Stages in every order: legal ones keep what each of them made, illegal ones are refused with the reason."""

from itertools import permutations

import pytest
import torch

from gracile.cost import stored_bytes
from gracile.errors import RefusedError, UsageError
from gracile.graph import watch
from gracile.pipeline import Bits, Elements, LowRank, Plan, Units, check, compose
from gracile.reduce import load as load_reduced
from gracile.reduce import pairs, save
from gracile.train import classification
from gracile.zoo import build, load

PLAN = Plan(dense=2, batch_size=64, rate=0.05)
STAGES = {
    "rank": LowRank(0.8, tune=1),
    "units": Units(0.4, learn=1, tune=1),
    "elements": Elements(0.6, learn=1, tune=1),
    "bits": Bits(6),
}
ORDERS = [order for count in (1, 2, 3, 4) for order in permutations(STAGES, count)]


def legal(order):
    """Written out: bits come last, and a matrix with zeros is not factored any more."""
    place = {name: number for number, name in enumerate(order)}
    last = place.get("bits", len(order)) in (len(order) - 1, len(order))
    return last and not ("rank" in place and place.get("elements", 9) < place["rank"])


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_which_orders_are_legal(order):
    stages = [STAGES[name] for name in order]
    if legal(order):
        check(stages)
    else:
        with pytest.raises(RefusedError, match="composing stages"):
            check(stages)


@pytest.mark.parametrize("twice", ["rank", "bits"])
def test_what_is_not_done_twice(twice):
    with pytest.raises(RefusedError):
        check([STAGES[twice], STAGES[twice]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: LowRank(0.0),
        lambda: LowRank(1.1),
        lambda: Units(1.0),
        lambda: Units(0.5, learn=0),
        lambda: Elements(float("nan")),
        lambda: Bits(1),
    ],
)
def test_impossible_stages_are_refused_when_they_are_made(make):
    with pytest.raises(UsageError):
        make()


def test_no_stages():
    with pytest.raises(UsageError):
        check([])


@pytest.fixture(scope="module")
def splits():
    return load("digits")


@pytest.mark.parametrize(
    "order", [order for order in ORDERS if len(order) == 4 and legal(order)], ids="-".join
)
def test_legal_orders_keep_what_every_stage_made(order, splits, tmp_path):
    torch.manual_seed(0)
    model = build("lenet", splits)
    stages = [STAGES[name] for name in order]
    state, passage = compose(model, splits, classification(), stages, PLAN, progress=False)
    small = state.model
    assert state.made == {stage.makes for stage in stages}
    assert pairs(small)
    widths = [len(block.units) for block in watch(small, torch.zeros(1, 1, 8, 8)).blocks]
    assert max(widths) <= round(0.6 * 500) + 1
    for name, parameter in small.named_parameters():
        if parameter.dim() > 1:
            rows = [len(row.unique()) for row in parameter]
            assert max(rows) <= 63
            if order.index("elements") > order.index("units"):
                assert (parameter == 0).double().mean() >= 0.55
            assert state.bits[name] == 6
    save(tmp_path, small, *state.steps)
    again = load_reduced(tmp_path, build("lenet", splits)).state_dict()
    assert {name: tensor.numpy().tobytes() for name, tensor in again.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in small.state_dict().items()
    }
    legs = passage.legs
    assert [leg.stage for leg in legs] == ["dense", *map(str, stages)]
    assert legs[-1].stored < 0.2 * legs[0].stored
    assert legs[-1].moved < legs[0].moved
    assert legs[-1].parameters == sum(p.numel() for p in small.parameters())
    expected = sum(
        sum(stored_bytes(p.detach(), state.bits.get(name, 32))) for name, p in small.named_parameters()
    )
    assert legs[-1].stored == pytest.approx(expected)
    assert passage.times_fewer("stored") == pytest.approx(legs[0].stored / legs[-1].stored)


def test_an_illegal_order_is_refused_before_anything_is_trained(splits):
    torch.manual_seed(0)
    model = build("lenet", splits)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(RefusedError, match="LowRank after Elements"):
        compose(model, splits, classification(), [Elements(), LowRank()], PLAN, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_stage_with_nothing_to_do_says_so(splits):
    torch.manual_seed(0)
    with pytest.raises(RefusedError, match="factoring"):
        compose(
            build("lenet", splits), splits, classification(), [LowRank(1.0)], Plan(dense=0), progress=False
        )
