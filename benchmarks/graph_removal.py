"""CPU seconds to learn a network's units, choose half of them, and slice them off.

    python benchmarks/graph_removal.py

One thread, ``time.process_time``, random weights, batch 1 of 224 x 224. Reported per network: the median of
each part over all rounds (the first round, in which torch warms up, is not counted), their sum, and apart
from it the time that verification takes, which is dominated by forward passes.
"""

from __future__ import annotations

import statistics
import time
from typing import Annotated, Any

import torch
import typer
from architectures import ARCHITECTURES
from record import record
from rich.console import Console
from rich.table import Table

from gracile.graph import watch
from gracile.reduce import apply_, smallest, verify
from gracile.reduce.copies import duplicate

PARTS = ("forward", "watch", "choose", "cut", "slice", "verify")


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Medians by part, in CPU seconds, and what became of the network."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    image = torch.randn(1, 3, 224, 224)
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(rounds + 1):
        marks = [time.process_time()]

        def mark(marks: list[float] = marks) -> None:
            marks.append(time.process_time())

        with torch.no_grad():
            model(image)
        mark()
        graph = watch(model, image)
        mark()
        units = smallest(graph, model, 0.5)
        mark()
        cut = graph.cut(units)
        mark()
        small = duplicate(model)
        apply_(small, cut)
        mark()
        verdict = None
        if number == rounds:
            verdict = verify(model, graph, units, cut, ((image,), {}))
        mark()
        for part, start, end in zip(PARTS, marks, marks[1:], strict=False):
            if number and (part != "verify" or number == rounds):
                seconds[part].append(end - start)
    medians = {part: round(statistics.median(found), 4) for part, found in seconds.items()}
    assert verdict is not None
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    return {
        "cpu_s": medians,
        "total_cpu_s": round(sum(medians[p] for p in ("watch", "choose", "cut", "slice")), 4),
        "steps": len(graph.steps),
        "units": len(graph.units),
        "blocks": len(graph.blocks),
        "removed_units": len(units),
        "parameters_left": round(count(small) / count(model), 4),
        "verdict": verdict.kind,
        "error": verdict.error,
    }


def main(rounds: Annotated[int, typer.Option(help="repetitions; medians are reported")] = 5) -> None:
    """Measure graph, choice, cut and slicing of every architecture; verification apart."""
    torch.set_num_threads(1)
    rows = {name: measure(name, rounds) for name in ARCHITECTURES}
    table = Table(title="CPU seconds, one thread")
    for heading in ("", "graph to slices", "verification", "verdict", "error", "parameters left"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, row in rows.items():
        cells = (f"{row['total_cpu_s']:.2f}", f"{row['cpu_s']['verify']:.2f}", row["verdict"])
        table.add_row(name, *cells, f"{row['error']:.1e}", f"{row['parameters_left']:.2f}")
    Console().print(table)
    command = f"python benchmarks/graph_removal.py --rounds {rounds}"
    print(record("graph_removal", command, {"rounds": rounds, "threads": 1, "networks": rows}))


if __name__ == "__main__":
    typer.run(main)
