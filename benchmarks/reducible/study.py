"""Try every architecture, each in a process of its own, and write down what came of it.

Run with ``python -m reducible.study`` from the folder ``benchmarks``, or ``make coverage``. A study that was
interrupted goes on where it stopped.
"""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from reducible import catalog, ledger, table
from reducible.architecture import Architecture, Built
from reducible.trial import Trial, attempt

RESULTS = Path(__file__).parents[2] / "results" / "coverage" / "trials.jsonl"
PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
LIMIT_S = 300.0  # of wall clock for one architecture
MEMORY = 10 * 2**30  # bytes that one may map

app = typer.Typer(add_completion=False)
console = Console()


@app.command()
def main(
    source: Annotated[
        list[str] | None, typer.Option(help="Where from: " + ", ".join(catalog.SOURCES))
    ] = None,
    only: Annotated[str, typer.Option(help="Shell pattern of names.")] = "*",
    jobs: Annotated[int, typer.Option(min=1, help="Processes at a time.")] = 1,
    again: Annotated[bool, typer.Option(help="Repeat what was tried before.")] = False,
    strict: Annotated[bool, typer.Option(help="Check norms='keep' where no plain mask exists.")] = True,
    results: Annotated[Path, typer.Option(help="File of trials, one JSON line each.")] = RESULTS,
    page: Annotated[Path | None, typer.Option(help="Page to write the table to.")] = None,
) -> None:
    """Remove half of every block of every architecture and say what happened."""
    known = ledger.read(results)
    waiting = []
    for name in source or catalog.SOURCES:
        try:
            found = catalog.matching(name, only)
        except ImportError as error:
            console.print(f"{name} is left out: {error}")
            continue
        waiting += [a for a in found if again or a.key not in known]
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,  # a thread and fork do not go together
    ) as progress:
        task = progress.add_task("trials", total=len(waiting))
        for trial in tried(waiting, jobs, strict):
            ledger.append(results, trial)
            known[f"{trial.source}/{trial.name}"] = trial
            if trial.outcome != "ok":
                progress.console.print(f"{trial.source}/{trial.name}: {trial.outcome}: {trial.reason}")
            progress.update(task, advance=1, description=trial.name[:40], refresh=True)
    ledger.rewrite(results, known.values())
    if page is not None:
        table.write(page, list(known.values()))
    for line in table.summary(list(known.values())):
        console.print(line)


@dataclass(frozen=True)
class _Running:
    architecture: Architecture
    process: BaseProcess
    answer: Connection
    until: float


def tried(waiting: list[Architecture], jobs: int, strict: bool) -> Iterator[Trial]:
    """The trials as they end."""
    queue, running = list(reversed(waiting)), list[_Running]()
    _warm_up()
    gc.freeze()
    while queue or running:
        while queue and len(running) < jobs:
            running.append(_started(queue.pop(), strict))
        wait(
            [one.answer for one in running],
            timeout=max(0.1, min(r.until for r in running) - time.monotonic()),
        )
        for one in list(running):
            trial = _ended(one)
            if trial is not None:
                running.remove(one)
                yield trial


def _warm_up() -> None:
    """Let torch import what it imports at first use, once and before any process is forked."""
    torch.set_num_threads(1)

    def build(batch: int) -> Built:
        layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(1), nn.Linear(64, 2)
        return Built(nn.Sequential(*layers), (torch.randn(batch, 3, 6, 6),))

    attempt(Architecture("warm-up", "study", "study", build))


def _started(architecture: Architecture, strict: bool) -> _Running:
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(architecture, strict, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Running(architecture, process, ours, time.monotonic() + LIMIT_S)


def _child(architecture: Architecture, strict: bool, answer: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    torch.set_num_threads(1)
    answer.send(attempt(architecture, strict=strict))


def _ended(one: _Running) -> Trial | None:
    """What a process says; or that it died or ran out of time; None while it runs."""
    architecture = one.architecture
    trial = Trial(architecture.name, architecture.source, architecture.family, "failed")
    if one.answer.poll():
        try:
            trial = one.answer.recv()
        except EOFError:
            one.process.join()
            trial = Trial(
                *(trial.name, trial.source, trial.family, "failed"),
                reason=f"the process died (exit code {one.process.exitcode})",
            )
    elif time.monotonic() > one.until:
        one.process.kill()
        trial = Trial(
            trial.name, trial.source, trial.family, "timeout", reason=f"not done after {LIMIT_S:.0f} s"
        )
    else:
        return None
    one.process.join()
    return trial


if __name__ == "__main__":
    app()
