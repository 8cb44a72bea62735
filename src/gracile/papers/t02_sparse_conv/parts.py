"""The networks of T2: data, training and density of each. Every one can be run alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod, sqrt
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from gracile.files import read_tensors
from gracile.papers.registry import Scale
from gracile.train import Splits, Task, classification, language_modeling
from gracile.zoo import LSTMLanguageModel, Windows, build, cifar10, digits, ptb
from gracile.zoo.data.source import data_folder

KINDS = ("dense", "single", "runs of 16")
"""How the training goes on: dense, with single zeros, with zeros in runs of 16 output channels."""

WORDS = 200_000
"""Of 929,589 that the language model learns from: what one core can read a dozen times over."""

SGD = partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4)


Density = Callable[[Sequence[int]], float]
"""Shape of a weight -> share of it that is left."""


def equal(share: float) -> Density:
    """The same share of every layer.

    >>> equal(0.3)((64, 64, 3, 3))
    0.3
    """
    return lambda shape: share


def by_size(kept: float) -> Density:
    """sqrt(kept (out + in + kh + kw) / (out in kh kw)), at most 1.

    So large layers become sparser than small ones, which have less to spare. Without the root it would be the
    allocation of Evci et al. (2020), which leaves small layers nearly dense: those on large maps take most of
    the time.

    >>> round(by_size(8)((64, 64, 3, 3)), 3), round(by_size(8)((16, 16, 3, 3)), 3)
    (0.171, 0.363)
    """
    return lambda shape: min(1.0, sqrt(kept * sum(shape) / prod(shape)))


@final
@dataclass(frozen=True)
class Part:
    """One network, trained in *legs*: the next so many samples of the training data, in one call of ``fit``.

    Args:
        splits: seed -> data.
        network: seed -> the network to begin with, perhaps trained.
        task: loss and score.
        optimizer: made anew for every leg.
        batch_size: samples, or windows, in a step.
        pass_: legs in one pass through the training data.
        first: legs of the common beginning.
        more: legs that every kind goes on for, of which the first half prune.
        left: kind -> shape of a layer's weight -> share of it that is left.
        faster: how many times faster than the fastest dense engine the network with single zeros is to be.
        example: the input that is timed, from the first of the test data.
        clip: largest norm of the gradients.
        precision: of the products while training.
        beside: the claim that its pruned convolutions, timed one by one, stand beside, if there is one.
    """

    splits: Callable[[int], Splits]
    network: Callable[[int], nn.Module]
    task: Task
    optimizer: Callable[..., torch.optim.Optimizer]
    batch_size: int
    pass_: int
    first: int
    more: int
    left: Mapping[str, Density]
    faster: float
    example: Callable[[Tensor], Tensor] = lambda x: x[None]
    clip: float | None = None
    precision: torch.dtype = torch.bfloat16
    beside: str | None = None


@final
@dataclass(frozen=True, eq=False)
class Moved(Dataset[tuple[Tensor, Tensor]]):
    """Images that come shifted by up to ``shift`` pixels each way, half of them mirrored.

    Draws from torch's generator, which :func:`gracile.train.fit` seeds.

    >>> image, target = Moved(digits().train, shift=1)[0]
    >>> image.shape
    torch.Size([1, 8, 8])
    """

    images: Any
    shift: int = 4

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Read many at once, which data loaders do when they can."""
        pairs = self.images.__getitems__(indices)
        x = torch.stack([image for image, _ in pairs])
        count, _, height, width = x.shape
        padded = functional.pad(x, (self.shift,) * 4)
        down, across = torch.randint(0, 2 * self.shift + 1, (2, count, 1))
        rows, columns = down + torch.arange(height), across + torch.arange(width)
        mirrored = torch.rand(count, 1) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        which = torch.arange(count)[:, None, None]
        moved = padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
        return [(image, target) for image, (_, target) in zip(moved, pairs, strict=True)]


