"""C3: hidden units of stacked LSTMs learned away, against the dense network and against direct design.

Three networks see the same data for as many epochs with the same optimizer, rates, clipping and dropout:
the *dense* one; one whose units are penalized in the first epochs, removed, and trained on for the rest
(*ISS*); and one that has the sizes of the second from the start (*direct design*). The rate is constant
while structure is learned and then falls to zero along half a cosine, for all three. Test data only report.

At scale ``cpu`` only the first :data:`TOKENS` words of the training text are learned from (validation and
test text are whole); windows are shuffled, and each is read from an empty memory, also when perplexity is
measured. Matrix products of the training are rounded to bfloat16, those of the results are not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from gracile.algebra import Lasso, Term
from gracile.cost import count, measure
from gracile.graph import Graph, watch
from gracile.papers.registry import Result, Scale
from gracile.reduce import dead, remove
from gracile.train import (
    Method,
    Schedule,
    Splits,
    Structure,
    Task,
    classification,
    cosine,
    evaluate,
    fit,
    language_modeling,
    warmup,
)
from gracile.zoo import LSTMClassifier, LSTMLanguageModel, Windows, digits, ptb

GONE = 50.0  # percent of the hidden units of each layer that have to go
WORSE = 2.0  # percent of perplexity, or points of accuracy, that this may cost
TOKENS = 300_000  # of 929589: what two shared cores can read eight times over in each of three trainings
CUT = 1e-2  # a unit without a larger weight goes: at a constant rate the penalty leaves about as much
WARMUP = 0.3  # share of the epochs with penalty over which it grows to its strength


@dataclass(frozen=True)
class _Setting:
    """Data, network, epochs with the penalty and after it, strength of each layer, optimizer.

    ``batches`` are the batch sizes of the measured latency.
    """

    splits: Callable[[int], Splits]
    task: Task
    network: Callable[[Sequence[int]], nn.Module]
    widths: tuple[int, int]
    learn: int
    tune: int
    strengths: tuple[float, float]
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
        learn=40,
        tune=30,
        strengths=(6.5e-3, 6.5e-3),
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9),
        clip=1.0,
        batch_size=32,
        batches=(1, 64),
    ),
    "cpu": _Setting(
        _text,
        language_modeling(),
        lambda widths: LSTMLanguageModel(10_000, widths, embedding=200, dropout=0.3),
        widths=(256, 256),
        learn=3,
        tune=5,
        strengths=(3e-4, 4.5e-4),
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
    start = setting.network(setting.widths)

    learned = copy.deepcopy(start)
    structure = penalty(watch(learned, example), learned, setting.strengths)
    _train(learned, splits, setting, setting.learn, seed, structure)
    reduction = remove(learned, example, units=gone)
    iss = reduction.model
    _train(iss, splits, setting, setting.tune, seed, schedule=cosine())

    torch.manual_seed(seed)
    direct = _whole(setting.network(widths(iss)), splits, setting, seed)
    dense = _whole(start, splits, setting, seed)
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


def penalty(graph: Graph, model: nn.Module, strengths: Sequence[float]) -> Structure:
    """Group Lasso on the hidden units of each LSTM, the strength growing over the first epochs."""
    groupings = [graph.grouping([block]) for block in hidden(graph, model).values()]
    terms = [Term(g, Lasso(), strength) for g, strength in zip(groupings, strengths, strict=True)]
    return Structure(terms, schedule=warmup(WARMUP))


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
    return [unit for unit in dead(graph, model, threshold=CUT) if unit in units]


def widths(model: nn.Module) -> tuple[int, ...]:
    """Hidden units of each LSTM."""
    return tuple(module.hidden_size for module in model.modules() if isinstance(module, nn.LSTM))


def _whole(model: nn.Module, splits: Splits, setting: _Setting, seed: int) -> nn.Module:
    """Train a network of fixed sizes in the same two parts."""
    _train(model, splits, setting, setting.learn, seed)
    _train(model, splits, setting, setting.tune, seed, schedule=cosine())
    return model


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
