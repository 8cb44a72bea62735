"""Which densities of which layers are worth having: the roofline of sparse convolution (C23).

A sparse layer saves multiplications but does each of them more slowly, and it still has to read and write its
activations. So there is a density above which it is slower than the dense one, and another below which fewer
weights no longer help. Both follow from the layer and from three numbers of the machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, final

from torch import nn

from gracile.cost.macs import macs
from gracile.errors import UsageError
from gracile.files import read_toml
from gracile.graph import Step, watch

_Conv = nn.modules.conv._ConvNd


@final
@dataclass(frozen=True)
class Machine:
    """Three numbers of a machine and of the sparse engine on it.

    Args:
        name: what it is called.
        flops_per_s: F, of dense products; a multiplication and an addition are two.
        bytes_per_s: B, to and from memory.
        alpha: time of one nonzero product in the sparse engine over that of one product in the dense.
        beta: bytes for one nonzero over those of one dense weight: 2 for a 4-byte index beside 4 bytes.
        source: where the numbers are from.

    Raises:
        UsageError: a number that is not positive. ``nan`` stands for what is not known.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    alpha: float
    beta: float = 2.0
    source: str = ""

    def __post_init__(self) -> None:
        for what in ("flops_per_s", "bytes_per_s", "alpha", "beta"):
            if getattr(self, what) <= 0:
                raise UsageError(
                    f"machine '{self.name}'", got=f"{what}={getattr(self, what)}", expected="> 0"
                )


@cache
def machines() -> dict[str, Machine]:
    """The published platforms, by name; ``machines.toml`` beside this file says from where.

    >>> machines()["xeon-e5-2697v4"].alpha
    3.0
    """
    table = read_toml(Path(__file__).with_name("machines.toml"), _Table)
    return {machine.name: machine for machine in table.machines}


@dataclass(frozen=True)
class _Table:
    version: int
    machines: list[Machine]


@final
@dataclass(frozen=True)
class Roof:
    """One layer on one machine, as a function of x, the share of its weights that are not zero.

    t_dense = C / F, t_comp = alpha x C / F, t_bw = (S_A + beta x S_W) / B; the sparse layer takes the longer
    of the last two. As published, a dense layer counts as limited by its arithmetic: true of
    convolutions, too little for linear layers at batch 1, whose projected gain is then too low.

    These are projections, not measurements. What is not known is ``nan``.

    Args:
        layer: path of the module.
        weight: name of its weight, as in ``model.named_parameters()``.
        flops: C, of the dense layer: two for each multiply-accumulate.
        activation_bytes: S_A, of inputs and outputs.
        weight_bytes: S_W, of the dense weights.
        machine: F, B, alpha and beta.

    Source: C23 (direct sparse convolutions), section 2.

    >>> conv5 = Roof("conv5", "conv5.weight", 149.5e6, 432640, 1769472, machines()["xeon-e5-2697v4"])
    >>> round(conv5.lower, 4), round(conv5.upper, 4), round(conv5.speedup(0.09), 2)
    (0.0197, 0.3333, 3.7)
    """

    layer: str
    weight: str
    flops: float
    activation_bytes: float
    weight_bytes: float
    machine: Machine

    @property
    def dense_s(self) -> float:
        """Seconds of the dense layer."""
        return self.flops / self.machine.flops_per_s

    def compute_s(self, density: float) -> float:
        """Seconds for the arithmetic of the sparse layer."""
        return self.machine.alpha * density * self.dense_s

    def memory_s(self, density: float) -> float:
        """Seconds for the bytes of the sparse layer."""
        stored = self.machine.beta * density * self.weight_bytes
        return (self.activation_bytes + stored) / self.machine.bytes_per_s

    def sparse_s(self, density: float) -> float:
        """Seconds of the sparse layer."""
        return _most(self.compute_s(density), self.memory_s(density))

    def speedup(self, density: float) -> float:
        """Dense over sparse; ``nan`` for a layer that does nothing."""
        sparse = self.sparse_s(density)
        return self.dense_s / sparse if sparse else math.nan

    @property
    def upper(self) -> float:
        """Largest density in [0, 1] that is not slower than dense; negative where none is.

        min(1 / alpha, (B t_dense - S_A) / (beta S_W)): the first is the published bound, the second
        that of layers which move many bytes for their arithmetic.
        """
        machine = self.machine
        spare = machine.bytes_per_s * self.dense_s - self.activation_bytes
        return _least(1.0, 1 / machine.alpha, spare / (machine.beta * self.weight_bytes))

    @property
    def lower(self) -> float:
        """Density below which memory is the limit, so that fewer weights hardly help.

        x* = (S_A / B) / (alpha C / F - beta S_W / B), where t_comp = t_bw. 0 where memory is the limit at
        every useful density: then fewer weights help all the way down.
        """
        machine = self.machine
        slope = machine.alpha * self.dense_s - machine.beta * self.weight_bytes / machine.bytes_per_s
        if slope <= 0:
            return 0.0
        crossing = self.activation_bytes / machine.bytes_per_s / slope
        return 0.0 if crossing > self.upper else crossing

    @property
    def worthwhile(self) -> bool:
        """Whether any density is faster than dense.

        Raises:
            UsageError: it cannot be told, because a number is ``nan``.
        """
        if math.isnan(self.upper) or math.isnan(self.lower):
            raise UsageError(
                f"roofline of '{self.layer}' on '{self.machine.name}'",
                got=f"unknown bounds: {self.flops} FLOP, alpha={self.machine.alpha}",
                expected="numbers",
                hint="calibrate() measures alpha on your machine",
            )
        return self.upper > 0


