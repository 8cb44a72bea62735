"""From which density on do zeros pay? Speed-up over density, layer by layer, beside the roofline's curve.

    python benchmarks/sparse_crossover.py
    python benchmarks/sparse_crossover.py --picture docs/crossover.svg

Random zeros, single or in runs of 16 output channels, batch 1, one thread. Baseline of each point: the
fastest dense engine in the same interleaved run. Dashed: the projection with this machine's arithmetic,
memory and alpha, measured with the sparse kernels on a middle layer.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from record import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sparse_layers import DENSE, SUITES
from torch import Tensor, nn

from gracile.cost import Machine, calibrate, measure, roofline
from gracile.errors import GracileError
from gracile.papers.c23_guided.measured import kernels
from gracile.report.svg import INK, MUTED, SERIES, style
from gracile.runtime import engines
from gracile.runtime.kernels import Conv

LAYERS = (
    ("alexnet", "conv2"),
    ("alexnet", "conv3"),
    ("alexnet", "conv5"),
    ("resnet", "28 px"),
    ("resnet", "7 px"),
    ("1x1", "14 px in"),
)
DENSITIES = (1.0, 0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True)
class Point:
    """Seconds of one layer at one density: fastest dense engine, single zeros, runs of 16; projected gain.

    ``useful`` says whether the density is in the range that the roofline calls useful.
    """

    density: float
    engine: str
    dense_s: float
    single_s: float
    runs_s: float
    projected: float
    useful: bool

    @property
    def off(self) -> float:
        """Measured over projected speed-up of single zeros, less 1."""
        return self.dense_s / self.single_s / self.projected - 1


def sweep(suite: str, name: str, machine: Machine, rounds: int) -> list[Point]:
    """All densities of one layer."""
    inputs, outputs, groups, kernel, side, stride = SUITES[suite][name]
    module = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False).eval()
    x = torch.randn(1, inputs, side, side)
    dense = {}
    for engine in engines(DENSE).present:
        try:
            dense[engine.name] = engine.prepare(module, x)
        except GracileError:  # one rival less
            continue
    row = roofline(module, x, machine).rows[0]
    points = []
    for density in DENSITIES:
        calls: dict[str, Any] = {**dense, "single": _bound(module, x, density, 1)}
        calls["runs"] = _bound(module, x, density, 16)
        times = {key: timing.median_s for key, timing in measure(calls, x, rounds=rounds).items()}
        best = min(dense, key=times.__getitem__)
        useful = row.lower <= density <= row.upper
        found = (times[best], times["single"], times["runs"], row.speedup(density))
        points.append(Point(density, best, *found, useful))
    return points


def _bound(module: nn.Conv2d, x: Tensor, density: float, block: int) -> Any:
    weight = module.weight.detach().clone()
    runs = torch.rand(-(-weight.shape[0] // block), *weight.shape[1:]) < density
    weight *= runs.repeat_interleave(block, 0)[: weight.shape[0]]
    packed = Conv(
        weight,
        size=(x.shape[2], x.shape[3]),
        stride=module.stride,
        padding=module.padding,
        groups=module.groups,
        block=block,
    )
    run = packed.bind(x, torch.empty(module(x).shape))
    return lambda *_: run()


def crossover(points: list[Point], kind: str) -> float:
    """The largest density that is as fast as dense, between two points on a straight line; nan if none is."""
    gains = [(p.density, math.log(p.dense_s / getattr(p, f"{kind}_s"))) for p in points]
    if gains[0][1] >= 0:
        return gains[0][0]
    for (denser, below), (sparser, above) in pairwise(gains):
        if above >= 0:
            return denser + (sparser - denser) * below / (below - above)
    return math.nan


def draw(curves: dict[str, list[Point]], path: Path) -> None:
    """Single zeros as lines, runs of 16 as dots, the projection dashed; 1 is dense."""
    with style():
        canvas = Figure(figsize=(7.0, 4.2), layout="constrained")
        axes = canvas.add_subplot()
        axes.axhline(1.0, color=INK, lw=1.0)
        for color, (name, points) in zip(SERIES, curves.items(), strict=False):
            x = [point.density for point in points]
            axes.plot(x, [p.dense_s / p.single_s for p in points], color=color, label=name, marker="o", ms=3)
            axes.plot(x, [p.dense_s / p.runs_s for p in points], color=color, ls="", marker="s", ms=3)
            axes.plot(x, [p.projected for p in points], color=color, ls=(0, (3, 2)), lw=0.9)
        axes.set(
            xscale="log", yscale="log", xlabel="density", ylabel="times faster than the fastest dense engine"
        )
        axes.set_title("lines: single zeros; squares: runs of 16; dashed: roofline")
        axes.set_xticks([0.02, 0.05, 0.1, 0.2, 0.5, 1.0], ["2 %", "5 %", "10 %", "20 %", "50 %", "100 %"])
        axes.set_yticks([0.5, 1, 2, 4, 8, 16, 32], ["1/2", "1", "2", "4", "8", "16", "32"])
        axes.minorticks_off()
        axes.annotate("dense", (0.02, 1.0), color=MUTED, va="bottom")
        axes.legend(fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        canvas.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main(
    picture: Annotated[Path, typer.Option(help="where the picture goes: .svg, .png or .pdf")] = Path(
        "runs/sparse_crossover.svg"
    ),
    rounds: Annotated[int, typer.Option(help="interleaved repetitions of every point")] = 9,
) -> None:
    """Sweep the density of a few layers."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    machine = calibrate(convolution=kernels)
    curves = {
        f"{suite} {name}": sweep(suite, name, machine, rounds)
        for suite, name in track(LAYERS, description="layers")
    }
    table = Table(title=f"alpha {machine.alpha:.2f}, 1 / alpha {1 / machine.alpha:.0%}")
    headings = ("layer", "pays from density, single", "runs of 16", "at 30 %", "at 10 %", "off the roofline")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    rows = []
    for name, points in curves.items():
        at = {point.density: point.dense_s / point.single_s for point in points}
        both = [crossover(points, kind) for kind in ("single", "runs")]
        off = [point.off for point in points if point.useful]
        apart = f"{min(off):+.0%} to {max(off):+.0%}" if off else ""
        table.add_row(name, *(f"{x:.0%}" for x in both), *(f"{at[d]:.2f}x" for d in (0.3, 0.1)), apart)
        rows.append(
            {
                "layer": name,
                "crossover": dict(zip(("single", "runs of 16"), both, strict=True)),
                "off": off,
                "points": [asdict(point) for point in points],
            }
        )
    Console().print(table)
    draw(curves, picture)
    figures = {
        "rows": rows,
        "machine": asdict(machine),
        "engines": {engine.name: engine.version for engine in engines(DENSE).present},
    }
    print("Figures:", record("sparse_crossover", "python benchmarks/sparse_crossover.py", figures).name)
    print("Picture:", picture)


if __name__ == "__main__":
    typer.run(main)
