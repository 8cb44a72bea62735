"""C3: hidden units of stacked LSTMs learned away, against the dense network and against direct design.

Three networks see the same data for as many epochs with the same optimizer, rates and clipping: the *dense*
one; one that starts from it half-trained, whose units then go by group Lasso over their components and are
removed, and which is trained on for the rest (*ISS*); and one that has the sizes of the second from the start
(*direct design*). The rate is constant until structure has been learned and then falls to zero along half a
cosine, for all three. Test data only report.

How many units go is a setting; the strength finds itself (:class:`gracile.train.Reach`). Only the smallest
components pay the penalty, so that those that stay do not shrink with them.

At scale ``cpu`` only the first :data:`TOKENS` words of the training text are learned from (validation and
test text are whole); windows are shuffled, and each is read from an empty memory, also when perplexity is
measured. Matrix products of the training are rounded to bfloat16, those of the results are not. Every part of
a training has a seed of its own: with one seed for all, a network would meet the same batches under the same
dropout masks again, and would learn them by heart.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from gracile.cost import count, measure
from gracile.graph import Graph, watch
from gracile.papers.registry import Result, Scale
from gracile.reduce import dead, remove
from gracile.train import (
    Method,
    Reach,
    Schedule,
    Splits,
    Task,
    classification,
    cosine,
    evaluate,
    fit,
    language_modeling,
)
from gracile.zoo import LSTMClassifier, LSTMLanguageModel, Windows, digits, ptb

GONE = 50.0  # percent of the hidden units of each layer that have to go
WORSE = 2.0  # percent of perplexity, or points of accuracy, that this may cost
TOKENS = 200_000  # of 929589: what one shared core can read twelve times over in each of three trainings
BY = 0.8  # the part of the epochs with penalty by which the units are gone


@dataclass(frozen=True)
class _Setting:
    """Data, network, epochs before the penalty, with it and after removal, share of the units that goes.

    ``batches`` are the batch sizes of the measured latency.
    """

    splits: Callable[[int], Splits]
    task: Task
    network: Callable[[Sequence[int]], nn.Module]
    widths: tuple[int, int]
    grow: int
    learn: int
    tune: int
    share: float
    optimizer: Callable[..., torch.optim.Optimizer]
    clip: float
    batch_size: int
    precision: torch.dtype = torch.float32
    batches: tuple[int, ...] = (1, 10)


def _text(seed: int) -> Splits:
    """Windows of 40 words to learn from, of 120 to be judged by; running text has one division."""
    parts = ptb()
    train = Windows(parts.train.stream[:TOKENS], parts.train.vocabulary, steps=40, batch_size=10)
    longer = (
        Windows(part.stream, part.vocabulary, steps=120, batch_size=10)
        for part in (parts.validation, parts.test)
    )
    return Splits(train, *longer)


_SETTINGS: dict[Scale, _Setting] = {
    "tiny": _Setting(
        digits,
        classification(),
        lambda widths: LSTMClassifier(8, 10, widths),
        widths=(64, 64),
        grow=20,
        learn=20,
        tune=30,
        share=0.5,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        clip=1.0,
        batch_size=32,
        batches=(1, 64),
    ),
    "cpu": _Setting(
        _text,
        language_modeling(),
        lambda widths: LSTMLanguageModel(10_000, widths, embedding=200, dropout=0.5),
        widths=(400, 400),
        grow=5,
        learn=2,
        tune=5,
        share=0.5,
        optimizer=partial(torch.optim.SGD, lr=20.0),
        clip=0.25,
        batch_size=10,
        precision=torch.bfloat16,
    ),
}


def run(scale: Scale, seed: int) -> list[Result]:
    """Scores of the three networks, hidden units left, cost and measured latency."""
    setting = _SETTINGS[scale]
    splits = setting.splits(seed)
    example = splits.validation[0][0].unsqueeze(0)
    torch.manual_seed(seed)
    dense = setting.network(setting.widths)
    grow, learn, tune = (10 * seed + part for part in range(3))  # seeds of the parts
    _train(dense, splits, setting, setting.grow, grow)

    learned = copy.deepcopy(dense)
    reach = penalty(watch(learned, example), learned, setting.share)
    _train(learned, splits, setting, setting.learn, learn, reach)
    reduction = remove(learned, example, units=gone)
    iss = reduction.model
    _train(iss, splits, setting, setting.tune, tune, schedule=cosine())

    torch.manual_seed(seed)
    direct = setting.network(widths(iss))
    _train(direct, splits, setting, setting.grow, grow)
    for network in (direct, dense):
        _train(network, splits, setting, setting.learn, learn)
        _train(network, splits, setting, setting.tune, tune, schedule=cosine())
    return [
        *_scores({"dense": dense, "ISS": iss, "direct design": direct}, splits, setting),
        *_sizes(dense, iss),
        Result(
            "equality",
            "largest relative difference, masked to reduced",
            reduction.verdict.error,
            holds=reduction.verdict.error <= 1e-5,
        ),
        *_costs(dense, iss, example, setting.batches),
    ]


def penalty(graph: Graph, model: nn.Module, share: float) -> Reach:
    """Group Lasso on the smallest ``share`` of the hidden units of each LSTM, until they are gone."""
    return Reach([graph.grouping([block]) for block in hidden(graph, model).values()], share, by=BY)


def hidden(graph: Graph, model: nn.Module) -> dict[str, int]:
    """The block of the hidden units of each LSTM, by the module's name: they contract ``weight_hh_l0``."""
    owner = {
        (part.tensor, part.dim): block.id
        for block in graph.blocks
        for part in graph.units[block.units[0]].slices
    }
    return {
        name: owner[f"{name}.weight_hh_l0", 1]
        for name, module in model.named_modules()
        if isinstance(module, nn.LSTM)
    }


