"""``gracile``: the commands, and what happens to errors."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from gracile import __version__
from gracile.cli import bench, compose, links, papers, reduce, report, train
from gracile.errors import GracileError

app = typer.Typer(
    name="gracile",
    help="Take a network; make it smaller and faster; prove it by measurement.\n\n"
    "Start with [bold]gracile reduce[/bold]: it trains a small network on bundled images, learns which "
    "parts are not needed, removes them, and writes a report. Every command explains itself with --help.",
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("reduce")(reduce.command)
app.command("compose")(compose.command)
app.command("train")(train.command)
app.command("bench")(bench.command)
app.command("links")(links.command)
app.command("report")(report.command)
app.add_typer(papers.app, name="papers")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"gracile {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """Options that come before the command."""
    if traceback:
        os.environ["GRACILE_TRACEBACK"] = "1"


def main() -> None:
    """Run the command line; exit code 2 for errors that the user can mend."""
    try:
        app()
    except GracileError as error:
        if os.environ.get("GRACILE_TRACEBACK"):
            raise
        Console(stderr=True).print(Text.assemble(("error: ", "red"), str(error)))
        sys.exit(2)
