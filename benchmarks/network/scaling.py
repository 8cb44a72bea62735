"""TernGrad's study of scalability by a performance model, 1 to 512 machines, beside what was measured.

    cd benchmarks && python -m network.scaling --picture scaling.svg

Steps of AlexNet, GoogLeNet, VGG-11 and ResNet-50 (torchvision's, 128 images on each machine) were measured on
one H200; `results/gpu_steps-*.json` has them with the shapes of all gradients. Links of 1, 10 and 100 Gbit/s
are forecast, gradients packed as fast as on that GPU. How far forecasts are off is read from the newest
`results/network-*.json`, where 2 and 4 ranks were measured.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from record import RESULTS, record
from rich.console import Console
from rich.table import Table

from gracile.cost import Link, Way, forecast
from gracile.files import write_bytes
from gracile.report import scaling

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
WAYS: tuple[Way, ...] = ("fp32", "fp16", "powersgd", "exact", "four-bit", "ternary")
LINKS = {"1 Gbit/s": (1e3, 0.1), "10 Gbit/s": (1e4, 0.05), "100 Gbit/s": (1e5, 0.01)}
PACKING_S = 2.5e-11
"""Seconds for a number: 0.3 ms for 25 million on an H200 (benchmarks/terngrad_gpu.py), and two copies."""
SHOWN = (8, 64, 512)


def study(steps: dict[str, Any]) -> list[dict[str, Any]]:
    """Throughput over one machine's, by network, link, way and number of machines."""
    found = []
    for name, each in steps.items():
        for title, (mbit, ms) in LINKS.items():
            plain = Link.of(mbit, ms)
            link = Link(plain.latency_s, plain.bytes_per_s, PACKING_S)
            gains: dict[str, dict[int, float]] = {way: {} for way in WAYS}
            for one in forecast(each["shapes"], each["step_s"], link, ranks=RANKS, ways=WAYS):
                gains[one.way][one.ranks] = one.speedup
            found.append({"network": name, "link": title, "step_s": each["step_s"], "gains": gains})
    return found


def errors(beds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Forecast over measured step, less one, wherever steps were measured."""
    return [
        {"ranks": bed["ranks"], "rate": bed["rate"], "way": way, "error": found["forecast_error"]}
        for bed in beds
        for way, found in bed.get("ways", {}).items()
        if "powersgd" not in bed["asked"] and way != "auto"
    ]


def show(found: list[dict[str, Any]], off: list[dict[str, Any]]) -> None:
    """Print throughputs, and how far forecasts of measured steps were off."""
    table = Table(title="Throughput of N machines over that of one, as forecast")
    for heading in (
        "network",
        "link",
        *(f"{way}, {n}" for way in ("fp32", "exact", "ternary") for n in SHOWN),
    ):
        table.add_column(heading, justify="right")
    for each in found:
        gains = [f"{each['gains'][way][n]:.3g}" for way in ("fp32", "exact", "ternary") for n in SHOWN]
        table.add_row(each["network"], each["link"], *gains)
    Console(width=150).print(table)
    for ranks, rate in dict.fromkeys((each["ranks"], each["rate"]) for each in off):
        here = [each["error"] for each in off if (each["ranks"], each["rate"]) == (ranks, rate)]
        print(f"{ranks} ranks, {rate or 'unshaped'}: forecasts are {min(here):+.0%} to {max(here):+.0%} off")


def main() -> None:
    """Forecast, keep the figures, print and draw them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where to draw AlexNet at 1 Gbit/s, an SVG file")
    asked = parser.parse_args()
    steps = json.loads(max(RESULTS.glob("gpu_steps-*.json")).read_text())["steps"]
    found = study(steps)
    measured = max(RESULTS.glob("network-*.json"))
    off = errors(json.loads(measured.read_text())["beds"])
    show(found, off)
    if asked.picture:
        drawn = next(each for each in found if (each["network"], each["link"]) == ("AlexNet", "1 Gbit/s"))
        write_bytes(asked.picture, scaling(drawn["gains"]).svg.encode())
    figures = {"packing_s": PACKING_S, "found": found, "measured": measured.name, "errors": off}
    record("scaling", "cd benchmarks && python -m network.scaling", figures)


if __name__ == "__main__":
    main()
