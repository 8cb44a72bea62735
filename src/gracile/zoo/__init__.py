"""Reference networks and real data sets, for recipes, examples and tests.

>>> splits = load("digits")
>>> model = build("lenet", splits)
"""

from gracile.zoo.data import (
    Clips,
    Images,
    Windows,
    available,
    cifar10,
    digits,
    fashion_mnist,
    load,
    loaders,
    mnist,
    ptb,
    speech,
)
from gracile.zoo.networks import (
    MLP,
    CifarResNet,
    LeNet,
    LSTMClassifier,
    LSTMLanguageModel,
    VGGSmall,
    build,
    models,
    resnet20,
    resnet32,
    resnet56,
)

__all__ = [
    "MLP",
    "CifarResNet",
    "Clips",
    "Images",
    "LSTMClassifier",
    "LSTMLanguageModel",
    "LeNet",
    "VGGSmall",
    "Windows",
    "available",
    "build",
    "cifar10",
    "digits",
    "fashion_mnist",
    "load",
    "loaders",
    "mnist",
    "models",
    "ptb",
    "resnet20",
    "resnet32",
    "resnet56",
    "speech",
]
