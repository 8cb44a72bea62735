"""``gracile report``: the page of a finished run, made again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gracile.files import read_json
from gracile.pipeline import Outcome, publish, summarize


def command(
    run: Annotated[Path, typer.Argument(help="Folder that gracile reduce wrote.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The page; report.html in the folder by default.")
    ] = None,
) -> None:
    """Write the report of a finished run again, and print its summary.

    The page is one file without external resources: mail it, print it, keep it.
    """
    outcome = read_json(run / "outcome.json", Outcome)
    page = publish(outcome, output or run / "report.html")
    console = Console()
    summarize(outcome)
    console.print(f"Report: [link={page.resolve().as_uri()}]{page}[/link]")
