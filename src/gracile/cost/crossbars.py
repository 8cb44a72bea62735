"""What a network costs on crossbars: cells for its matrices, and wires between crossbars of a limited size.

A crossbar multiplies by a whole matrix at once, so a layer costs the area of its matrix of inputs x outputs,
zero or not; of low rank it costs two thinner ones. A matrix that is larger than a crossbar is tiled, and
every row and column of a tile is a wire between crossbars unless all of its cells are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from gracile.algebra import CROSSBAR, crossbar_columns, crossbar_rows
from gracile.errors import UsageError


def cells(inputs: int, outputs: int, rank: int | None = None) -> int:
    """Cells of one layer: N M as one matrix, K (N + M) as two of rank K.

    Args:
        inputs: N, of a convolution inputs · kernel.
        outputs: M.
        rank: K; ``None`` for one matrix.

    Raises:
        UsageError: a number below 1.

    Source: C18 (Group Scissor), whose area is 4 F² a cell; biases are not counted.

    >>> cells(500, 50), cells(500, 50, rank=12)
    (25000, 6600)
    """
    if min(inputs, outputs, 1 if rank is None else rank) < 1:
        raise UsageError(
            "counting cells", got=f"{inputs} inputs, {outputs} outputs, rank {rank}", expected="1 or more"
        )
    return inputs * outputs if rank is None else rank * (inputs + outputs)


@final
@dataclass(frozen=True)
class CrossbarLayer:
    """One matrix on crossbars.

    Attributes:
        layer: path; of a grouped convolution with the number of the group, ``"conv[1]"``.
        inputs, outputs: rows and columns of the matrix; inputs · kernel for a convolution.
        crossbars: that it is tiled with.
        wires: rows and columns of all tiles.
        kept: those that are not zero.
    """

    layer: str
    inputs: int
    outputs: int
    crossbars: int
    wires: int
    kept: int

    @property
    def cells(self) -> int:
        return cells(self.inputs, self.outputs)


@final
@dataclass(frozen=True)
class CrossbarCost:
    """A network on crossbars.

    >>> CrossbarCost((CrossbarLayer("fc", 100, 10, 2, 120, 60),)).routing
    0.25
    """

    layers: tuple[CrossbarLayer, ...]
    unmodeled: tuple[str, ...] = ()

    @property
    def cells(self) -> float:
        """Cells of all matrices; ``nan`` where there are modules whose matrices are not known."""
        return math.nan if self.unmodeled else float(sum(layer.cells for layer in self.layers))

    @property
    def tiled(self) -> tuple[CrossbarLayer, ...]:
        """The matrices that need more than one crossbar: only they have wires between crossbars."""
        return tuple(layer for layer in self.layers if layer.crossbars > 1)

    @property
    def wired(self) -> float:
        """Share of the wires of tiled matrices that is kept; ``nan`` where there are none."""
        return _ratio([(layer.kept, layer.wires) for layer in self.tiled])

    @property
    def routing(self) -> float:
        """Area for routing over that of the same matrices with all wires; ``nan`` where there are none.

        The area of a matrix grows with the square of its wires (C18): sum of kept² over sum of wires².
        """
        return _ratio([(layer.kept**2, layer.wires**2) for layer in self.tiled])


def crossbars(model: nn.Module, tile: tuple[int, int] = CROSSBAR) -> CrossbarCost:
    """Lay the convolutions and linear layers of a network out on crossbars.

    A layer that was factorized is a pair of layers, each with a matrix of its own. Convolutions are matrices
    of inputs · kernel x outputs, every group by itself. Compare wires and routing for one tiling only.

    Args:
        model: any module.
        tile: rows P and columns Q of a crossbar.

    Raises:
        UsageError: a tile without rows or columns.

    Source: C18 (Group Scissor).

    >>> cost = crossbars(nn.Sequential(nn.Linear(100, 70), nn.ReLU(), nn.Linear(70, 10)))
    >>> cost.cells, [layer.crossbars for layer in cost.layers], cost.wired
    (7700.0, [4, 2], 1.0)
    """
    layers: list[CrossbarLayer] = []
    unmodeled: list[str] = []
    for name, module in model.named_modules():
        matrices = list(_matrices(name, module))
        layers += [_layer(own, matrix, tile) for own, matrix in matrices]
        if not matrices and any(p.dim() > 1 for p in module.parameters(recurse=False)):
            unmodeled.append(name)
    return CrossbarCost(tuple(layers), tuple(unmodeled))


def _matrices(name: str, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights (outputs, inputs · kernel), one for each group."""
    convolution = isinstance(module, nn.modules.conv._ConvNd) and not module.transposed
    if convolution or isinstance(module, nn.Linear):
        weight: Tensor = module.weight.detach().flatten(1)
        groups = int(getattr(module, "groups", 1))
        for number, part in enumerate(weight.chunk(groups)):
            yield (name if groups == 1 else f"{name}[{number}]"), part


def _layer(name: str, matrix: Tensor, tile: tuple[int, int]) -> CrossbarLayer:
    outputs, inputs = matrix.shape
    norms = [
        grouping("w", matrix.shape, tile).of({"w": matrix.contiguous()}).norms
        for grouping in (crossbar_rows, crossbar_columns)
    ]
    return CrossbarLayer(
        name,
        inputs,
        outputs,
        crossbars=math.ceil(inputs / tile[0]) * math.ceil(outputs / tile[1]),
        wires=sum(len(n) for n in norms),
        kept=sum(int((n != 0).sum()) for n in norms),
    )


def _ratio(pairs: list[tuple[int, int]]) -> float:
    whole = sum(total for _, total in pairs)
    return sum(kept for kept, _ in pairs) / whole if whole else math.nan
