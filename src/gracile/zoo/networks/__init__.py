"""Reference networks: one family per file, written in ordinary PyTorch.

Every entry of :data:`models` is built from the same two facts, the shape of one example and the
number of classes, so that any network meets any data set that suits it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from torch import nn

from gracile.errors import UsageError
from gracile.train import Splits
from gracile.zoo.networks.conv_m import ConvM, ConvMNet, PlainConv, conv_m, conv_m_small, plain_small
from gracile.zoo.networks.lenet import LeNet
from gracile.zoo.networks.lstm import LSTMLanguageModel
from gracile.zoo.networks.mlp import MLP
from gracile.zoo.networks.resnet import CifarResNet, resnet20, resnet32, resnet56
from gracile.zoo.networks.sequence import LSTMClassifier
from gracile.zoo.networks.vgg import VGGSmall

__all__ = [
    "MLP",
    "CifarResNet",
    "ConvM",
    "ConvMNet",
    "LSTMClassifier",
    "LSTMLanguageModel",
    "LeNet",
    "PlainConv",
    "VGGSmall",
    "build",
    "conv_m",
    "conv_m_small",
    "models",
    "plain_small",
    "resnet20",
    "resnet32",
    "resnet56",
]

models: dict[str, Callable[[Sequence[int], int], nn.Module]] = {
    "convm": conv_m_small,
    "lenet": LeNet,
    "lstm": lambda shape, classes: LSTMLanguageModel(classes),
    "lstmp": lambda shape, classes: LSTMClassifier(shape[-1], classes, projections=(64, 64)),
    "mlp": lambda shape, classes: MLP((prod(shape), 300, 100, classes)),
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet56": resnet56,
    "vggsmall": VGGSmall,
}
"""Name -> function of (shape of one example, number of classes or tokens)."""

_IMAGES = frozenset(models) - {"lstm", "lstmp", "mlp"}


def build(name: str, of: Splits | Sequence[int], classes: int = 10) -> nn.Module:
    """Build the network ``name`` for a data set or for a shape.

    Args:
        name: a key of :data:`models`.
        of: splits made by :mod:`gracile.zoo.data`, which know their shape and classes, or the
            shape of one example: ``(channels, height, width)`` for images, ``(steps,)`` for tokens,
            ``(steps, features)`` for sequences of vectors.
        classes: number of classes (tokens of the vocabulary); taken from splits where given.

    Raises:
        UsageError: the name is unknown or the network cannot take such examples.

    >>> build("lenet", (1, 8, 8)).fc1
    Linear(in_features=200, out_features=500, bias=True)
    """
    if name not in models:
        raise UsageError(
            "building a network", got=f"the name '{name}'", expected=f"one of {', '.join(models)}"
        )
    if isinstance(of, Splits):
        shape, classes = _facts(of.train)
    else:
        shape = tuple(of)
    if name in _IMAGES and len(shape) != 3:
        raise UsageError(
            f"building '{name}'",
            got=f"examples of shape {shape}",
            expected="images of shape (channels, height, width)",
            hint="token streams go to 'lstm'" if len(shape) == 1 else "",
        )
    return models[name](shape, classes)


def _facts(data: Any) -> tuple[tuple[int, ...], int]:
    try:
        return tuple(data.shape), int(data.classes)
    except AttributeError as error:
        raise UsageError(
            "building a network",
            got=f"a data set of type {type(data).__name__}",
            expected="one that has .shape and .classes",
            hint="pass the shape of one example and classes= instead",
        ) from error