def alexnet() -> nn.Sequential:
    """Krizhevsky's network for images of 32x32 pixels: a third of its filters, in multiples of 32.

    Five convolutions in two groups where he has two, overlapping pools, three linear layers; 32 million
    multiply-accumulates and 5.3 million parameters. No batch normalization.

    >>> alexnet()(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def stage(i: int, o: int, kernel: int, groups: int = 1) -> list[nn.Module]:
        return [nn.Conv2d(i, o, kernel, padding=kernel // 2, groups=groups), nn.ReLU()]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, 1)

    return nn.Sequential(
        *(*stage(3, 32, 5), pool(), *stage(32, 96, 5, 2), pool()),
        *(*stage(96, 128, 3), *stage(128, 128, 3, 2), *stage(128, 96, 3, 2), pool(), nn.Flatten()),
        *(nn.Dropout(), nn.Linear(1536, 1536), nn.ReLU(), nn.Dropout(), nn.Linear(1536, 1536), nn.ReLU()),
        nn.Linear(1536, 10),
    )


def _fresh(seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(seed)
    return make()


def _pretrained(seed: int, name: str) -> nn.Module:
    """A public ResNet, trained on the original pixels; the pixels here have been through JPEG."""
    model = build(name, (3, 32, 32))
    model.load_state_dict(read_tensors(data_folder() / f"pretrained/{name}_cifar10.safetensors"))
    return model


def _photographs(seed: int) -> Splits:
    return cifar10(seed=seed)


def _moving(seed: int) -> Splits:
    """What a network that has learned its training images by heart still learns from."""
    splits = cifar10(seed=seed)
    return Splits(Moved(splits.train), splits.validation, splits.test)


def _text(seed: int) -> Splits:
    """Windows of 35 words of a part of the text to learn from; of 120, all of it, to be judged by."""
    parts = ptb()
    train, *judged = (
        Windows(part.stream[:words], part.vocabulary, steps=steps, batch_size=streams)
        for part, words, steps, streams in (
            (parts.train, WORDS, 35, 20),
            (parts.validation, None, 120, 10),
            (parts.test, None, 120, 10),
        )
    )
    return Splits(train, *judged)


def _first_words(window: Tensor) -> Tensor:
    return window[None, :35].contiguous()


def _resnet(name: str, more: int, left: Density, faster: float) -> Part:
    return Part(
        _moving,
        partial(_pretrained, name=name),
        classification(),
        partial(SGD, lr=0.02),
        batch_size=64,
        pass_=3,
        first=0,
        more=more,
        left={"single": left, "runs of 16": equal(0.5)},
        faster=faster,
    )


PARTS: dict[Scale, dict[str, Part]] = {
    "tiny": {
        "vggsmall": Part(
            digits,
            partial(_fresh, make=lambda: build("vggsmall", (1, 8, 8))),
            classification(),
            partial(SGD, lr=0.05),
            batch_size=32,
            pass_=1,
            first=12,
            more=12,
            left={"single": by_size(1), "runs of 16": by_size(3)},
            faster=1.0,
            precision=torch.float32,
        )
    },
    "cpu": {
        "alexnet": Part(
            _photographs,
            partial(_fresh, make=alexnet),
            classification(),
            partial(SGD, lr=0.05),
            batch_size=64,
            pass_=3,
            first=15,
            more=9,
            left={"single": by_size(15), "runs of 16": by_size(40)},
            faster=2.5,
            clip=1.0,
            beside="convolutions",
        ),
        "lstm": Part(
            _text,
            partial(_fresh, make=lambda: LSTMLanguageModel(10_000, (650, 650), embedding=650, dropout=0.5)),
            language_modeling(),
            partial(torch.optim.SGD, lr=20.0),
            batch_size=20,
            pass_=2,
            first=12,
            more=12,
            left={"single": equal(0.12), "runs of 16": equal(0.25)},
            faster=2.5,
            example=_first_words,
            clip=0.25,
        ),
        "resnet20": _resnet("resnet20", 9, equal(0.38), 1.7),
        "resnet56": _resnet("resnet56", 6, equal(0.34), 2.0),
    },
}
"""Scale -> networks by name."""


def prunable(model: nn.Module, least: int = 1000) -> list[str]:
    """The weights that may become sparse: not the first convolution, embeddings, or what is tiny anyway.

    >>> prunable(build("lenet", (1, 8, 8)))
    ['conv2.weight', 'fc1.weight', 'fc2.weight']
    """
    found: list[str] = []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.LSTM) and module not in convolutions[:1]:
            weights: dict[str, Any] = dict(module.named_parameters(recurse=False))
            found += [f"{name}.{own}" for own, w in weights.items() if w.dim() > 1 and w.numel() >= least]
    return found
