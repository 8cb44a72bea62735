"""The order of effects in one step, with real methods against a step written by hand.

noise on -> forward, backward -> noise off -> average -> clip -> decay, group and force gradients -> optimizer
-> threshold or proximal step -> masks
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from gracile.algebra import Attraction, Lasso, Term, add_noise_, filters
from gracile.train import Force, Freeze, Method, Run, SmoothOut, Structure, classification
from gracile.train.randomness import mixed
from gracile.train.step import Step

STEPS, PART, CLIP = 6, 8, 0.3
RATE, MOMENTUM, DECAY = 0.1, 0.8, 0.02
NOISE, LASSO, FORCE, THRESHOLD = 0.05, 0.04, 1.0, 0.004
NOISY = ("0.weight", "0.bias", "3.weight", "3.bias")  # not the norm layer
PENALIZED = ("0.weight", "3.weight")


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[::2, :3] = 0
        model[3].weight[1, 1:5] = 0
    return model


def batches():
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        x = torch.randn(3 * PART, 6, generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (3 * PART,), generator=generator)


def force(w):
    units = w / w.norm(dim=1, keepdim=True)
    pull = units.sum(0) - len(w) * units
    tangent = pull - (pull * units).sum(1, keepdim=True) * units
    return w.norm(dim=1, keepdim=True) * tangent / len(w)


def add_regularizers(gradients, w, proximal):
    for name in PENALIZED:
        if not proximal:
            gradients[name] += LASSO * w[name] / w[name].norm(dim=1, keepdim=True)
        gradients[name] -= FORCE * force(w[name])


def by_hand(mode="gradient", wrong=""):
    """The weights after all steps; ``wrong`` names one thing done in another order."""
    model = network()
    parameters = dict(model.named_parameters())
    held = {name: p == 0 for name, p in parameters.items() if p.dim() > 1}
    history = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for step, (x, y) in enumerate(batches()):
        gradients = {name: torch.zeros_like(p) for name, p in parameters.items()}
        clean = {name: p.detach().clone() for name, p in parameters.items()}
        for part in range(3):
            chunk = slice(part * PART, part * PART + PART)
            draw = mixed(0, step, 0 if wrong == "one draw for all parts" else part)
            add_noise_([parameters[name] for name in NOISY], NOISE, seed=draw)
            loss = functional.cross_entropy(model(x[chunk]), y[chunk])
            found = torch.autograd.grad(loss, list(parameters.values()))
            for name, gradient in zip(parameters, found, strict=True):
                gradients[name] += gradient / 3
            noisy = {name: p.detach().clone() for name, p in parameters.items()}
            with torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(clean[name])
        if wrong != "held weights count in clipping":
            for name, mask in held.items():
                gradients[name][mask] = 0
        seen = noisy if wrong == "regularizers at the noisy weights" else clean
        if wrong == "regularizers before clipping":
            add_regularizers(gradients, seen, mode == "proximal")
        total = torch.stack([g.norm() for g in gradients.values()]).norm()
        for g in gradients.values():
            g *= (CLIP / (total + 1e-6)).clamp(max=1)
        if wrong not in ("regularizers before clipping", "regularizers beside the momentum"):
            add_regularizers(gradients, seen, mode == "proximal")
        with torch.no_grad():
            for name, p in parameters.items():
                start = (noisy if wrong == "step from the noisy weights" else clean)[name]
                history[name] = MOMENTUM * history[name] + gradients[name] + DECAY * start
                if wrong == "threshold before the step" and name in PENALIZED:
                    start = start * (start.abs() > THRESHOLD)
                p.copy_(start - RATE * history[name])
                if wrong == "regularizers beside the momentum" and name in PENALIZED:
                    p -= RATE * (LASSO * clean[name] / clean[name].norm(dim=1, keepdim=True))
                    p += RATE * FORCE * force(clean[name])
                if name in PENALIZED and mode == "gradient" and wrong != "threshold before the step":
                    p[p.abs() <= THRESHOLD] = 0
                if name in PENALIZED and mode == "proximal":
                    norm = p.norm(dim=1, keepdim=True)
                    p *= (1 - LASSO * RATE / (1 - MOMENTUM) / norm).clamp(min=0)
                if name in held and wrong != "no mask":
                    p[held[name]] = 0
    return model


def methods(mode):
    return [
        SmoothOut(NOISE),
        Structure(
            [Term(filters(name), Lasso(), LASSO) for name in PENALIZED],
            mode,
            threshold=THRESHOLD if mode == "gradient" else 0.0,
        ),
        Force([Attraction(filters(name), FORCE) for name in PENALIZED]),
        Freeze(),
    ]


def trained(listed):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY)
    run = Run(model, optimizer, steps=STEPS)
    step = Step(run, model, classification(), listed, CLIP, PART)
    for method in listed:
        method.start(run)
    for x, y in batches():
        step(x, y)
        run.step += 1
    return model


@pytest.mark.parametrize("mode", ["gradient", "proximal"])
def test_the_order_is_that_of_the_step_written_by_hand_however_methods_are_listed(mode):
    expected = by_hand(mode).state_dict()
    for order in itertools.permutations(methods(mode)):
        model = trained(order)
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "wrong",
    [
        "one draw for all parts",
        "held weights count in clipping",
        "regularizers at the noisy weights",
        "regularizers before clipping",
        "regularizers beside the momentum",
        "step from the noisy weights",
        "threshold before the step",
        "no mask",
    ],
)
def test_another_order_would_be_seen(wrong):
    right, other = by_hand().state_dict(), by_hand(wrong=wrong).state_dict()
    assert max((right[name] - other[name]).abs().max() for name in right) > 1e-4


def test_every_hook_sees_the_weights_it_should():
    """Noisy from before_forward to the loss, clean ever after, whichever method is listed first."""
    seen = []

    class Watch(Method):
        def __init__(self, place):
            self.place = place

        def note(self, hook, run):
            seen.append((self.place, hook, torch.equal(run.model[0].weight, clean)))

        def loss(self, run, loss):
            self.note("loss", run)
            return loss

        def after_backward(self, run):
            self.note("after_backward", run)

        def gradients(self, run):
            self.note("gradients", run)

    model = network()
    clean = model[0].weight.detach().clone()
    run = Run(model, torch.optim.SGD(model.parameters(), lr=RATE), steps=1)
    listed = [Watch("first"), SmoothOut(0.1), SmoothOut(0.2, "filter"), Watch("last")]
    Step(run, model, classification(), listed, ghost_batch=PART)(*next(batches()))
    for place in ("first", "last"):
        assert [s[1:] for s in seen if s[0] == place] == [
            *3 * [("loss", False), ("after_backward", True)],
            ("gradients", True),
        ]
