from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from gracile.algebra import Grouping, View, filters
from gracile.errors import FileError, UsageError
from gracile.graph import watch
from gracile.reduce import dead, remove
from gracile.train import Floor, Method, Reach, Run, classification, fit
from gracile.zoo import build, digits


def train(model, *methods, epochs=6, rate=0.05):
    return fit(
        model,
        digits(0),
        classification(),
        epochs=epochs,
        batch_size=32,
        optimizer=partial(SGD, lr=rate, momentum=0.9),
        methods=methods,
        select="last",
        device="cpu",
        progress=False,
    )


def lenet(seed=0):
    torch.manual_seed(seed)
    return build("lenet", digits(0))


def blocks(model):
    graph = watch(model, torch.zeros(1, 1, 8, 8))
    return graph, [graph.grouping([block.id]) for block in graph.blocks]


class Watchful(Method):
    """Keep the share that is gone, step by step."""

    def __init__(self, reach):
        self.reach, self.seen, self.forced = reach, [], []

    def mask(self, run):
        self.seen.append(self.reach.gone)
        self.forced.append(self.reach.forced)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_every_block_loses_exactly_the_share_and_never_more(share):
    model = lenet()
    graph, groupings = blocks(model)
    reach = Reach(groupings, share)
    record = Watchful(reach)
    train(model, reach, record)
    for block, found in zip(graph.blocks, reach.gone, strict=True):
        assert found == round(share * len(block.units)) / len(block.units)
    shares = torch.tensor(record.seen)
    assert (shares.diff(dim=0) >= 0).all()
    assert shares.max() <= share + 0.5 / min(len(block.units) for block in graph.blocks)


def test_most_groups_die_of_the_penalty_and_the_rest_is_forced_once():
    model = lenet()
    _, groupings = blocks(model)
    reach = Reach(groupings, 0.6)
    record = Watchful(reach)
    train(model, reach, record)
    asked = sum(round(0.6 * g.of(dict(model.named_parameters())).sizes.gt(0).sum().item()) for g in groupings)
    assert reach.forced <= 0.1 * asked
    steps = len(record.seen)
    assert record.forced[int(0.7 * steps) - 2] == 0


def test_what_is_gone_can_be_removed():
    model = lenet()
    graph, groupings = blocks(model)
    train(model, Reach(groupings, 0.5))
    gone = sum(round(0.5 * len(block.units)) for block in graph.blocks)
    assert len(dead(graph, model)) == gone
    reduction = remove(model, torch.zeros(1, 1, 8, 8))
    assert reduction.verdict.error < 1e-5
    x = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(reduction.model(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_smallest_groups_pay_and_no_others():
    model = nn.Linear(3, 4, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([4.0, 1.0, 3.0, 2.0]))[:, :3] + 0.1)
    norms = model.weight.norm(dim=1)
    run = Run(model, SGD(model.parameters(), lr=1e-4), steps=1000)
    reach = Reach([filters("weight")], 0.5)
    reach.start(run)
    model.weight.grad = torch.ones_like(model.weight)
    reach.gradients(run)
    added = model.weight.grad - 1
    paying = norms.argsort()[:2]
    assert set(added.any(1).nonzero().flatten().tolist()) == set(paying.tolist())
    # a tenth of the mean gradient norm, along the weights
    expected = 0.1 * 3**0.5 * model.weight[paying] / norms[paying, None]
    torch.testing.assert_close(added[paying], expected.detach())


def test_groups_without_members_are_not_counted():
    model = nn.Linear(2, 4, bias=False)
    half = Grouping((View("weight", "out in", ("out",), (-1, 0, -1, 1)),), count=6)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=2, step=1)
    reach = Reach([half], 0.5, by=0.5)
    reach.start(run)
    reach.after_step(run)
    assert reach.gone == [0.5]
    assert reach.forced == 1
    assert (model.weight == 0).all(1).sum() == 1


def test_one_group_stays():
    model = nn.Linear(2, 2)
    reach = Reach([filters("weight")], 0.9, by=0.5)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=2, step=1)
    reach.start(run)
    reach.after_step(run)
    assert reach.gone == [0.5]


def test_the_floor_decides_how_many_go():
    free = lenet()
    train(free, epochs=8)
    held = copy.deepcopy(free)
    reach = Reach(blocks(free)[1], 0.97)
    without = train(free, reach, epochs=10)
    floor = Floor(0.9, classification())
    careful = Reach(blocks(held)[1], 0.97, floor=floor)
    within = train(held, careful, epochs=16)
    assert careful.kept
    assert careful.forced == 0
    assert max(e.validation.score for e in without.epochs[-2:]) < 0.9  # the goal alone costs too much
    assert sum(careful.gone) > 0
    assert max(careful.gone) < max(reach.gone)
    assert max(e.validation.score for e in within.epochs) >= 0.9
    assert within.test.score > without.test.score


def test_below_the_floor_the_last_weights_above_come_back():
    model = nn.Linear(2, 4)
    task = classification()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=10)
    reach = Reach([filters("weight")], 0.5, floor=Floor(0.9, task))
    reach.start(run)
    good = model.weight.detach().clone()
    reach.after_epoch(run, {"accuracy": 0.9})
    assert reach.kept
    with torch.no_grad():
        model.weight[0] = 0
    reach.after_epoch(run, {"accuracy": 0.89})
    assert not reach.kept
    assert not reach._active(run)
    reach.finish(run)
    assert torch.equal(model.weight, good)
    assert reach.gone == [0.0]
    assert reach.kept


@pytest.mark.parametrize("score", [float("nan"), 0.5])
def test_a_floor_that_never_held_is_told(score):
    model = nn.Linear(2, 4)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=10)
    reach = Reach([filters("weight")], 0.5, floor=Floor(0.9, classification()))
    reach.start(run)
    weights = model.weight.detach().clone()
    reach.after_epoch(run, {"accuracy": score})
    reach.finish(run)
    assert torch.equal(model.weight, weights)
    assert not reach.kept


@pytest.mark.parametrize(
    "bad", [{"share": 1.0}, {"share": -0.1}, {"share": float("nan")}, {"by": 0.0}, {"by": 1.5}]
)
def test_goals_out_of_range_are_refused(bad):
    with pytest.raises(UsageError, match="Reach"):
        Reach([filters("weight")], **{"share": 0.5, **bad})


def test_another_goal_or_other_groups_do_not_resume():
    model = nn.Linear(2, 4)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=10)
    first = Reach([filters("weight")], 0.5)
    first.start(run)
    other = Reach([filters("weight")], 0.6)
    other.start(run)
    with pytest.raises(UsageError, match="share"):
        other.load_state_dict(first.state_dict())
    wider = Reach([filters("weight"), filters("bias")], 0.5)
    wider.start(run)
    with pytest.raises(FileError):
        wider.load_state_dict(first.state_dict())
