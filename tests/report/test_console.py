"""The terminal shows the same numbers as the page, and no name can command it."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from gracile.report import Code, KeyFigure, KeyFigures, Section, Table, Text, console, widths
from gracile.report.quantities import factor, number, percent, si


def shown(*blocks, width: int = 80) -> str:
    stream = io.StringIO()
    console("Title", [Section("Heading", blocks)], Console(file=stream, width=width))
    return stream.getvalue()


def test_every_block_is_shown() -> None:
    screen = shown(
        KeyFigures((KeyFigure("Parameters", "10 k", "2 k", "5.00× fewer", "better"),)),
        Table(("layer", "macs"), (("conv1", 1234567), ("conv2", float("nan"))), "Costs"),
        widths({"conv1": 20}, {"conv1": 7}),
        Code("gracile reduce --seed 0"),
        Text("That was it."),
    )
    for text in (
        "Title",
        "Heading",
        "▲ 5.00× fewer",
        "1 234 567",
        "unknown",
        "7 of 20 units",
        "gracile reduce --seed 0",
        "That was it.",
    ):
        assert text in screen
    assert len(screen.splitlines()) < 40


@pytest.mark.parametrize("name", ["[bold red]x[/]", "[/]", "\x1b[31mred", "[link=https://example.org]x"])
def test_names_are_neither_markup_nor_commands(name: str) -> None:
    tiles, table = KeyFigures((KeyFigure(name, name, name, name),)), Table((name,), ((name,),))
    screen = shown(tiles, table, Code(name), Text(name), width=200)
    assert screen.count(name.replace("\x1b", "\ufffd")) == 8
    assert "\x1b" not in screen


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (-1234, "−1 234"),
        (1e-7, "1e−07"),
        (0.30000000000000004, "0.3"),
        (float("inf"), "inf"),
        (True, "yes"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1.00 s"),
        (999.4, "999 s"),
        (999.6, "1.00 ks"),
        (0.0009996, "1.00 ms"),
        (1.5e-9, "1.50 ns"),
        (2e-12, "0.00200 ns"),
        (-0.25, "−250 ms"),
        (5e13, "50.0 Ts"),
        (float("inf"), "inf s"),
    ],
)
def test_si(value: float, text: str) -> None:
    assert si(value, "s") == text


def test_factor_and_percent() -> None:
    assert factor(1.0, 3.0) == "0.33×"
    assert factor(100, 3) == "33.3×"
    assert factor(0, 0) == "1.00×"
    assert percent(-0.005) == "−0.5 %"
