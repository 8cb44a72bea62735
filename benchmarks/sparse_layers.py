"""Sparse layers against the fastest dense engine, layer by layer, in turns.

    python benchmarks/sparse_layers.py
    python benchmarks/sparse_layers.py --only alexnet --batch 16

Baseline of each layer: the fastest of those dense engines that are installed (torch, torch channels-last,
ONNX Runtime, OpenVINO), measured in the same interleaved run. Random zeros at 90 %, single or in runs of 16
output channels; `skimcaffe` has the trained zeros of an AlexNet. Layers of the same suite are summed up.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import scipy.sparse
import torch
import typer
from record import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from gracile.cost import measure
from gracile.errors import GracileError
from gracile.runtime import engines
from gracile.runtime.kernels import Conv, Linear, instruction_sets
from gracile.runtime.kernels.native import peak

SUITES: dict[str, dict[str, tuple[int, int, int, int, int, int]]] = {
    # inputs, outputs, groups, kernel, pixels of a side, stride; padded to keep the size
    "alexnet": {
        "conv2": (96, 256, 2, 5, 27, 1),
        "conv3": (256, 384, 1, 3, 13, 1),
        "conv4": (384, 384, 2, 3, 13, 1),
        "conv5": (384, 256, 2, 3, 13, 1),
    },
    "googlenet": {
        "3a": (96, 128, 1, 3, 28, 1),
        "4a": (96, 208, 1, 3, 14, 1),
        "5b": (192, 384, 1, 3, 7, 1),
    },
    "resnet": {
        "56 px": (64, 64, 1, 3, 56, 1),
        "28 px": (128, 128, 1, 3, 28, 1),
        "14 px": (256, 256, 1, 3, 14, 1),
        "7 px": (512, 512, 1, 3, 7, 1),
    },
    "1x1": {
        "56 px": (64, 256, 1, 1, 56, 1),
        "28 px": (128, 512, 1, 1, 28, 1),
        "14 px in": (1024, 256, 1, 1, 14, 1),
        "14 px out": (256, 1024, 1, 1, 14, 1),
        "7 px": (512, 2048, 1, 1, 7, 1),
    },
}
MATRICES = {"fc7": (4096, 4096), "lstm 650": (2600, 1300), "lstm 1500": (6000, 3000)}
DENSE = ("torch", "torchchannelslast", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Layer:
    """A layer with its zeros, an input, and whether they come in runs of 16."""

    suite: str
    name: str
    module: nn.Module
    x: Tensor
    block: int


def layers(only: str, batch: int, density: float) -> list[Layer]:
    """Random zeros of both kinds, and the trained ones where the data are."""
    found = []
    for block in (1, 16):
        for suite, rows in SUITES.items():
            for name, (inputs, outputs, groups, kernel, side, stride) in rows.items():
                module = nn.Conv2d(
                    inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False
                ).eval()
                x = torch.randn(batch, inputs, side, side)
                found.append(Layer(suite, name, _sparse(module, density, block), x, block))
        for name, (outputs, inputs) in MATRICES.items():
            module = nn.Linear(inputs, outputs, bias=False).eval()
            found.append(
                Layer("matrices", name, _sparse(module, density, block), torch.randn(batch, inputs), block)
            )
    return [layer for layer in found + _trained(batch) if not only or layer.suite in only.split(",")]


def _sparse(module: nn.Module, density: float, block: int) -> nn.Module:
    weight = module.weight.data
    runs = torch.rand(-(-weight.shape[0] // block), *weight.shape[1:]) < density
    weight *= runs.repeat_interleave(block, 0)[: weight.shape[0]]
    return module


def _trained(batch: int) -> list[Layer]:
    path = Path(os.environ.get("GRACILE_DATA") or "missing") / "sparse-nets" / "skimcaffe_pruned_conv_csr.npz"
    if not path.exists():
        return []
    found = []
    with np.load(path, allow_pickle=False) as stored:
        for name, (inputs, outputs, groups, kernel, side, stride) in SUITES["alexnet"].items():
            module = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False).eval()
            parts = [stored[f"alexnet_a.{name}.{part}"] for part in ("data", "indices", "indptr")]
            rows = scipy.sparse.csr_array(tuple(parts), shape=(outputs, module.weight[0].numel()))
            module.weight.data = torch.from_numpy(rows.toarray()).float().view_as(module.weight)
            found.append(Layer("skimcaffe", name, module, torch.randn(batch, inputs, side, side), 1))
    return found


def peak_flops(instruction_set: str) -> float:
    """Multiplications and additions that one core makes in a second, from registers."""
    best = 0.0
    for _ in range(5):
        start = time.thread_time()
        operations = peak(instruction_set, 2_000_000)
        best = max(best, operations / (time.thread_time() - start))
    return best


def main(
    batch: Annotated[int, typer.Option(help="inputs at once")] = 1,
    density: Annotated[float, typer.Option(help="share of the weights that are not zero")] = 0.1,
    threads: Annotated[int, typer.Option(help="for every engine")] = 1,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 15,
    only: Annotated[str, typer.Option(help="suites, separated by commas")] = "",
    every_set: Annotated[bool, typer.Option("--every-set", help="older instruction sets as well")] = False,
) -> None:
    """Measure sparse kernels beside dense engines."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    roster = engines(DENSE)
    chosen = instruction_sets() if every_set else instruction_sets()[-1:]
    roof = peak_flops(instruction_sets()[-1])
    table = Table(title=f"batch {batch}, {threads} threads, density {density}, peak {roof / 1e9:.0f} GFLOP/s")
    for heading in ("layer", "zeros", "fastest dense", "us", "kernels", "us", "faster", "of peak"):
        table.add_column(heading, justify="right" if heading in ("us", "faster", "of peak") else "left")
    rows = []
    sums: dict[tuple[str, int, str], list[float]] = {}
    for layer in track(layers(only, batch, density), description="layers"):
        calls, refused = {}, {}
        for engine in roster.present:
            try:
                calls[engine.name] = engine.prepare(layer.module, layer.x, threads=threads)
            except GracileError as error:
                refused[engine.name] = str(error)
        dense = tuple(calls)
        out = layer.module(layer.x).detach()
        for name in chosen:
            kernel = _packed(layer, name)
            run = kernel.bind(layer.x, torch.empty_like(out), threads=threads)
            calls[name] = lambda *_, run=run: run()
        timings = measure(calls, layer.x, rounds=rounds, threads=threads)
        best = min(dense, key=lambda name: timings[name].median_s)
        nonzeros = int(layer.module.weight.count_nonzero())
        work = 2 * nonzeros * out.numel() / layer.module.weight.shape[0]
        for name in chosen:
            seconds, base = timings[name].median_s, timings[best].median_s
            share = work / seconds / (roof * threads)
            key = (layer.suite, layer.block, name)
            both = sums.setdefault(key, [0.0, 0.0])
            both[0] += base
            both[1] += seconds
            kind = "runs of 16" if layer.block == 16 else "single"
            cells = (best, f"{1e6 * base:.0f}", name, f"{1e6 * seconds:.0f}")
            table.add_row(
                f"{layer.suite} {layer.name}", kind, *cells, f"{base / seconds:.2f}x", f"{share:.0%}"
            )
            rows.append(
                {
                    "suite": layer.suite,
                    "layer": layer.name,
                    "block": layer.block,
                    "kernels": name,
                    "density": nonzeros / layer.module.weight.numel(),
                    "dense": {engine: timings[engine].median_s for engine in dense},
                    "refused": refused,
                    "seconds": seconds,
                    "faster": base / seconds,
                    "of peak": share,
                    "tiling": kernel.tiling,
                }
            )
    for (suite, block, name), (base, seconds) in sums.items():
        kind = "runs of 16" if block == 16 else "single"
        cells = (f"{1e6 * base:.0f}", name, f"{1e6 * seconds:.0f}", f"{base / seconds:.2f}x", "")
        table.add_row(f"[bold]{suite}, together", kind, "of each", *cells)
    Console(width=130).print(table)
    command = f"python benchmarks/sparse_layers.py --batch {batch} --threads {threads} --density {density}"
    figures = {
        "rows": rows,
        "peak_flops": roof,
        "together": [[*key, base / seconds] for key, (base, seconds) in sums.items()],
        "engines": {engine.name: engine.version for engine in roster.present},
        "missing": dict(roster.missing),
    }
    print("Figures:", record("sparse_layers", command + (f" --only {only}" if only else ""), figures).name)


def _packed(layer: Layer, instruction_set: str) -> Conv | Linear:
    weight = layer.module.weight.detach()
    if isinstance(layer.module, nn.Linear):
        return Linear(weight, block=layer.block, instruction_set=instruction_set)
    module = layer.module
    return Conv(
        weight,
        size=tuple(layer.x.shape[2:]),
        stride=module.stride,
        padding=module.padding,
        groups=module.groups,
        block=layer.block,
        instruction_set=instruction_set,
    )


if __name__ == "__main__":
    typer.run(main)
