"""``gracile bench``: the dense and the reduced network of a run, measured in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from gracile.cli import options
from gracile.cost import environment, measure
from gracile.files import read_json, write_json
from gracile.reduce import load


def command(
    run: Annotated[Path, typer.Argument(help="Folder that gracile reduce wrote.")],
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,64",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions.", min=5)] = 30,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the figures; by default none.")
    ] = None,
) -> None:
    """Measure the latency of a run's dense and reduced network on this machine.

    The two take turns in one process, so that whatever else the machine does hits both alike; the ratio
    is what to trust.

    Example: gracile bench runs/demo --batches 1,16,64 --threads 1,2
    """
    recipe = read_json(run / "model.json", options.Recipe)
    dense = options.construct(recipe)
    options.load_weights(dense, run / "dense.safetensors")
    reduced = load(run / "reduced", options.construct(recipe))
    candidates = {"dense": dense.eval(), "reduced": reduced.eval()}
    torch.manual_seed(0)
    cases = [(b, t) for b in options.numbers(batches) for t in options.numbers(threads)]
    timings = []
    for batch, thread in track(cases, description="measuring", transient=True):
        timings.append((batch, measure(candidates, recipe.examples(batch), rounds=rounds, threads=thread)))
    table = Table(
        "batch", "threads", "dense ms", "reduced ms", "faster", title=f"{recipe.model}, median (quartiles)"
    )
    for batch, timing in timings:
        ratio = timing["reduced"]
        cells = [
            f"{1e3 * t.median_s:.3f} ({1e3 * t.lower_s:.3f} to {1e3 * t.upper_s:.3f})"
            for t in timing.values()
        ]
        faster = f"{ratio.speedup:.2f}x ({ratio.speedup_lower:.2f} to {ratio.speedup_upper:.2f})"
        table.add_row(str(batch), str(ratio.threads), *cells, faster)
    Console().print(table)
    if output:
        write_json(output, {"model": recipe, "timings": timings, "environment": environment()})
