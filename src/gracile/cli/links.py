"""``gracile links``: would gradients in few bits help on this network, before machines are rented."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from gracile.cli import options
from gracile.cost import FORMULA, Forecast, Link, Way, advise, forecast, probe
from gracile.errors import UsageError
from gracile.report import Code, Figure, Section, Table, Text, console, page, scaling, si
from gracile.train import Splits, Task, ranks

_WAYS: tuple[Way, ...] = ("fp32", "fp16", "powersgd", "gather", "exact", "four-bit", "ternary", "base3")


def command(
    model: options.Model = "lenet",
    dataset: options.Dataset = None,
    data: options.Data = None,
    batch_size: Annotated[int, typer.Option(help="Samples of one step on each machine.", min=1)] = 64,
    mbit: Annotated[
        float | None, typer.Option(help="Rate of the links, megabits a second; by default measured.")
    ] = None,
    ms: Annotated[float, typer.Option(help="Latency one way, milliseconds; with --mbit.", min=0)] = 0.1,
    compute: Annotated[
        float | None, typer.Option(help="Seconds of a step on one machine; by default measured here.")
    ] = None,
    machines: Annotated[
        str, typer.Option(help="Numbers of machines, separated by commas.")
    ] = "2,4,8,16,32,64,128,256,512",
    overlap: Annotated[
        float, typer.Option(help="Share of the computing behind which messages hide.", min=0, max=1)
    ] = 0.5,
    report: Annotated[
        Path | None, typer.Option(help="HTML page to write, with a picture; by default none.")
    ] = None,
    seed: options.Seed = 0,
) -> None:
    """Forecast a training step on many machines: fp32, fp16, PowerSGD, and TernGrad's modes.

    The time to compute is measured here, or taken from --compute. Links are measured in ten seconds where
    torchrun has started several processes, or taken from --mbit and --ms.

    Example: gracile links --model resnet20 --dataset cifar10 --mbit 1000 --ms 0.1

    Example: torchrun --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=10.0.0.1:29400
    --no-python gracile links --model resnet20
    """
    counts = options.numbers(machines)
    network, splits, task, recipe = options.prepare(model, None, dataset, data, seed)
    link, rank = _link(mbit, ms)
    computing = _step_s(network, splits, task, batch_size) if compute is None else compute
    if rank == 0:
        title = f"{recipe.model} on {recipe.dataset}, {batch_size} samples on each machine"
        shapes = [tuple(p.shape) for p in network.parameters() if p.requires_grad]
        found = forecast(shapes, computing, link, ranks=counts, ways=_WAYS, overlap=overlap)
        said = _said(network, link, computing)
        sections = _sections(found, counts, said)
        console(title, sections)
        if report:
            page(title, [Section("More machines", (_picture(found, said),)), *sections], report)
            Console().print(f"Report: [link={report.resolve().as_uri()}]{report}[/link]")
    ranks.leave()


def _link(mbit: float | None, ms: float) -> tuple[Link, int]:
    """The link that was given or measured, and which rank this is."""
    given = None if mbit is None else Link.of(mbit, ms)
    rank, world = ranks.join(torch.device("cpu"))
    if given is not None:
        return given, rank
    if world < 2:
        raise UsageError(
            "forecasting a step",
            got="one process, and no --mbit",
            expected="several processes to measure between, or the rate of the links",
            hint="gracile links --mbit 1000 --ms 0.1",
        )
    return probe(), rank


def _step_s(network: nn.Module, splits: Splits, task: Task, batch_size: int) -> float:
    """Median seconds of a training step on this machine alone."""
    inputs, target = next(iter(DataLoader(splits.train, batch_size)))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6)
    taken = []
    network.train()
    for _ in range(8):
        began = time.perf_counter()
        task.loss(network(inputs), target).backward()
        optimizer.step()
        optimizer.zero_grad()
        taken.append(time.perf_counter() - began)
    return median(taken[2:])


def _said(network: nn.Module, link: Link, computing: float) -> str:
    numbers = sum(p.numel() for p in network.parameters())
    return (
        f"Link: {si(link.bytes_per_s * 8, 'bit/s')}, latency {si(link.latency_s, 's')}, "
        f"packing {si(1e6 * link.packing_s, 's')} for a million numbers. "
        f"Computing: {si(computing, 's')} a step. {numbers:,} parameters."
    )


def _picture(found: Sequence[Forecast], said: str) -> Figure:
    """Of the ways that differ most; base3 is next to ternary, gather good for few machines only."""
    curves: dict[str, dict[int, float]] = {way: {} for way in _WAYS if way not in ("gather", "base3")}
    for each in found:
        if each.way in curves:
            curves[each.way][each.ranks] = each.speedup
    return scaling(curves, said)


def _sections(found: Sequence[Forecast], counts: tuple[int, ...], said: str) -> list[Section]:
    best = advise([each for each in found if each.way != "powersgd"])  # which gloo hardly runs
    steps, advice = [], []
    for count in counts:
        ways = {each.way: each for each in found if each.ranks == count}
        plain, chosen = ways["fp32"], ways[best[count]]
        steps.append((count, *(f"{1e3 * ways[way].step_s:.3g}" for way in _WAYS)))
        gain = f"{plain.step_s / chosen.step_s:.1f}×"
        sent = f"{plain.bytes_sent / 1e6:.2f} → {chosen.bytes_sent / 1e6:.2f}"
        advice.append((count, chosen.way, gain, sent, f"{chosen.speedup:.1f}×"))
    columns = ("N", "advice", "faster than fp32", "MB sent", "N machines over one")
    rule = "Gradients stay as they are (fp32) where nothing is 1.2 times as fast."
    return [
        Section(
            "A step in milliseconds, on N machines", (Text(said), Table(("N", *_WAYS), tuple(steps), ""))
        ),
        Section("What to take", (Table(columns, tuple(advice), rule),)),
        Section("The formula", (Code(FORMULA),)),
    ]
