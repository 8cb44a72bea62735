"""Trained sparse networks against the fastest dense engine: accuracy and time of the same networks.

    python benchmarks/sparse_trained.py --networks runs/trained
    python benchmarks/sparse_trained.py --networks runs/trained --only resnet20 --kinds dense,single

The networks of work T2: an AlexNet for small images, an LSTM language model, two ResNets. What the folder
does not hold yet is trained (all: an hour and a half on one core) and kept there, each as soon as it is done;
so a second call only measures. With all networks and kinds the figures are entered for work T2 as well.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from record import RESULTS, record
from rich.console import Console
from rich.table import Table

from gracile.papers import Result
from gracile.papers import record as enter
from gracile.papers.t02_sparse_conv.parts import KINDS, PARTS
from gracile.papers.t02_sparse_conv.recipe import layers, scores, times
from gracile.papers.t02_sparse_conv.timing import Timed, timed
from gracile.papers.t02_sparse_conv.training import networks
from gracile.runtime import engines


def main(
    networks_: Annotated[Path, typer.Option("--networks", help="where they are kept")],
    only: Annotated[str, typer.Option(help="networks, separated by commas")] = ",".join(PARTS["cpu"]),
    kinds: Annotated[str, typer.Option(help="dense and others, separated by commas")] = ",".join(KINDS),
    seed: Annotated[int, typer.Option(help="of the trainings")] = 0,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 15,
) -> None:
    """Train what is missing, then score and time."""
    torch.set_num_threads(1)
    console = Console(width=130)
    began = time.perf_counter()
    results: list[Result] = []
    rows: list[dict[str, Any]] = []
    for name in only.split(","):
        part = PARTS["cpu"][name]
        splits = part.splits(seed)
        trained = networks(name, part, splits, seed, kinds.split(","), networks_)
        example = part.example(splits.test[0][0])
        found = timed(trained, example, rounds=rounds)
        own = scores(name, part, trained, splits) + times(name, part, found)
        own += layers(name, part, trained, example)
        results += own
        console.print(_table(name, own))
        rows.append({"network": name, "results": [asdict(result) for result in own], **_details(found)})
    command = (
        f"python benchmarks/sparse_trained.py --networks FOLDER --only {only} --kinds {kinds} --seed {seed}"
    )
    versions = {engine.name: engine.version for engine in engines().present}
    print("Figures:", record("sparse_trained", command, {"rows": rows, "engines": versions}).name)
    if {*only.split(",")} == set(PARTS["cpu"]) and {*kinds.split(",")} == set(KINDS):
        enter(RESULTS, "T2", "cpu", seed, results, time.perf_counter() - began, command)


def _table(name: str, results: list[Result]) -> Table:
    table = Table("measured", "value", "criterion", title=name)
    for result in results:
        held = {None: "", True: "holds", False: "does not hold"}[result.holds]
        table.add_row(result.quantity, f"{result.value:.4g} {result.unit}", held)
    return table


def _details(found: Timed) -> dict[str, Any]:
    return {
        "refused": dict(found.refused),
        "plans": {kind: asdict(program.plan) for kind, program in found.programs.items()},
        "reports": {kind: dict(program.report()) for kind, program in found.programs.items()},
    }


if __name__ == "__main__":
    typer.run(main)
