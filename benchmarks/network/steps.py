"""Steps of 25 million parameters on slow links: bytes, time in communication, and what was forecast.

    cd benchmarks && python -m network.steps
    cd benchmarks && python -m network.steps --ranks 4 --rates 100mbit,1gbit --ways fp32,exact

On every bed the ways take turns, step by step, in the same processes. Time in communication is what a step
takes longer than the same step that averages nothing. Medians over rounds, of every step's slowest rank.

PowerSGD has beds of its own, where all gradients are one bucket: its hook hangs or aborts on gloo with more
(torch 2.13), and with one nothing overlaps with computing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from record import record
from rich.console import Console
from rich.table import Table as Rows

from gracile.cost import Link, forecast
from gracile.errors import UsageError
from network import rank
from network.bed import Bed

WAYS = "fp32,fp16,gather,exact,four-bit,ternary,base3,auto"
POWERSGD = "fp32,powersgd,exact"

_RANK = Path(rank.__file__)
_BESIDE_S = 60  # to import torch, probe the link, and warm up; plus what the slowest steps take
_OVERLAP = 0.0  # two thirds of the numbers are in the layer whose gradient comes nearly last
_RATIOS = ("MB/rank", "of fp32", "comm. s", "of fp32", "step s", "of fp32")
_TITLES = ("ranks", "link", "way", *_RATIOS, "forecast s", "error")


def measure(ranks: int, rate: str | None, delay_ms: float, ways: list[str], seconds: float) -> dict[str, Any]:
    """Figures of every way on one bed; ``error`` instead where the ranks did not come to an end."""
    asked: dict[str, Any] = {"ranks": ranks, "rate": rate, "delay_ms": delay_ms, "asked": ways}
    limit_s = _BESIDE_S + 4 * seconds
    with Bed(ranks, rate, delay_ms) as bed:
        try:
            said = bed.ranks([sys.executable, str(_RANK), ",".join(ways), str(seconds)], limit_s)
        except UsageError as error:
            return asked | {"error": str(error)}
    found = [json.loads(next(line for line in each.splitlines() if line.startswith("{"))) for each in said]
    first: dict[str, Any] = found[0]
    for way in ways:
        first["ways"][way]["bytes"] = max(each["ways"][way]["bytes"] for each in found)
    compare(ranks, first)
    wire = (ranks - 1) * rank.PART / first["bytes_per_s"]
    first["over_wire"] = {name: first[name] / wire - 1 for name in ("all_to_all_s", "at_once_s")}
    return asked | first


def compare(ranks: int, figures: dict[str, Any]) -> None:
    """Add to every way what share of fp32's it takes, and what the model forecasts from the probed link."""
    shapes = [tuple(p.shape) for p in rank.network().parameters()]
    link = Link(figures["latency_s"], figures["bytes_per_s"], figures["packing_s"])
    plain = figures["ways"].get("fp32")
    for found in figures["ways"].values():
        (expected,) = forecast(
            shapes, figures["compute_s"], link, ranks=[ranks], ways=[found["mode"]], overlap=_OVERLAP
        )
        found["forecast_s"] = expected.step_s
        found["forecast_error"] = expected.step_s / found["step_s"] - 1
        for name in ("bytes", "communication_s", "step_s") if plain else ():
            found[f"{name}_of_fp32"] = found[name] / plain[name]


def show(beds: list[dict[str, Any]]) -> None:
    """Print one line for every way on every bed."""
    rows = Rows(title="25.2 million parameters, one thread a rank; ratios to fp32 of the same run")
    for title in _TITLES:
        rows.add_column(title, justify="left" if title in ("link", "way") else "right")
    for figures in beds:
        link = f"{figures['rate'] or 'unshaped'}, {figures['delay_ms']:g} ms"
        for way, found in figures.get("ways", {}).items():
            rows.add_row(str(figures["ranks"]), link, *_cells(way, found))
        if "error" in figures:
            rows.add_row(str(figures["ranks"]), link, ",".join(figures["asked"]), "no end")
        rows.add_section()
    Console(width=130).print(rows)
    for figures in (each for each in beds if "over_wire" in each):
        scheduled, at_once = figures["over_wire"].values()
        print(
            f"{figures['ranks']} ranks, {figures['rate'] or 'unshaped'}: an all-to-all takes "
            f"{scheduled:+.0%} over bytes / rate, sent to all at once {at_once:+.0%}"
        )


def _cells(way: str, found: dict[str, Any]) -> tuple[str, ...]:
    return (
        way if way == found["mode"] else f"{way} = {found['mode']}",
        f"{found['bytes'] / 1e6:.2f}",
        _share(found, "bytes"),
        f"{found['communication_s']:.3f}",
        _share(found, "communication_s"),
        f"{found['step_s']:.3f}",
        _share(found, "step_s"),
        f"{found['forecast_s']:.3f}",
        f"{found['forecast_error']:+.0%}",
    )


def _share(found: dict[str, Any], name: str) -> str:
    share = found.get(f"{name}_of_fp32", 1.0)
    return "" if share == 1.0 else f"1/{1 / share:.2f}" if share > 0 else "0"


def main() -> None:
    """Measure on every bed that was asked for, keep the figures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", default="2,4", help="numbers of ranks")
    parser.add_argument("--rates", default="100mbit,1gbit,none", help="of links, as tc writes them")
    parser.add_argument("--delays", default="0", help="ms between node and switch; a round trip takes four")
    parser.add_argument("--ways", default=WAYS, help="of averaging")
    parser.add_argument(
        "--seconds", type=float, default=45, help="of steps on each bed; never under 3 rounds"
    )
    parser.add_argument("--no-powersgd", action="store_true", help="leave out the beds of PowerSGD")
    asked = parser.parse_args()
    sets = [asked.ways.split(","), *([] if asked.no_powersgd else [POWERSGD.split(",")])]
    beds: list[dict[str, Any]] = []
    for delay in map(float, asked.delays.split(",")):
        for rate in asked.rates.split(","):
            for ranks in map(int, asked.ranks.split(",")):
                for ways in sets:
                    shaped = None if rate == "none" else rate
                    beds.append(measure(ranks, shaped, delay, ways, asked.seconds))
                    show(beds[-1:])
    show(beds)
    record("network", f"cd benchmarks && python -m network.steps {shlex.join(sys.argv[1:])}", {"beds": beds})


if __name__ == "__main__":
    main()
