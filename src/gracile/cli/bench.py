"""``gracile bench``: the dense and the reduced network of a run under every engine, measured in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import torch
import typer
from rich.console import Console
from rich.progress import track

from gracile.cli import options
from gracile.cost import Environment, Timing, environment
from gracile.files import read_json, write_json
from gracile.reduce import load
from gracile.report import (
    Block,
    Code,
    Figure,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    console,
    factor,
    facts,
    latency_bars,
    page,
    si,
)
from gracile.runtime import ENGINES, Comparison, Measured, Roster, compare, engines

DENSE, REDUCED = "dense", "reduced"


@final
@dataclass(frozen=True)
class Case:
    """One batch size and number of threads."""

    batch: int
    threads: int
    comparison: Comparison


@final
@dataclass(frozen=True)
class Bench:
    """What the JSON file holds.

    Attributes:
        command: how to do it again.
        model: what was measured.
        engines: name of each that was there -> version.
        missing: name of each other one -> why.
        cases: by batch size and threads.
        environment: the machine.
    """

    command: str
    model: options.Recipe
    engines: Mapping[str, str]
    missing: Mapping[str, str]
    cases: tuple[Case, ...]
    environment: Environment


def command(
    run: Annotated[Path, typer.Argument(help="Folder that gracile reduce wrote.")],
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by commas.")] = "1,64",
    threads: Annotated[str, typer.Option(help="Numbers of threads, separated by commas.")] = "1",
    rounds: Annotated[int, typer.Option(help="Interleaved repetitions.", min=5)] = 30,
    only: Annotated[
        str | None,
        typer.Option(
            "--engines",
            help=f"Some of {', '.join(e.name for e in ENGINES)}, separated by commas; by default all "
            "that are installed, but those that take long to prepare.",
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page to write; by default none.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="JSON file for the figures; by default none.")
    ] = None,
) -> None:
    """Measure the latency of a run's dense and reduced network on this machine, under every engine.

    All take turns in one process, so that whatever else the machine does hits them alike. Ratios are to the
    dense network under the engine that runs it fastest.

    Example: gracile bench runs/demo --batches 1,16 --threads 1,2 --engines torch,onnxruntime
    """
    recipe = read_json(run / "model.json", options.Recipe)
    cases = [(b, t) for b in options.numbers(batches) for t in options.numbers(threads)]
    chosen = engines(only.split(",") if only is not None else None)
    dense = options.construct(recipe)
    options.load_weights(dense, run / "dense.safetensors")
    reduced = load(run / "reduced", options.construct(recipe))
    networks = {DENSE: dense.eval(), REDUCED: reduced.eval()}
    torch.manual_seed(0)
    found = [
        Case(b, t, compare(networks, recipe.examples(b), engines=chosen.present, rounds=rounds, threads=t))
        for b, t in track(cases, description="measuring", transient=True)
    ]
    bench = Bench(
        options.command_line(), recipe, _versions(chosen), chosen.missing, tuple(found), environment()
    )
    sections = _sections(bench)
    console(_title(bench), [_without_pictures(section) for section in sections[:-1]])
    if output:
        write_json(output, bench)
    if report:
        page(_title(bench), sections, report)
        Console().print(f"Report: [link={report.resolve().as_uri()}]{report}[/link]")


def _versions(chosen: Roster) -> dict[str, str]:
    return {engine.name: engine.version or "unknown" for engine in chosen.present}


def _title(bench: Bench) -> str:
    return f"{bench.model.model}, dense and reduced, under {len(bench.engines)} engines"


def _sections(bench: Bench) -> list[Section]:
    """For the terminal and the page; the last one is for the page alone."""
    tiles = tuple(tile for case in bench.cases if (tile := _tile(case)))
    gain: tuple[Block, ...] = (KeyFigures(tiles),) if tiles else (Text("No engine ran the reduced network."),)
    return [
        Section("Each network under the engine that runs it fastest", gain),
        Section("Every engine", (_bars(bench), _table(bench))),
        Section("What ran, and what did not", (_engines(bench), *_refused(bench))),
        Section("How to do it again", (Code(bench.command), facts(bench.environment, "The machine"))),
    ]


def _tile(case: Case) -> KeyFigure | None:
    fastest, base = case.comparison.fastest(REDUCED), case.comparison.baseline
    if fastest is None:
        return None
    dense = next(row.timing for row in case.comparison.rows if (row.network, row.engine) == base)
    timing, ratio = fastest.timing, fastest.timing.speedup
    sure = timing.speedup_lower > 1 or timing.speedup_upper < 1  # else the interval holds "no change"
    return KeyFigure(
        _label(case),
        f"{si(dense.median_s, 's')} ({base[1]})",
        f"{si(timing.median_s, 's')} ({fastest.engine})",
        f"{factor(ratio, 1)} faster" if ratio >= 1 else f"{factor(1, ratio)} slower",
        ("better" if ratio > 1 else "worse") if sure else "same",
    )


def _label(case: Case) -> str:
    return f"batch {case.batch}, {case.threads} thread{'s' if case.threads > 1 else ''}"


def _bars(bench: Bench) -> Figure:
    groups = {
        _label(case): {f"{row.network}, {row.engine}": row.timing for row in case.comparison.rows}
        for case in bench.cases
    }
    return latency_bars(groups, "Median and quartiles; all took turns in one process.")


def _table(bench: Bench) -> Table:
    rows = [
        (
            case.batch,
            case.threads,
            row.network,
            row.engine,
            *_figures(row.timing),
            _ratio(row, case.comparison),
        )
        for case in bench.cases
        for row in case.comparison.rows
    ]
    header = ("batch", "threads", "network", "engine", "median", "quartiles", "faster (95 % interval)")
    rounds = len(bench.cases[0].comparison.rows[0].timing.samples_s)
    return Table(
        header,
        tuple(rows),
        f"{rounds} interleaved rounds; ratios to the dense network under its fastest engine",
    )


def _figures(timing: Timing) -> tuple[str, str]:
    return si(timing.median_s, "s"), f"{si(timing.lower_s, 's')} to {si(timing.upper_s, 's')}"


def _ratio(row: Measured, comparison: Comparison) -> str:
    if (row.network, row.engine) == comparison.baseline:
        return "1"
    return f"{row.timing.speedup:.2f}× ({row.timing.speedup_lower:.2f} to {row.timing.speedup_upper:.2f})"


def _engines(bench: Bench) -> Table:
    rows = [*bench.engines.items(), *((name, f"left out: {why}") for name, why in bench.missing.items())]
    return Table(("engine", "version"), tuple(rows))


def _refused(bench: Bench) -> Sequence[Text]:
    said = (
        f"{engine} did not run the {network} network: {why}"
        for case in bench.cases
        for network, engine, why in case.comparison.refused
    )
    return tuple(Text(line, warning=True) for line in dict.fromkeys(said))


def _without_pictures(section: Section) -> Section:
    return Section(section.title, tuple(b for b in section.blocks if not isinstance(b, Figure)))
