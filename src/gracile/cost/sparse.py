"""Multiply-accumulates that are left when a zero on either side of a product is skipped.

A product needs a weight and an activation, and is saved when one of them is zero. The shares of nonzeros
multiply if zeros of the two are independent; the exact count does not ask.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from gracile.cost.count import count
from gracile.errors import UsageError

_Conv = nn.modules.conv._ConvNd
_ConvTransposed = nn.modules.conv._ConvTransposeNd
_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_SPREAD = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


Products = Callable[[Tensor], tuple[float, float]]


@final
@dataclass(frozen=True)
class SparseLayer:
    """One layer, for one sample on average.

    Attributes:
        layer: path of the module.
        macs: dense multiply-accumulates, padding included.
        weights: share of its weights that are not zero.
        inputs: share of its input activations that are not zero.
        expected: macs * weights * inputs.
        exact: products of a nonzero weight with a nonzero activation; zeros of padding are none.
    """

    layer: str
    macs: float
    weights: float
    inputs: float
    expected: float
    exact: float


@final
@dataclass(frozen=True)
class SparseCost:
    """The layers that multiply; ``nan`` in a row says that it is not modeled, in a sum that a row is not."""

    rows: tuple[SparseLayer, ...]

    @property
    def macs(self) -> float:
        """Dense multiply-accumulates of one sample."""
        return math.fsum(row.macs for row in self.rows)

    @property
    def expected(self) -> float:
        """Sum of the products of shares."""
        return math.fsum(row.expected for row in self.rows)

    @property
    def exact(self) -> float:
        """Products of two nonzeros of one sample, on average."""
        return math.fsum(row.exact for row in self.rows)

    @property
    def left(self) -> float:
        """Exact over dense; ``nan`` for a network that multiplies nothing."""
        return self.exact / self.macs if self.macs else math.nan


def sparse_macs(model: nn.Module, batches: Iterable[Any]) -> SparseCost:
    """Count what is left of a network's products on actual data.

    Convolutions (of any dimension, grouped, transposed) and linear layers are modeled, as modules.
    What else multiplies (attention, recurrent layers, functional calls) has a row of ``nan``.

    Args:
        model: in eval mode, for the activations of inference.
        batches: inputs, ``(samples, ...)``; a tuple where the network takes several.

    Raises:
        UsageError: no data, or a network in training mode.
        GraphError: the network cannot be run.

    >>> net = nn.Linear(4, 2, bias=False).eval()
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
    >>> row = sparse_macs(net, [torch.tensor([[1.0, 0.0, 1.0, 0.0]])]).rows[0]
    >>> row.macs, row.weights, row.inputs, row.expected, row.exact
    (8.0, 0.375, 0.5, 1.5, 2.0)
    """
    listed = [batch if isinstance(batch, tuple) else (batch,) for batch in batches]
    if not listed or model.training:
        raise UsageError(
            "counting sparse products",
            got="a network in training mode" if model.training else "no batches",
            expected="a network in eval mode, and data",
        )
    dense = count(model, *listed[0])
    tallies = {
        name: _Tally(module)
        for name, module in model.named_modules()
        if isinstance(module, _Conv | nn.Linear)
    }
    with ExitStack() as hooks, torch.no_grad():
        for tally in tallies.values():
            hooks.callback(tally.module.register_forward_pre_hook(tally, with_kwargs=True).remove)
        for number, batch in enumerate(listed):
            model(*batch)
            if not number:
                first = {name: tally.macs for name, tally in tallies.items()}
    samples = sum(len(batch[0]) for batch in listed)
    rows = []
    for row in dense.rows:
        # What else the layer multiplies, e.g. in a subclass, is not modeled.
        if row.layer in tallies and row.macs == first[row.layer]:
            if tallies[row.layer].macs:
                rows.append(tallies[row.layer].row(row.layer, samples))
        elif row.macs:  # nan, too
            share = row.macs / len(listed[0][0])
            rows.append(SparseLayer(row.layer, share, math.nan, math.nan, math.nan, math.nan))
    return SparseCost(tuple(rows))


@final
class _Tally:
    """Looks at what goes into one layer, whenever it runs."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.macs = self.exact = 0.0
        self._nonzero = self._seen = 0
        self._products = _products_of(module)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given, *others = (*args, *kwargs.values())
        dense, exact = self._products(given)
        if others:  # the wanted output size of a transposed convolution
            exact = math.nan
        self.macs += dense
        self.exact += exact
        self._nonzero += int(given.count_nonzero())
        self._seen += given.numel()

    def row(self, layer: str, samples: int) -> SparseLayer:
        weight: Any = self.module.weight
        weights = weight.count_nonzero().item() / weight.numel()
        inputs = self._nonzero / self._seen
        macs = self.macs / samples
        return SparseLayer(layer, macs, weights, inputs, macs * weights * inputs, self.exact / samples)


def _products_of(module: nn.Module) -> Products:
    """A function of the input that gives the number of all products, and of those of two nonzeros."""
    if isinstance(module, nn.Linear):
        return _linear(module)
    return _transposed(module) if isinstance(module, _ConvTransposed) else _convolution(module)


def _linear(module: Any) -> Products:
    by_input = _ones(module.weight).sum(0)  # an entry of the input meets its column of weights
    outputs = module.out_features
    return lambda x: (float(x.numel() * outputs), float((_ones(x) @ by_input).sum()))


def _convolution(module: Any) -> Products:
    weight, groups = module.weight, module.groups
    one = _ones(weight).unflatten(0, (groups, -1)).sum(1)  # all outputs of a group as one
    convolve = _CONVOLVE[weight.dim() - 2]
    plain = module.padding_mode == "zeros"

    def products(x: Tensor) -> tuple[float, float]:
        if not plain:
            x = functional.pad(x, module._reversed_padding_repeated_twice, module.padding_mode)
        padding = module.padding if plain else 0
        found = convolve(_ones(x), one, None, module.stride, padding, module.dilation, groups)
        return float(found.numel() // groups * weight.numel()), float(found.sum())

    return products


def _transposed(module: Any) -> Products:
    one = _ones(module.weight).sum(1, keepdim=True)  # all outputs of a group as one
    spread = _SPREAD[module.weight.dim() - 2]
    settings = (module.stride, module.padding, module.output_padding, module.groups, module.dilation)
    outputs = module.weight[0].numel()
    return lambda x: (float(x.numel() * outputs), float(spread(_ones(x), one, None, *settings).sum()))


def _ones(tensor: Tensor) -> Tensor:
    """1 where a number is not zero; doubles count exactly."""
    return (tensor.detach() != 0).double()