@final
@dataclass(frozen=True)
class Roofline:
    """The layers of a network on one machine, in the order in which they run."""

    rows: tuple[Roof, ...]

    @property
    def dense_s(self) -> float:
        """Seconds of all rows, dense; ``nan`` if any is unknown."""
        return math.fsum(row.dense_s for row in self.rows)

    def sparse_s(self, densities: Mapping[str, float]) -> float:
        """Seconds when every layer runs sparse or dense, whichever is faster; ``nan`` if any is unknown.

        Args:
            densities: share of nonzeros by the weight's name; dense where not named.
        """
        return math.fsum(
            _least(row.dense_s, row.sparse_s(densities.get(row.weight, 1.0))) for row in self.rows
        )

    def speedup(self, densities: Mapping[str, float]) -> float:
        """Projected: dense over sparse."""
        return self.dense_s / self.sparse_s(densities) if self.rows else math.nan

    def __getitem__(self, layer: str) -> Roof:
        """The row of ``layer``; raises UsageError where there is none."""
        for row in self.rows:
            if row.layer == layer:
                return row
        raise UsageError(
            "roofline", got=f"'{layer}'", expected=f"one of {', '.join(row.layer for row in self.rows)}"
        )


def roofline(model: nn.Module, example: Any, machine: Machine, layers: Iterable[type] = ()) -> Roofline:
    """Watch one forward pass and make a row for each convolution and linear layer.

    Args:
        model: any network that :func:`gracile.graph.watch` can run.
        example: what it is called with, a tuple where it takes several; its batch is the batch meant.
        machine: e.g. ``machines()["atom-c2750"]`` or ``calibrate()``.
        layers: classes of layers; by default convolutions (of any dimension, also transposed) and linear.

    Raises:
        GraphError: the model cannot be run on the example.

    >>> import torch
    >>> net = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU())
    >>> row = roofline(net, torch.zeros(1, 8, 10, 10), machines()["atom-c2750"])["0"]
    >>> row.flops, row.activation_bytes, row.weight_bytes
    (230400.0, 9600.0, 4608.0)
    """
    kinds = tuple(layers) or (_Conv, nn.Linear)
    inputs = example if isinstance(example, tuple) else (example,)
    modules = {name: m for name, m in model.named_modules(remove_duplicate=False) if isinstance(m, kinds)}
    work: dict[str, _Work] = {}
    for step in watch(model, *inputs).steps:
        if step.module in modules and macs(step):  # nan counts as work, too
            work.setdefault(step.module, _Work()).add(step, modules[step.module].weight)
    return Roofline(
        tuple(
            Roof(name, f"{name}.weight" if name else "weight", w.flops, w.activations, w.weights, machine)
            for name, w in work.items()
        )
    )


def prefers_groups(density: float, group_density: float, alpha: float, group_alpha: float = 1.0) -> bool:
    """Whether structured sparsity is faster than element-wise: x_g < (alpha / alpha_g) x.

    Args:
        density: x, share of nonzeros that element-wise sparsity needs.
        group_density: x_g, share that sparsity by groups needs at the same accuracy.
        alpha: cost of a nonzero in the element-wise engine, over dense.
        group_alpha: the same for the engine of groups; 1 where groups are removed.

    Source: C23 (direct sparse convolutions).

    >>> prefers_groups(0.1, 0.25, alpha=3.0), prefers_groups(0.1, 0.35, alpha=3.0)
    (True, False)
    """
    return group_density < alpha / group_alpha * density


def densities(model: nn.Module, names: Iterable[str]) -> dict[str, float]:
    """Share of numbers that are not zero, by the parameter's name.

    >>> layer = nn.Linear(4, 1); _ = layer.weight.data.copy_(layer.weight.new_tensor([[0.0, 1.0, 2.0, 0.0]]))
    >>> densities(layer, ["weight"])
    {'weight': 0.5}
    """
    known = dict(model.named_parameters())
    return {name: known[name].count_nonzero().item() / max(1, known[name].numel()) for name in names}


@dataclass
class _Work:
    """What the steps of one layer do; a layer that runs twice does twice as much."""

    flops: float = 0.0
    activations: float = 0.0
    weights: float = field(default=0.0)

    def add(self, step: Step, weight: Any) -> None:
        self.flops += 2 * macs(step)
        moved = [operand for operand in step.inputs if not operand.weight] + list(step.outputs)
        self.activations += sum(prod(operand.shape) * operand.dtype.itemsize for operand in moved)
        self.weights += weight.numel() * weight.element_size()


def _most(*values: float) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


def _least(*values: float) -> float:
    return math.nan if any(map(math.isnan, values)) else min(values)
