"""Convolutions one by one: sparse kernels beside dense engines, in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from gracile.cost import measure
from gracile.errors import GracileError
from gracile.runtime import SparseCPU, engines
from gracile.runtime.kernels import Conv

DENSE = ("torch", "torchchannelslast", "onnxruntime", "openvino")


@final
@dataclass(frozen=True)
class Timed:
    """Median seconds of one convolution, all of an interleaved run.

    Attributes:
        layer: path of the module.
        density: share of its weights that are not zero.
        dense: engine -> seconds.
        sparse_s: of the layer compiled for :class:`gracile.runtime.SparseCPU`.
    """

    layer: str
    density: float
    dense: Mapping[str, float]
    sparse_s: float

    @property
    def dense_s(self) -> float:
        """Of the fastest dense engine."""
        return min(self.dense.values())

    @property
    def speedup(self) -> float:
        """Fastest dense over sparse."""
        return self.dense_s / self.sparse_s


def together(rows: Iterable[Timed]) -> float:
    """Speed-up of layers when each runs sparse or dense, whichever is faster.

    >>> together([Timed("a", 0.1, {"torch": 4.0}, 1.0), Timed("b", 1.0, {"torch": 2.0}, 5.0)])
    2.0
    """
    listed = list(rows)
    return math.fsum(row.dense_s for row in listed) / math.fsum(
        min(row.dense_s, row.sparse_s) for row in listed
    )


def convolutions(model: nn.Module, example: Tensor, rounds: int = 9) -> list[Timed]:
    """Time every convolution on what it gets when the model sees the example.

    Args:
        model: in evaluation mode, with its zeros; dense engines multiply them like other numbers.
        example: input of the model, whose batch is the batch meant; 1 thread.
        rounds: interleaved repetitions.

    >>> model = nn.Sequential(nn.Conv2d(1, 4, 3)).eval()
    >>> [row.layer for row in convolutions(model, torch.ones(1, 1, 8, 8), rounds=5)]
    ['0']
    """
    found = []
    for name, module, x in _seen(model, example):
        calls: dict[str, Any] = {}
        for engine in engines(DENSE).present:
            try:
                calls[engine.name] = engine.prepare(module, x)
            except GracileError:  # one rival less
                continue
        dense = tuple(calls)
        calls["sparse"] = SparseCPU(against=()).compile(module, x)
        times = {key: timing.median_s for key, timing in measure(calls, x, rounds=rounds).items()}
        density = module.weight.count_nonzero().item() / module.weight.numel()
        found.append(Timed(name, density, {key: times[key] for key in dense}, times["sparse"]))
    return found


def kernels(filters: Tensor, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The sparse kernels, for :func:`gracile.cost.calibrate`.

    >>> kernels(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2))(torch.ones(1, 1, 2, 2)).sum()
    tensor(16.)
    """
    return Conv(filters, size=(images.shape[2], images.shape[3]), padding=1)


def _seen(model: nn.Module, example: Tensor) -> Sequence[tuple[str, nn.Conv2d, Tensor]]:
    """Every convolution with its input."""
    inputs: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.no_grad():
        modules = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d)}
        for name, module in modules.items():

            def keep(module: nn.Module, args: tuple[Any, ...], name: str = name) -> None:
                inputs[name] = args[0].clone(memory_format=torch.contiguous_format)

            hooks.callback(module.register_forward_pre_hook(keep).remove)
        model(example)
    return [(name, modules[name], x) for name, x in inputs.items()]
