"""Guided pruning: which layers are pruned, until when, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import SGD

from gracile.algebra import Lasso, Term, Threshold, elements
from gracile.cost import Machine, Roof, densities, machines, roofline
from gracile.errors import FileError, UsageError
from gracile.train import Guided, Method, Prune, Run, Structure, Surgery, classification, fit
from gracile.zoo import LeNet

NAMES = ("0.weight", "2.weight", "4.weight")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def roof(name: str, lower: float, upper: float) -> Roof:
    """A layer whose useful range of densities is as asked for."""
    machine = Machine("made up", 1e9, 1e9, alpha=1 / upper)
    made = Roof(name.removesuffix(".weight"), name, 1e9, 1e9 * lower / upper, 1e-9, machine)
    assert made.lower == pytest.approx(lower)
    assert made.upper == pytest.approx(upper)
    return made


NEVER = Roof("4", "4.weight", 1e9, 2e9, 1.0, Machine("slow memory", 1e9, 1e9, alpha=1.0))


def started(guided: Guided) -> tuple[Run, dict[str, torch.Tensor]]:
    model = network()
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=100)
    guided.start(run)
    return run, {name: model.get_parameter(name) for name in NAMES}


def set_density(weight: torch.Tensor, density: float) -> None:
    """The largest weights stay, which is what a threshold leaves, too."""
    with torch.no_grad():
        order = weight.abs().flatten().argsort(descending=True)
        weight.view(-1)[order[round(density * weight.numel()) :]] = 0


def close_epoch(guided: Guided, run: Run) -> None:
    run.epoch += 1
    guided.after_epoch(run, {})


def nothing(name: str) -> list[Prune]:
    return [Prune([name], Threshold(0.0))]


def test_what_never_pays_is_left_dense_from_the_start():
    made = []
    guided = Guided([roof(NAMES[0], 0.1, 0.5), NEVER], lambda name: made.append(name) or nothing(name))
    started(guided)
    assert guided.standing == {"0.weight": "pruning", "4.weight": "dense"}
    assert made == ["0.weight"]


def test_a_layer_at_its_lower_bound_stops_and_keeps_its_zeros():
    guided = Guided([roof(NAMES[0], 0.2, 0.6)], lambda name: [Prune([name], Threshold(0.05))])
    run, weights = started(guided)
    weight = weights["0.weight"]
    set_density(weight, 0.25)
    close_epoch(guided, run)
    assert guided.standing["0.weight"] == "pruning"
    set_density(weight, 0.19)
    close_epoch(guided, run)
    assert guided.standing["0.weight"] == "reached"
    zeros = weight == 0
    weight.grad = torch.ones_like(weight)
    guided.after_backward(run)
    assert torch.equal(weight.grad, (~zeros).float())
    run.optimizer.step()
    with torch.no_grad():
        weight[~zeros] *= 0.01  # far below the threshold: nobody prunes any more
        weight[zeros] = 1.0
    guided.after_step(run)
    guided.mask(run)
    assert torch.equal(weight == 0, zeros)


def test_a_layer_that_settles_above_its_upper_bound_gets_its_dense_weights_back():
    guided = Guided([roof(NAMES[0], 0.01, 0.4)], nothing, settled=0.02, patience=2)
    run, weights = started(guided)
    weight, dense = weights["0.weight"], weights["0.weight"].detach().clone()
    for density, expected in ((0.9, "pruning"), (0.7, "pruning"), (0.69, "pruning"), (0.68, "restored")):
        with torch.no_grad():
            weight.copy_(2 * dense)
        set_density(weight, density)
        close_epoch(guided, run)
        assert guided.standing["0.weight"] == expected
        assert (weight == 0).any() == (expected == "pruning")
    assert torch.equal(weight.detach(), dense)
    assert guided.densities == {"0.weight": 1.0}


def test_a_layer_that_settles_inside_its_range_goes_on():
    guided = Guided([roof(NAMES[0], 0.01, 0.4)], nothing, patience=1)
    run, weights = started(guided)
    set_density(weights["0.weight"], 0.3)
    for _ in range(5):
        close_epoch(guided, run)
    assert guided.standing["0.weight"] == "pruning"


def test_trained_weights_are_not_thrown_away_when_nothing_was_cut():
    guided = Guided([roof(NAMES[0], 0.01, 0.4)], nothing, patience=1)
    run, weights = started(guided)
    with torch.no_grad():
        weights["0.weight"] += 1.0
    after = weights["0.weight"].detach().clone()
    close_epoch(guided, run)
    assert guided.standing["0.weight"] == "restored"
    assert torch.equal(weights["0.weight"].detach(), after)


def test_comparisons_come_every_so_many_epochs():
    guided = Guided([roof(NAMES[0], 0.2, 0.6)], nothing, every=3)
    run, weights = started(guided)
    set_density(weights["0.weight"], 0.1)
    seen = []
    for _ in range(3):
        close_epoch(guided, run)
        seen.append(guided.standing["0.weight"])
    assert seen == ["pruning", "pruning", "reached"]


def test_every_hook_reaches_the_methods_inside():
    hooks = [name for name, member in vars(Method).items() if callable(member) and not name.startswith("_")]
    hooks = [name for name in hooks if name not in ("state_dict", "load_state_dict")]
    assert len(hooks) >= 10
    heard = []

    def listener(name: str) -> list[Method]:
        def hear(hook: str) -> Callable[..., object]:
            return lambda run, *more: heard.append((name, hook)) or (more[0] if hook == "loss" else None)

        return [type("Listens", (Method,), {h: staticmethod(hear(h)) for h in hooks})()]

    guided = Guided([roof(NAMES[0], 0.1, 0.5), roof(NAMES[1], 0.1, 0.5), NEVER], listener)
    run, _ = started(guided)
    for hook in hooks[1:]:
        more = {"loss": [torch.zeros(())], "after_epoch": [{}]}.get(hook, [])
        getattr(guided, hook)(run, *more)
    assert sorted(heard) == sorted((name, hook) for name in NAMES[:2] for hook in hooks)
    assert [name for name, hook in heard if hook == "undo"] == [NAMES[1], NAMES[0]]


RULES = {
    "L1": lambda name: [Structure([Term(elements(name), Lasso(), 2e-3)], threshold=1e-3)],
    "surgery": lambda name: [
        Structure([Term(elements(name), Lasso(), 1e-3)], threshold=0.0),
        Surgery([name], Threshold(0.08)),
    ],
    "soft threshold": lambda name: [Structure([Term(elements(name), Lasso(), 3e-3)], mode="proximal")],
}


@pytest.mark.parametrize("rule", RULES)
def test_a_run_sorts_its_layers(digits, rule):
    model = network()
    rows = [roof(NAMES[0], 0.6, 0.9), roof(NAMES[1], 0.001, 0.02), NEVER]
    guided = Guided(rows, RULES[rule], settled=0.2, patience=2)
    fit(
        model,
        digits,
        classification(),
        epochs=14,
        batch_size=20,
        methods=[guided],
        select="last",
        device="cpu",
        progress=False,
    )
    found = densities(model, NAMES)
    assert guided.standing == {"0.weight": "reached", "2.weight": "restored", "4.weight": "dense"}
    assert found == guided.densities
    assert 0.2 < found["0.weight"] <= 0.6
    assert found["2.weight"] == found["4.weight"] == 1.0


def test_rows_come_from_the_roofline_of_the_network():
    model = LeNet((1, 28, 28))
    rows = roofline(model, torch.zeros(1, 1, 28, 28), machines()["atom-c2750"])
    guided = Guided(rows.rows, nothing)
    run = Run(model, SGD(model.parameters(), lr=0.1), steps=1)
    guided.start(run)
    for row in rows.rows:
        assert guided.standing[row.weight] == ("pruning" if row.worthwhile else "dense")
    assert guided.standing["conv2.weight"] == "pruning"


def test_bad_input_is_told():
    for wrong in ({"every": 0}, {"patience": 0}, {"settled": -0.1}, {"settled": float("nan")}):
        with pytest.raises(UsageError, match="expected 1 or more"):
            Guided([NEVER], nothing, **wrong)
    with pytest.raises(UsageError, match=r"'9\.weight', no parameter of Sequential"):
        started(Guided([roof("9.weight", 0.1, 0.5)], nothing))
    unknown = Roof("0", "0.weight", 1e9, 1e6, 1e6, machines()["knl-7250"])
    with pytest.raises(UsageError, match="unknown bounds"):
        started(Guided([unknown], nothing))


def test_foreign_states_are_told():
    guided, other = Guided([NEVER], nothing), Guided([roof(NAMES[0], 0.1, 0.5)], nothing)
    run, _ = started(guided)
    other.start(run)
    with pytest.raises(FileError, match="other layers"):
        other.load_state_dict(guided.state_dict())
    again = Guided([NEVER], nothing, every=2)
    again.start(run)
    with pytest.raises(UsageError, match=r"every, settled, patience = \[2"):
        again.load_state_dict(guided.state_dict())
