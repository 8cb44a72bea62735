"""Asked latency, promised latency, and the latency measured again: ResNets, MobileNetV2 and an LSTM.

    python benchmarks/latency_budget.py

Random weights, batch 1, one thread. Every network is fitted to shares of its own latency; when all is done
each result is timed once more against its dense network, in turns. The clock is the wall's, or the thread's
own processor time where the system kept interrupting the wall's (each row says which).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any

import torch
import typer
from architectures import ResNet50, mobilenet_v2, resnet18_cifar
from record import record
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from gracile.cost import count, measure, time_on_thread
from gracile.errors import RefusedError
from gracile.pipeline import Fitted, fit_to, scout
from gracile.pipeline.latency import SLACK
from gracile.zoo import LSTMLanguageModel

NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "resnet18": lambda: (resnet18_cifar(), torch.randn(1, 3, 32, 32)),
    "resnet50": lambda: (ResNet50(), torch.randn(1, 3, 96, 96)),
    "mobilenet_v2": lambda: (mobilenet_v2(), torch.randn(1, 3, 96, 96)),
    "lstm": lambda: (LSTMLanguageModel(10_000, (200, 200)), torch.randint(10_000, (1, 35))),
}


def again(dense: nn.Module, reduced: nn.Module, x: Tensor, rounds: int = 40) -> dict[str, Any]:
    """Both in turns by the wall clock and by the thread's; the ratio is the wall's if it was left alone."""
    pair = {"dense": dense.eval(), "reduced": reduced.eval()}
    wall = measure(pair, x, rounds=rounds)
    thread = measure(pair, x, rounds=rounds, timer=time_on_thread)
    disturbed = max(timing.disturbed for timing in wall.values())
    clock = "processor" if disturbed > rounds // 3 else "wall"
    ratios = {"wall": 1 / wall["reduced"].speedup, "processor": 1 / thread["reduced"].speedup}
    return {
        "clock": clock,
        "ratio": ratios[clock],
        "ratios": ratios,
        "disturbed_samples": disturbed,
        "dense_s": (wall if clock == "wall" else thread)["dense"].median_s,
        "reduced_s": (wall if clock == "wall" else thread)["reduced"].median_s,
    }


def main(
    shares: Annotated[str, typer.Option(help="asked shares of the dense latency")] = "0.6,0.4",
    networks: Annotated[str, typer.Option(help="some of them")] = ",".join(NETWORKS),
    limit: Annotated[float, typer.Option(help="seconds for the table of widths")] = 60.0,
) -> None:
    """Fit every network to every share, then measure all of them again."""
    torch.set_num_threads(1)
    console = Console()
    done: list[tuple[dict[str, Any], nn.Module, Fitted | None, Tensor]] = []
    for name in networks.split(","):
        torch.manual_seed(0)
        model, x = NETWORKS[name]()
        model.eval()
        began = time.perf_counter()
        scouted = scout(model, x, share=0.999, limit_s=limit)
        table_s = time.perf_counter() - began
        for share in map(float, shares.split(",")):
            row: dict[str, Any] = {
                "network": name,
                "asked": share,
                "lowest": scouted.lowest,
                "table_s": table_s,
            }
            began, fitted = time.perf_counter(), None
            if scouted.lowest > share * (1 + SLACK):  # what `to_latency` refuses by, measured once
                row["refused"] = f"before anything: the narrowest network takes {scouted.lowest:.1%}"
                done.append((row, model, None, x))
                continue
            try:
                fitted = fit_to(model, x, scouted=replace(scouted, share=share))
                costs = count(model, x), count(fitted.reduction.model, x)
                row |= {
                    "promised": fitted.ratio,
                    "promised_by": fitted.clock,
                    "verdict": fitted.reduction.verdict.kind,
                    "macs_left": costs[1].macs / costs[0].macs,
                    "parameters_left": costs[1].parameters / costs[0].parameters,
                }
            except RefusedError as error:
                row["refused"] = str(error)
            row["search_s"] = time.perf_counter() - began
            console.print(row)
            done.append((row, model, fitted, x))
    shown = Table(title="Latency over the dense network's; batch 1, one thread")
    for heading in ("", "asked", "promised", "measured again", "clock", "MACs left", "within 10 %"):
        shown.add_column(heading, justify="left" if not heading else "right")
    for row, model, fitted, x in done:
        if fitted is None:
            shown.add_row(row["network"], f"{row['asked']:.0%}", "refused", "", "", "", "")
            continue
        row["again"] = found = again(model, fitted.reduction.model, x)
        row["within_10_percent"] = found["ratio"] <= 1.1 * row["asked"]
        cells = (f"{row['promised']:.1%}", f"{found['ratio']:.1%}", found["clock"], f"{row['macs_left']:.1%}")
        shown.add_row(
            row["network"], f"{row['asked']:.0%}", *cells, "yes" if row["within_10_percent"] else "no"
        )
    console.print(shown)
    command = f"python benchmarks/latency_budget.py --shares {shares} --networks {networks} --limit {limit:g}"
    rows = [row for row, *_ in done]
    print(record("latency_budget", command, {"threads": 1, "batch": 1, "networks": rows}))


if __name__ == "__main__":
    typer.run(main)