def gone(graph: Graph, model: nn.Module) -> list[int]:
    """Hidden units that the penalty left nothing of; what they are fed with stays as wide as it is."""
    units = {unit for block in hidden(graph, model).values() for unit in graph.blocks[block].units}
    return [unit for unit in dead(graph, model) if unit in units]


def widths(model: nn.Module) -> tuple[int, ...]:
    """Hidden units of each LSTM."""
    return tuple(module.hidden_size for module in model.modules() if isinstance(module, nn.LSTM))


def _train(
    model: nn.Module,
    splits: Splits,
    setting: _Setting,
    epochs: int,
    seed: int,
    *methods: Method,
    schedule: Schedule | None = None,
) -> None:
    # The cache of casted weights would outlive the optimizer's steps.
    with torch.autocast("cpu", setting.precision, setting.precision != torch.float32, cache_enabled=False):
        fit(
            model,
            splits,
            setting.task,
            epochs=epochs,
            batch_size=setting.batch_size,
            optimizer=setting.optimizer,
            schedule=schedule,
            methods=methods,
            clip=setting.clip,
            select="last",
            seed=seed,
        )


def _scores(networks: Mapping[str, nn.Module], splits: Splits, setting: _Setting) -> list[Result]:
    task = setting.task
    text = task.better == "lower"
    unit, scale = ("", 1.0) if text else ("%", 100.0)
    results, test = [], {}
    for name, network in networks.items():
        for part, data in (("validation", splits.validation), ("test", splits.test)):
            score = scale * evaluate(network, data, task, setting.batch_size).score
            results.append(Result(f"{name} {part}", f"{part} {task.name}, {name}", score, unit))
            test[name] = score

    def behind(name: str, other: str) -> float:
        return 100 * (test[name] / test[other] - 1) if text else test[other] - test[name]

    worse, gained = behind("ISS", "dense"), behind("direct design", "ISS")
    unit, what = ("%", "higher perplexity") if text else ("points", "lower accuracy")
    return [
        *results,
        Result("worse", f"{what} of ISS than of dense", worse, unit, "no-loss", worse <= WORSE),
        Result("direct", f"{what} of direct design than of ISS", gained, unit, "direct-design", gained > 0),
    ]


def _sizes(dense: nn.Module, iss: nn.Module) -> list[Result]:
    results = []
    for number, (before, after) in enumerate(zip(widths(dense), widths(iss), strict=True), start=1):
        share = 100 * (1 - after / before)
        results += [
            Result(f"width {number}", f"hidden units left of {before}, layer {number}", after, "", "sizes"),
            Result(
                f"gone {number}", f"hidden units gone, layer {number}", share, "%", "sizes", share >= GONE
            ),
        ]
    return results


def _costs(dense: nn.Module, iss: nn.Module, example: Tensor, batches: Sequence[int]) -> list[Result]:
    before, after = count(dense, example), count(iss, example)
    results = [
        Result("dense parameters", "parameters, dense", before.parameters),
        Result("ISS parameters", "parameters, ISS", after.parameters),
        Result("dense MACs", "multiply-accumulates for one example, dense", before.macs),
        Result("ISS MACs", "multiply-accumulates for one example, ISS", after.macs),
        Result("parameters", "dense parameters over ISS", before.parameters / after.parameters, "x"),
        Result("macs", "dense MACs over ISS", before.macs / after.macs, "x"),
        *_layers(dense, iss),
    ]
    for batch in batches:
        inputs = example.expand(batch, *example.shape[1:]).contiguous()
        timing = measure({"dense": dense.eval(), "ISS": iss.eval()}, inputs)["ISS"]
        what = f"measured speed-up of the network, batch {batch}, {timing.threads} thread"
        results.append(Result(f"latency {batch}", what, timing.speedup, "x", "speed-up"))
    return results


def _layers(dense: nn.Module, iss: nn.Module) -> list[Result]:
    """The LSTM layers alone, without embedding and decoder, on random inputs of 35 steps."""
    before, after = (
        [module for module in network.modules() if isinstance(module, nn.LSTM)] for network in (dense, iss)
    )
    inputs = torch.randn(10, 35, before[0].input_size, generator=torch.Generator().manual_seed(0))
    timing = measure({"dense": partial(_chain, before), "ISS": partial(_chain, after)}, inputs)["ISS"]
    what = "measured speed-up of the LSTM layers, batch 10, 35 steps, 1 thread"
    return [Result("latency layers", what, timing.speedup, "x", "speed-up", timing.speedup_lower > 1)]


def _chain(layers: Sequence[nn.LSTM], x: Tensor) -> Tensor:
    for layer in layers:
        x = cast(Tensor, layer(x)[0])
    return x
