"""Whole sparse networks against the fastest dense engine, end to end, in turns.

    python benchmarks/sparse_networks.py
    python benchmarks/sparse_networks.py --only resnet20 --density 0.2

Nine tenths of the weights of every layer but the first convolution are set to zero: the smallest, singly or
in runs of 16 outputs. Nothing is trained afterwards: this is about time, not accuracy, and zeros that
training made lie less evenly. Baseline: the fastest of the dense engines that are installed, in the same
interleaved run.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from record import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from gracile.cost import measure
from gracile.errors import GracileError
from gracile.runtime import SparseCPU, engines
from gracile.zoo import LSTMLanguageModel, build

DENSE = ("torch", "torchchannelslast", "onnxruntime", "openvino")


def alexnet() -> nn.Sequential:
    """Krizhevsky's network in one column, with its groups; 61 million parameters."""

    def stage(i: int, o: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups), nn.ReLU()]

    pool = [nn.MaxPool2d(3, 2)]
    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4), nn.ReLU(), *pool),
        *(*stage(96, 256, 5, 2), *pool),
        *(*stage(256, 384, 3), *stage(384, 384, 3, 2), *stage(384, 256, 3, 2), *pool),
        *(nn.Flatten(), nn.Linear(9216, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()),
        nn.Linear(4096, 1000),
    )


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "alexnet": lambda: (alexnet(), torch.randn(1, 3, 227, 227)),
    "resnet20": lambda: (build("resnet20", (3, 32, 32)), torch.randn(1, 3, 32, 32)),
    "resnet56": lambda: (build("resnet56", (3, 32, 32)), torch.randn(1, 3, 32, 32)),
    "lstm": lambda: (
        LSTMLanguageModel(10_000, (650, 650), embedding=650),
        torch.randint(10_000, (1, 35)),
    ),
}


@torch.no_grad()
def sparse(model: nn.Module, density: float, block: int) -> nn.Module:
    """A copy with the smallest weights at zero; the first convolution, embeddings and biases stay."""
    model = copy.deepcopy(model)
    first = next((m.weight for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    for name, weight in model.named_parameters():
        if weight.dim() < 2 or weight is first or "embedding" in name:
            continue
        rows = -(-weight.shape[0] // block) * block
        runs = torch.zeros(rows, *weight.shape[1:])
        runs[: weight.shape[0]] = weight.square()
        runs = runs.view(rows // block, block, -1).sum(1)
        least = runs.flatten().kthvalue(max(1, int((1 - density) * runs.numel()))).values
        kept = (runs > least).repeat_interleave(block, 0)[: weight.shape[0]]
        weight *= kept.view_as(weight)
    return model


def main(
    density: Annotated[float, typer.Option(help="share of the weights that is left")] = 0.1,
    threads: Annotated[int, typer.Option(help="for every engine")] = 1,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 15,
    only: Annotated[str, typer.Option(help="networks, separated by commas")] = "",
) -> None:
    """Measure sparse programs beside dense engines."""
    torch.set_num_threads(threads)
    roster = engines(DENSE)
    table = Table(title=f"batch 1, {threads} threads, density {density}")
    for heading in ("network", "zeros", "fastest dense", "ms", "program, ms", "faster", "runs"):
        table.add_column(heading, justify="right" if "ms" in heading or heading == "faster" else "left")
    rows = []
    cases = [(n, b) for n in NETWORKS for b in (1, 16) if not only or n in only.split(",")]
    for name, block in track(cases, description="networks"):
        torch.manual_seed(0)
        model, example = NETWORKS[name]()
        model = sparse(model.eval(), density, block)
        calls, refused = {}, {}
        for engine in roster.present:
            try:
                calls[engine.name] = engine.prepare(model, example, threads=threads)
            except GracileError as error:
                refused[engine.name] = str(error)
        dense = tuple(calls)
        program = SparseCPU(threads=threads).compile(model, example)
        timings = measure(calls | {"program": program}, example, rounds=rounds, threads=threads)
        best = min(dense, key=lambda engine: timings[engine].median_s)
        base, own = timings[best].median_s, timings["program"].median_s
        kind = "runs of 16" if block == 16 else "single"
        layers = program.plan.kernels.values()
        runs = ", ".join(f"{list(layers).count(kind)} {kind}" for kind in sorted(set(layers)))
        table.add_row(name, kind, best, f"{1e3 * base:.3f}", f"{1e3 * own:.3f}", f"{base / own:.2f}x", runs)
        rows.append(
            {
                "network": name,
                "block": block,
                "dense": {engine: timings[engine].median_s for engine in dense},
                "refused": refused,
                "seconds": own,
                "faster": base / own,
                "report": dict(program.report()),
                "kernels": dict(program.plan.kernels),
            }
        )
    Console(width=130).print(table)
    command = f"python benchmarks/sparse_networks.py --density {density} --threads {threads}"
    figures = {"rows": rows, "engines": {engine.name: engine.version for engine in roster.present}}
    print("Figures:", record("sparse_networks", command, figures).name)


if __name__ == "__main__":
    typer.run(main)
