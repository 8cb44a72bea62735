"""Whether a goal is met: the share of filters, or of units, that is asked for, and at what price.

    python benchmarks/goals.py

LeNet on Fashion-MNIST from scratch, ResNet-20 on CIFAR-10 from trained weights (both need the data folder).
Every layer's filters, or every block's units, are to lose the share; the strength finds itself
(gracile.train.Reach). Not timed, so other programs may run; the baseline is the same network with share 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from record import record
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import Subset

from gracile.algebra import Grouping, filters
from gracile.files import read_tensors
from gracile.graph import watch
from gracile.train import Reach, Splits, classification, cosine, fit
from gracile.zoo import build, load
from gracile.zoo.data.source import data_folder

SAMPLES = 5_000  # of the training images, so that two cores are done in minutes


def lenet() -> tuple[nn.Module, Splits, int, float]:
    splits = load("fashion-mnist")
    return build("lenet", splits), splits, 5, 0.05


def resnet20() -> tuple[nn.Module, Splits, int, float]:
    splits = load("cifar10")
    model = build("resnet20", splits)
    model.load_state_dict(read_tensors(Path(data_folder(None)) / "pretrained/resnet20_cifar10.safetensors"))
    return model, splits, 5, 0.02


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Splits, int, float]]] = {
    "lenet": lenet,
    "resnet20": resnet20,
}


def by_filter(model: nn.Module, example: torch.Tensor) -> list[Grouping]:
    convolutions = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return [filters(f"{name}.weight") for name in convolutions]


def by_unit(model: nn.Module, example: torch.Tensor) -> list[Grouping]:
    graph = watch(model, example)
    return [graph.grouping([block.id]) for block in graph.blocks]


def main(
    networks: Annotated[str, typer.Option(help="Separated by commas.")] = "lenet,resnet20",
    shares: Annotated[str, typer.Option(help="Asked for, separated by commas.")] = "0,0.3,0.5,0.7",
    seed: Annotated[int, typer.Option(help="Of weights and order.")] = 0,
) -> None:
    """Ask for shares and look at what comes of it."""
    torch.set_num_threads(1)
    rows = []
    for name in networks.split(","):
        for kind, groupings in (("filters", by_filter), ("units", by_unit)):
            for share in map(float, shares.split(",")):
                torch.manual_seed(seed)
                model, splits, epochs, rate = NETWORKS[name]()
                some = torch.randperm(len(splits.train), generator=torch.Generator().manual_seed(seed))[
                    :SAMPLES
                ]
                splits = Splits(Subset(splits.train, some.tolist()), splits.validation, splits.test)
                reach = Reach(groupings(model, splits.train[0][0].unsqueeze(0)), share)
                history = fit(
                    model,
                    splits,
                    classification(),
                    epochs=epochs,
                    optimizer=partial(torch.optim.SGD, lr=rate, momentum=0.9),
                    schedule=cosine(),
                    methods=[reach],
                    select="last",
                    seed=seed,
                )
                rows.append(_row(name, kind, share, reach, model, history.test.score))
    table = Table(title="asked for and reached")
    for heading in rows[0]:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console().print(table)
    command = f"python benchmarks/goals.py --networks {networks} --shares {shares} --seed {seed}"
    print(record("goals", command, {"rows": rows}))


def _row(
    name: str, kind: str, share: float, reach: Reach, model: nn.Module, accuracy: float
) -> dict[str, object]:
    """Counted in the trained weights, not taken from the method: groups whose members are all zero."""
    parameters = dict(model.named_parameters())
    dead = total = 0
    for grouping in reach.groupings:
        groups = grouping.of(parameters)
        members = groups.sizes > 0
        dead += int((groups.norms[members] == 0).sum())
        total += int(members.sum())
    return {
        "network": name,
        "of": kind,
        "asked": 100 * share,
        "reached": 100 * dead / total,
        "off": 100 * abs(dead / total - share),
        "groups": total,
        "forced": reach.forced,
        "accuracy": 100 * accuracy,
    }


if __name__ == "__main__":
    typer.run(main)
