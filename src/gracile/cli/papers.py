"""``gracile papers``: the works, their claims, and our measurements beside them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table

from gracile.cli import options
from gracile.papers import SCALES, Ledger, Scale, insert, ledger, markdown, record, work, works
from gracile.papers import run as run_recipe

app = typer.Typer(
    help="The works that gracile implements: what was published, and what we measured.",
    no_args_is_help=True,
)
Id = Annotated[str, typer.Argument(help="Id of the work, e.g. C6.")]
Results = Annotated[Path, typer.Option("--results", help="Folder with the results of runs.")]


@app.command("list")
def list_(results: Results = Path("results")) -> None:
    """All works that are implemented, one line each."""
    table = Table("id", "work", "venue", "claims", "seeds measured")
    for id, found in works().items():
        seeds = ", ".join(f"{scale}: {len(ledger(results, id, scale).seeds)}" for scale in SCALES)
        table.add_row(
            id, found.header.title, f"{found.header.venue} {found.header.year}", str(len(found.claims)), seeds
        )
    Console().print(table)


@app.command()
def show(id: Id, results: Results = Path("results")) -> None:
    """A work's card, its claims, and the results of all runs beside them."""
    console = Console()
    found = work(id)
    console.print(Markdown(found.card))
    claims = Table("claim", "published", "conditions", "read in", title="What was published")
    for claim in found.claims:
        value = "" if claim.value is None else f"{claim.value:g} {claim.unit}".strip()
        claims.add_row(claim.quantity, value, claim.where, claim.source)
    console.print(claims)
    for scale in SCALES:
        measured = ledger(results, id, scale)
        if measured.seeds:
            console.print(_table(measured))


@app.command()
def run(
    id: Id,
    scale: Annotated[
        Scale, typer.Option(help="tiny: bundled digits, minutes. cpu: real data, tens of minutes.")
    ] = "tiny",
    seeds: Annotated[str, typer.Option(help="Seeds, separated by commas; one run each.")] = "0",
    results: Results = Path("results"),
) -> None:
    """Run a work's recipe and add what was measured to the results.

    Every run is a new JSON file with command, environment and seed; nothing is overwritten.

    Example: gracile papers run C6 --scale tiny --seeds 0,1,2
    """
    console = Console()
    header = work(id).header
    for seed in options.numbers(seeds, least=0):
        console.print(f"[bold]{header.id}[/bold], scale {scale}, seed {seed}")
        began = time.perf_counter()
        found = run_recipe(id, scale, seed)
        command = f"gracile papers run {header.id} --scale {scale} --seeds {seed}"
        path = record(results, id, scale, seed, found, time.perf_counter() - began, command)
        console.print(f"Results: {path}")
    console.print(_table(ledger(results, id, scale)))


@app.command()
def table(
    results: Results = Path("results"),
    write: Annotated[
        Path | None, typer.Option(help="A Markdown file; what stands between its markers is replaced.")
    ] = None,
) -> None:
    """Claims beside measurements as Markdown, for the README and the docs."""
    if write:
        insert(write, results)
        typer.echo(f"Tables: {write}")
    else:
        typer.echo(markdown(results))


def _table(measured: Ledger) -> Table:
    table = Table(
        "measured",
        "median",
        "lowest to highest",
        "holds",
        "published",
        title=f"{measured.work}, scale {measured.scale}, seeds {', '.join(map(str, measured.seeds))}",
    )
    for line in measured.lines:
        unit = line.result.unit
        held = "" if line.held is None else f"{line.held[0]} of {line.held[1]}"
        claim = line.claim
        published = "" if claim is None else claim.quantity
        if claim is not None and claim.value is not None:
            published = f"{claim.value:g} {claim.unit}: {claim.quantity}"
        spread = f"{min(line.values):.4g} to {max(line.values):.4g}"
        table.add_row(line.result.quantity, f"{line.median:.4g} {unit}", spread, held, published)
    return table
