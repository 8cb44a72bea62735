"""``gracile compose``: several ways of making a network cheaper, after each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, final

import typer
from rich.console import Console
from rich.table import Table

from gracile.cli import options
from gracile.errors import UsageError
from gracile.files import write_json
from gracile.pipeline import Bits, Elements, LowRank, Passage, Plan, Stage, Units, check, compose
from gracile.reduce import save

_STAGES: dict[str, tuple[type[Stage], Callable[[str], float]]] = {
    "low-rank": (LowRank, float),
    "units": (Units, float),
    "elements": (Elements, float),
    "bits": (Bits, int),
}


@final
@dataclass(frozen=True)
class _Asked:
    """The stages of a run, as they were typed; kept as ``stages.json`` in its folder."""

    stages: list[str]


def command(
    stages: Annotated[
        list[str],
        typer.Argument(
            help="Stages in their order: [bold]low-rank=0.9[/bold] (share of the energy to keep), "
            "[bold]units=0.4[/bold], [bold]elements=0.8[/bold] (shares that are to go), [bold]bits=8[/bold]."
        ),
    ],
    model: options.Model = "lenet",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    data: options.Data = None,
    dense: Annotated[
        int | None, typer.Option(help="Epochs of ordinary training; 12, or 0 with --weights.", min=0)
    ] = None,
    rate: Annotated[float, typer.Option(help="Learning rate of the dense training.", min=0)] = 0.05,
    batch_size: Annotated[int, typer.Option(help="Samples in one step.", min=1)] = 64,
    seed: options.Seed = 0,
    output: options.Output = Path("runs/compose"),
) -> None:
    """Send a network through several stages, and tell what each of them gains and loses.

    An order in which a stage would undo another is refused before anything is trained, with the reason: bits
    come last, and low rank comes before single zeros.

    Writes passage.json and the folder reduced, which [bold]gracile.reduce.load[/bold] reads. An interrupted
    run continues when the same command is given again.

    Example: gracile compose low-rank=0.9 units=0.4 bits=8 --dataset digits
    """
    chosen = [_stage(text) for text in stages]
    check(chosen)
    network, splits, task, recipe = options.prepare(model, weights, dataset, data, seed)
    plan = Plan(dense=(0 if weights else 12) if dense is None else dense, rate=rate, batch_size=batch_size)
    for name, settings in (("model", recipe), ("plan", plan), ("stages", _Asked(stages))):
        options.claim(output / f"{name}.json", settings)
    console = Console()
    state, passage = compose(
        network,
        splits,
        task,
        chosen,
        plan,
        seed=seed,
        folder=output,
        announce=lambda stage: console.print(f"[bold]{stage}[/bold]", highlight=False),
    )
    save(output / "reduced", state.model, *state.steps)
    write_json(output / "passage.json", passage)
    console.print(_table(passage))


def _stage(text: str) -> Stage:
    """The stage that ``name=value`` stands for."""
    name, found, value = text.partition("=")
    try:
        kind, number = _STAGES[name]
        return kind(number(value)) if found else kind()  # type: ignore[call-arg]
    except (KeyError, ValueError) as error:
        raise UsageError(
            "reading a stage",
            got=f"'{text}'",
            expected=f"a name of {', '.join(_STAGES)}, and its value, e.g. low-rank=0.9 or bits=8",
        ) from error


def _table(passage: Passage) -> Table:
    headings: Sequence[str] = ("after", passage.score, "parameters", "MACs", "bytes stored", "bytes moved")
    table = Table(*headings)
    for leg in passage.legs:
        amounts = (leg.parameters, leg.macs, leg.stored, leg.moved)
        table.add_row(leg.stage, f"{leg.test:.4f}", *(f"{amount:,.0f}" for amount in amounts))
    return table
