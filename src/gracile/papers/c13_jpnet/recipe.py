"""C13: dynamic masks on activations, and penalties on weights and activations together.

Two questions, with an MLP of 300 and 100 neurons. *Winners*: what do masks at a winner rate cost before and
after fine-tuning, and are thresholds for each sample better than one for all at the same activity? *Joint*:
how many multiply-accumulates are left with L1 on weights, with winners after that, and with L1 on weights and
activations, at matched accuracy and at the same strengths on weights? Everything is chosen by validation
data, and small data sets are judged over several splits whose figures are averaged before anything is chosen.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from gracile.algebra import L1, Lasso, Term, elements, winner_threshold
from gracile.cost import SparseCost, measure, sparse_macs, time_on_thread
from gracile.papers.registry import Result, Scale
from gracile.train import (
    Activations,
    Freeze,
    Method,
    Splits,
    Structure,
    captured,
    classification,
    cosine,
    evaluate,
    fit,
    insert_after,
    insert_winners,
)
from gracile.zoo import load

HIDDEN = ("2", "4")  # the activations of the two hidden layers
WEIGHTS = ("1.weight", "3.weight", "5.weight")
ALLOWED_LOSS = 0.005  # of validation accuracy, when strengths are chosen
# The first are the publication's for such a network; the last show what happens where few are left.
RATES = ((0.12, 0.24), (0.3, 0.3), (0.05, 0.1))
DROPOUT, SAMPLE = 0.5, 0.1


@dataclass(frozen=True)
class _Setting:
    """Data, epochs and strengths."""

    data: str
    splits: int
    dense: int
    learn: int
    tune: int
    batch_size: int
    adadelta: float  # learning rate of fine-tuning with masks
    weights: tuple[float, ...]  # strengths of L1 on weights, alone and jointly
    activations: float  # strength of L1 on activations


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting("digits", 3, 40, 40, 15, 64, 0.3, (1e-3, 2e-3, 3e-3), 1e-2),
    "cpu": _Setting("fashion-mnist", 1, 6, 4, 2, 128, 0.1, (5e-5, 1e-4, 2e-4), 1e-3),
}


@dataclass(frozen=True)
class _Network:
    """A trained network of one split."""

    model: nn.Module
    validation: float
    test: float


@dataclass(frozen=True)
class _Part:
    """One split into training and validation data."""

    setting: _Setting
    splits: Splits
    seed: int

    def network(self, model: nn.Module) -> _Network:
        """The network as it is."""
        validation, test = (
            evaluate(model, data, classification()).score
            for data in (self.splits.validation, self.splits.test)
        )
        return _Network(model.eval(), validation, test)

    def train(self, model: nn.Module, epochs: int, *methods: Method, rate: float = 0.05) -> _Network:
        """A copy, trained with a rate that falls to zero; its last weights."""
        copied = copy.deepcopy(model)
        sgd = partial(torch.optim.SGD, lr=rate, momentum=0.9)
        self._fit(copied, epochs, methods, optimizer=sgd, schedule=cosine(), select="last")
        return self.network(copied)

    def tune(self, model: nn.Module, *methods: Method) -> _Network:
        """A copy, fine-tuned as the publication does it; its best weights by validation data."""
        copied = copy.deepcopy(model)
        adadelta = partial(torch.optim.Adadelta, lr=self.setting.adadelta)
        self._fit(copied, self.setting.tune, methods, optimizer=adadelta)
        return self.network(copied)

    def cost(self, model: nn.Module, data: str) -> SparseCost:
        """What is left of its products on ``validation`` or ``test`` data."""
        return sparse_macs(model, [_inputs(getattr(self.splits, data), 2000)])

    def _fit(self, model: nn.Module, epochs: int, methods: Iterable[Method], **more: Any) -> None:
        fit(
            model,
            self.splits,
            classification(),
            epochs=epochs,
            batch_size=self.setting.batch_size,
            methods=tuple(methods),
            seed=self.seed,
            progress=False,
            **more,
        )


def run(scale: Scale, seed: int) -> list[Result]:
    """Accuracies with masks and what fine-tuning recovers; MACs left with and without joint penalties."""
    setting = _SETTINGS[scale]
    numbers = [seed * setting.splits + number for number in range(setting.splits)]
    parts = [_Part(setting, load(setting.data, seed=number), number) for number in numbers]
    return _winners(parts) + _joint(parts)


def _winners(parts: list[_Part]) -> list[Result]:
    dense = [_dense(part, partial(nn.LeakyReLU, 0.1)) for part in parts]
    results = [Result("dense", "test accuracy, dense MLP with LeakyReLU", _points(dense), "%")]
    for rates in RATES:
        results += _masked(parts, dense, rates)
    return results


def _masked(parts: list[_Part], dense: list[_Network], rates: tuple[float, float]) -> list[Result]:
    exact, sampled, static = (
        [mask(network.model, rates, part) for part, network in zip(parts, dense, strict=True)]
        for mask in (_exact, _sampled, _static)
    )
    before, before_static = (_points(_as_they_are(parts, models)) for models in (exact, static))
    tuned, tuned_sampled, tuned_static = (
        [part.tune(model) for part, model in zip(parts, models, strict=True)]
        for models in (exact, sampled, static)
    )
    after = _points(tuned)
    lost, guessed = _points(dense) - after, after - _points(tuned_sampled)
    name, judged = f"{rates[0]:g} and {rates[1]:g}", rates == RATES[0]
    results = [
        Result(f"before {name}", f"test accuracy, winners {name}, before fine-tuning", before, "%"),
        Result(f"after {name}", f"test accuracy, winners {name}, fine-tuned", after, "%"),
        Result(
            f"lost {name}",
            f"accuracy lost, winners {name}, fine-tuned",
            lost,
            "points",
            claim="mlp-accuracy" if judged else None,
            holds=lost <= 1.0 if rates in RATES[:2] else None,
        ),
        Result(
            f"sampled {name}",
            f"accuracy that thresholds from a tenth of the entries cost, winners {name}, fine-tuned",
            guessed,
            "points",
            claim="sampled",
            holds=guessed <= 0.5,
        ),
        Result(
            f"static {name}",
            f"points of thresholds for each sample over static ones at equal activity, {name}, not tuned",
            before - before_static,
            "points",
            claim="dynamic",
            holds=before > before_static,
        ),
        Result(
            f"static tuned {name}",
            f"points of thresholds for each sample over static ones, {name}, fine-tuned",
            after - _points(tuned_static),
            "points",
        ),
        Result(
            f"static activity {name}",
            f"active inputs of the second layer, static thresholds, {name}, fine-tuned",
            100 * _activity(parts, tuned_static),
            "%",
        ),
    ]
    if judged:
        results.append(_timed(dense[0].model, exact[0], parts[0], name))
        recovered = (after - before) / (_points(dense) - before)
        quantity = f"part of the drop that fine-tuning recovers, winners {name}"
        results.append(Result("recovered", quantity, 100 * recovered, "%", holds=recovered >= 0.6))
    return results


def _timed(dense: nn.Module, masked: nn.Module, part: _Part, name: str) -> Result:
    """What finding the winners costs on a CPU, which skips nothing."""
    candidates = {"dense": dense.eval(), "winners": copy.deepcopy(masked).eval()}
    timing = measure(candidates, _inputs(part.splits.test, 64), timer=time_on_thread)["winners"]
    quantity = f"measured speed-up of the dense products with winners {name}, batch 64, 1 thread"
    return Result("time", quantity, timing.speedup, "x")


def _joint(parts: list[_Part]) -> list[Result]:
    dense = [_dense(part, nn.ReLU) for part in parts]
    every_alone, every_joint = (
        _every_strength(parts, dense, strength) for strength in (0.0, parts[0].setting.activations)
    )
    alone, joint = (_best(parts, every, dense) for every in (every_alone, every_joint))
    masked = [
        part.tune(_exact(network.model, RATES[0], part), Freeze())
        for part, network in zip(parts, alone, strict=True)
    ]
    results = []
    for id, what, networks in (
        ("relu", "dense MLP with ReLU", dense),
        ("alone", "L1 on weights", alone),
        ("masked", "L1 on weights, then winners 0.12 and 0.24", masked),
        ("joint", "L1 on weights and activations", joint),
    ):
        left, lost = 100 * _left(parts, networks, "test"), _points(dense) - _points(networks)
        claim = "mlp-macs" if id == "masked" else None
        results += [
            Result(f"{id} accuracy", f"test accuracy, {what}", _points(networks), "%"),
            Result(f"{id} left", f"multiply-accumulates left, {what}", left, "%", claim=claim),
        ]
        if id in ("masked", "joint"):
            results.append(Result(f"{id} lost", f"accuracy lost, {what}", lost, "points", holds=lost <= 1.0))
    saved = 100 - 100 * _left(parts, joint, "test")
    results.append(Result("saved", "multiply-accumulates saved, L1 on both", saved, "%", claim="saved-least"))
    return results + _compared(parts, every_alone, every_joint)


def _compared(parts: list[_Part], alone: list[list[_Network]], joint: list[list[_Network]]) -> list[Result]:
    """At every strength on weights, what the penalty on activations beside it changes."""
    pairs = list(zip(alone, joint, strict=True))
    fewer = statistics.geometric_mean(_left(parts, a, "test") / _left(parts, j, "test") for a, j in pairs)
    lost = _mean(_points(a) - _points(j) for a, j in pairs)
    beside = "L1 on activations beside the same L1 on weights, mean over strengths"
    return [
        Result("fewer", f"fewer MACs by {beside}", fewer, "x", claim="joint", holds=fewer > 1),
        Result("fewer lost", f"accuracy lost by {beside}", lost, "points", holds=lost <= 0.5),
    ]


def _every_strength(parts: list[_Part], dense: list[_Network], activations: float) -> list[list[_Network]]:
    return [
        [_penalized(part, network, weights, activations) for part, network in zip(parts, dense, strict=True)]
        for weights in parts[0].setting.weights
    ]


def _best(parts: list[_Part], every: list[list[_Network]], dense: list[_Network]) -> list[_Network]:
    """The fewest MACs on validation data among those that are accurate on it; dense if none is."""
    allowed = _mean(network.validation for network in dense) - ALLOWED_LOSS
    accurate = [networks for networks in every if _mean(n.validation for n in networks) >= allowed]
    return min(accurate, key=lambda networks: _left(parts, networks, "validation"), default=dense)


def _dense(part: _Part, activation: Callable[[], nn.Module]) -> _Network:
    torch.manual_seed(part.seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(prod(part.splits.train.shape), 300),
        activation(),
        nn.Linear(300, 100),
        activation(),
        nn.Linear(100, part.splits.train.classes),
    )
    return part.train(model, part.setting.dense)


def _penalized(part: _Part, dense: _Network, weights: float, activations: float) -> _Network:
    """L1 on weights, and on activations where their strength is not 0, then fine-tuned with zeros held."""
    structure = Structure([Term(elements(name), Lasso(), weights) for name in WEIGHTS], threshold=1e-3)
    quiet = Activations([Term(elements(name), L1(), activations) for name in HIDDEN])
    learned = part.train(dense.model, part.setting.learn, structure, quiet)
    return part.train(learned.model, part.setting.tune, Freeze(), quiet, rate=0.02)


def _exact(model: nn.Module, rates: tuple[float, float], part: _Part, sample: float = 1.0) -> nn.Module:
    copied = copy.deepcopy(model)
    insert_winners(copied, dict(zip(HIDDEN, rates, strict=True)), sample=sample, dropout=DROPOUT)
    return copied


def _sampled(model: nn.Module, rates: tuple[float, float], part: _Part) -> nn.Module:
    return _exact(model, rates, part, SAMPLE)


def _static(model: nn.Module, rates: tuple[float, float], part: _Part) -> nn.Module:
    """One threshold for all samples, at which training data are as active as with winners."""
    copied = copy.deepcopy(model).eval()
    inputs = _inputs(part.splits.train, 2000)
    for name, rate in zip(HIDDEN, rates, strict=True):
        with torch.no_grad(), captured(copied, [name]) as found:
            copied(inputs)
        threshold = winner_threshold(found.tensors[name].reshape(1, -1), rate).item()
        dropout = nn.Dropout(DROPOUT * rate**0.5)
        insert_after(copied, {name: [nn.Hardshrink(threshold), dropout]})
    return copied


def _as_they_are(parts: list[_Part], models: list[nn.Module]) -> list[_Network]:
    return [part.network(model) for part, model in zip(parts, models, strict=True)]


def _inputs(data: Any, most: int) -> Tensor:
    return torch.stack([data[i][0] for i in range(min(most, len(data)))])


def _points(networks: Iterable[_Network]) -> float:
    return 100 * _mean(network.test for network in networks)


def _left(parts: list[_Part], networks: list[_Network], data: str) -> float:
    return _mean(part.cost(n.model, data).left for part, n in zip(parts, networks, strict=True))


def _activity(parts: list[_Part], networks: list[_Network]) -> float:
    """Share of the inputs of the second layer that are not zero."""
    return _mean(part.cost(n.model, "test").rows[1].inputs for part, n in zip(parts, networks, strict=True))


def _mean(values: Iterable[float]) -> float:
    return statistics.mean(values)
