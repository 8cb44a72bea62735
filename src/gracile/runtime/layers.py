"""The layers that there are kernels for, each with its weights and with what is done to its answer.

    y = relu(layer(x) + bias + add)

A layer describes; :meth:`Layer.kernels` names the ways to carry it out. To add one, add an entry there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor

from gracile.runtime import dense, kernels
from gracile.runtime.kernels.packed import Block

BLOCK: Final = 16  # output channels in a row that are zero together


class Kernel(Protocol):
    """A layer with its weights packed. Those that can write into buffers have ``bind``, too."""

    @property
    def nbytes(self) -> int:
        """Of the packed weights."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, in new memory."""


Make = Callable[[], Kernel]


@dataclass(frozen=True, eq=False)
class Layer(ABC):
    """What all layers have.

    Attributes:
        name: path of the module that owns the weight, ``"layer1.0.conv1"``; ``"conv@2"`` for its second use.
        weight, bias: float32, batch norm folded in.
        relu: whether negative answers become zero.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    relu: bool = False

    @property
    @abstractmethod
    def kind(self) -> str:
        """Such as ``"conv 16-32 3x3 /2"``."""

    @abstractmethod
    def kernels(self, instruction_set: str | None = None) -> Mapping[str, Make]:
        """The candidates: name -> a function that packs."""

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Everything that may be sparse."""
        return (self.weight,)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        """Everything else."""
        return () if self.bias is None else (self.bias,)

    def holding(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Layer:
        """The same layer with other numbers, in the order of :attr:`weights` and :attr:`biases`."""
        return replace(self, weight=weights[0], bias=biases[0] if biases else None)

    def macs(self, output: Tensor) -> float:
        """Multiply-accumulates of the dense layer; any tensor of its answer's size will do."""
        return float(self.weight.numel() * output.numel() // self.weight.shape[0])

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return _share([w != 0 for w in self.weights])

    @property
    def block_density(self) -> float:
        """Share of runs of 16 output channels in which any weight is not zero."""
        runs = (torch.split(w != 0, BLOCK) for w in self.weights)
        return _share([torch.stack([run.any(0) for run in split]) for split in runs])

    def bare(self) -> Layer:
        """The same layer without memory."""
        weights, biases = (
            [torch.empty_like(t, device="meta") for t in own] for own in (self.weights, self.biases)
        )
        return self.holding(weights, biases)

    def __call__(self, x: Tensor, *others: Tensor) -> Any:
        """The answer by torch, to compare kernels with."""
        return self.kernels()["dense"]()(x, *others)


@final
@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """``size``: height and width of the map that it slides over; None where that is not fixed."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    size: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        outputs, inputs, height, width = self.weight.shape
        extras = [
            f"/{self.stride[0]}" if self.stride != (1, 1) else "",
            f"dilation {self.dilation[0]}" if self.dilation != (1, 1) else "",
            f"groups {self.groups}" if self.groups != 1 else "",
        ]
        return " ".join([f"conv {inputs * self.groups}-{outputs} {height}x{width}", *filter(None, extras)])

    def kernels(self, instruction_set: str | None = None) -> Mapping[str, Make]:
        slide: dict[str, Any] = {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "relu": self.relu,
        }
        made: dict[str, Make] = {"dense": lambda: dense.Conv(self.weight, self.bias, **slide)}
        if self.size is not None:
            packed = {**slide, "size": self.size, "instruction_set": instruction_set}
            made["sparse"] = lambda: kernels.Conv(self.weight, self.bias, block=1, **packed)
            made["block"] = lambda: kernels.Conv(self.weight, self.bias, block=BLOCK, **packed)
        return made


@final
@dataclass(frozen=True, eq=False)
class Product(Layer):
    """A linear layer, ``(..., inputs)`` to ``(..., outputs)``."""

    @property
    def kind(self) -> str:
        outputs, inputs = self.weight.shape
        return f"linear {inputs}-{outputs}"

    def kernels(self, instruction_set: str | None = None) -> Mapping[str, Make]:
        weight = self.weight.contiguous()
        packed: dict[str, Any] = {"relu": self.relu, "instruction_set": instruction_set}
        return {
            "dense": lambda: dense.Linear(weight, self.bias, relu=self.relu),
            "sparse": lambda: kernels.Linear(weight, self.bias, block=1, **packed),
            "block": lambda: kernels.Linear(weight, self.bias, block=BLOCK, **packed),
        }


@final
@dataclass(frozen=True, eq=False)
class Recurrence(Layer):
    """LSTM layers on top of each other: ``(x, h, c)`` to ``(y, h, c)``, as ``torch.lstm`` does.

    Attributes:
        parameters: in torch's order: of each layer, and of each direction, weights and biases.
        biased, layers, both, batch_first: as in torch; ``both`` is its ``bidirectional``.
    """

    parameters: tuple[Tensor, ...] = ()
    biased: bool = True
    layers: int = 1
    both: bool = False
    batch_first: bool = False

    @property
    def kind(self) -> str:
        gates, inputs = self.weight.shape
        times = f" x{self.layers}" if self.layers > 1 else ""
        return f"lstm {inputs}-{gates // 4}{times}{' both ways' if self.both else ''}"

    @property
    def weights(self) -> tuple[Tensor, ...]:
        return tuple(p for p in self.parameters if p.dim() == 2)

    @property
    def biases(self) -> tuple[Tensor, ...]:
        return tuple(p for p in self.parameters if p.dim() == 1)

    def holding(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Layer:
        left = {2: iter(weights), 1: iter(biases)}
        parameters = tuple(next(left[p.dim()]) for p in self.parameters)
        return replace(self, weight=parameters[0], parameters=parameters)

    def macs(self, output: Tensor) -> float:
        steps = output.numel() // output.shape[-1]
        return float(steps * sum(w.numel() for w in self.weights))

    def kernels(self, instruction_set: str | None = None) -> Mapping[str, Make]:
        form = (self.biased, self.layers, self.both, self.batch_first)
        made: dict[str, Make] = {"dense": lambda: dense.Lstm(self.parameters, *form)}
        if not self.both:
            made["sparse"] = lambda: self._stack(1, instruction_set)
            made["block"] = lambda: self._stack(BLOCK, instruction_set)
        return made

    def _stack(self, block: Block, instruction_set: str | None) -> Kernel:
        each = len(self.parameters) // self.layers
        stacked = [
            kernels.Lstm(
                *self.parameters[k * each : (k + 1) * each], block=block, instruction_set=instruction_set
            )
            for k in range(self.layers)
        ]
        return dense.Stack(stacked, self.batch_first)


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    """One layer with the kernel that runs it; of the layer's own tensors only the shapes are left."""

    layer: Layer
    kernel: Kernel
    biases: tuple[Tensor, ...] = ()

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """With their zeros, in the layer's order; made anew where the kernel has them packed."""
        kernel: Any = self.kernel
        return tuple(kernel.weights()) if hasattr(kernel, "weights") else (kernel.weight(),)

    @property
    def writes(self) -> bool:
        """Whether it can put its answer where it is told to; ``out`` may be what is added."""
        return hasattr(self.kernel, "bind")

    def __call__(self, *inputs: Tensor) -> Any:
        return self.kernel(*inputs)


def _share(nonzero: list[Tensor]) -> float:
    return sum(int(n.sum()) for n in nonzero) / max(sum(n.numel() for n in nonzero), 1)
