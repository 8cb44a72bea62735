"""What a regularizer costs in a training step of ResNet-18 at CIFAR size.

    python benchmarks/regularizer_overhead.py

Baseline: one training step (forward, backward, SGD with momentum) of the same network in the same
process, interleaved with the regularizers. CPU time of one thread, so that other programs on the
machine disturb little; ratios of medians. Penalties and forces are what is added to a step; noise is
what comes on before the forward pass and off after the backward pass. Penalties on activations work on
copies of all ReLU outputs that have gradients already, so that adding to those counts as well.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
import typer
from architectures import resnet18_cifar
from record import record
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gracile.algebra import (
    L1,
    HoyerSquare,
    Lasso,
    Noise,
    Term,
    add_force_,
    add_gradient_,
    channels,
    elements,
    filters,
    loss_of,
    mean_loss_of,
    proximal_,
)
from gracile.train import attractions_of, captured, smoothout

TARGETS = {"proximal": 1.6, "gradient": 1.6, "force": 3.0, "noise": 8.0, "activations": 5.0}
"""Percent of a training step that each family may cost, by the first word of its cases."""


class Operators(TorchDispatchMode):
    """Counts the ATen operators that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def main(
    batch: Annotated[int, typer.Option(help="images in a training step")] = 64,
    rounds: Annotated[int, typer.Option(help="interleaved repetitions")] = 9,
) -> None:
    """Measure the overhead of penalties, forces and noise on ResNet-18."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet18_cifar()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    by_filter = [Term(filters(name), Lasso(), 1e-5) for name in weights]
    by_channel = [Term(channels(name), Lasso(), 1e-5) for name in weights]

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    def as_loss() -> None:
        loss_of(by_filter + by_channel, weights).backward()

    def noise(kind: Noise) -> Callable[[], None]:
        def on_and_off() -> None:
            with smoothout(model, 1e-3, kind, seed=0):
                pass

        return on_and_off

    relus = [name for name, module in model.named_modules() if isinstance(module, nn.ReLU)]
    with captured(model, relus) as found:
        model(images)
    activations = {n: [a.detach().requires_grad_() for a in calls] for n, calls in found.calls.items()}
    for leaf in (leaf for leaves in activations.values() for leaf in leaves):
        leaf.grad = torch.zeros_like(leaf)
    quiet = [Term(elements(name), L1(), 1e-5) for name in relus]
    few = [Term(filters(name), HoyerSquare(), 1e-5) for name in relus]

    forces = {kind: attractions_of(model, 1e-5, kind=kind) for kind in ("l2", "l1")}
    cases: dict[str, Callable[[], None]] = {
        "training step": step,
        "proximal, one axis": lambda: proximal_(by_filter, weights, 1e-4),
        "gradient, one axis": lambda: add_gradient_(by_filter, weights),
        "gradient, two axes": lambda: add_gradient_(by_filter + by_channel, weights),
        "added to the loss, two axes": as_loss,
        "force, L2": lambda: add_force_(forces["l2"], weights),
        "one force, L1": lambda: add_force_(forces["l1"], weights),
        "activations, L1": lambda: mean_loss_of(quiet, activations).backward(),
        "Hoyer-Square on activations": lambda: mean_loss_of(few, activations).backward(),
        "noise, uniform": noise("uniform"),
        "noise, gaussian": noise("gaussian"),
        "noise, by weight": noise("weight"),
        "noise, by filter": noise("filter"),
    }
    operators: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for name, run in cases.items():
        with Operators() as counted:
            run()
        operators[name] = counted.count
    for _ in track(range(rounds), description="interleaved rounds"):
        for name, run in cases.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    # Force takes one such call in four steps.
    medians["force, L1"] = medians["one force, L1"] / 4
    operators["force, L1"] = operators["one force, L1"] // 4
    table = Table(title=f"ResNet-18, CIFAR size, batch {batch}, 1 thread, {rounds} rounds")
    for heading in ("", "CPU ms", "% of a step", "at most", "ATen operators"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, median in medians.items():
        share = 100 * median / medians["training step"]
        target = TARGETS.get(name.split(",")[0])
        allowed = "" if target is None else f"{target:g}"
        table.add_row(name, f"{1e3 * median:.1f}", f"{share:.2f}", allowed, str(operators[name]))
    Console().print(table)
    shares = {name: median / medians["training step"] for name, median in medians.items()}
    figures = {"batch": batch, "cpu_s": seconds, "share_of_step": shares, "operators": operators}
    command = f"python benchmarks/regularizer_overhead.py --batch {batch} --rounds {rounds}"
    print(record("regularizer_overhead", command, figures))


if __name__ == "__main__":
    typer.run(main)
