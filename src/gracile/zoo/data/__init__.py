"""Real data sets as :class:`~gracile.train.Splits`: checked, shuffled, normalized.

Files are never downloaded. They lie in one folder (an argument, or ``GRACILE_DATA``), one
subfolder per set, and are compared with known checksums before anything believes them.
Validation examples always come out of the training part; the test part is never touched.
Every part knows ``shape`` (of one example) and ``classes``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gracile.errors import UsageError
from gracile.train import Splits
from gracile.zoo.data.cifar10 import cifar10
from gracile.zoo.data.digits import digits
from gracile.zoo.data.domains import DOMAINS, Vectors, domain, domain_available
from gracile.zoo.data.images import Images
from gracile.zoo.data.mnist import fashion_mnist, mnist
from gracile.zoo.data.ptb import Windows, ptb
from gracile.zoo.data.source import present
from gracile.zoo.data.speech import Clips, speech

__all__ = [
    "DOMAINS",
    "Clips",
    "Images",
    "Vectors",
    "Windows",
    "available",
    "cifar10",
    "digits",
    "domain",
    "domain_available",
    "fashion_mnist",
    "load",
    "loaders",
    "mnist",
    "ptb",
    "speech",
]

loaders: dict[str, Callable[[str | Path | None, int], Splits]] = {
    "digits": lambda folder, seed: digits(seed),
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "ptb": lambda folder, seed: ptb(folder),  # running text is not shuffled
    "speech": speech,
}
"""Name -> function of (data folder, seed)."""


def load(name: str, folder: str | Path | None = None, seed: int = 0) -> Splits:
    """Load the data set ``name``, a key of :data:`loaders`.

    Args:
        name: ``"digits"``, ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``, ``"ptb"`` or
            ``"speech"``.
        folder: the data folder; ``GRACILE_DATA`` by default.
        seed: of the border between training and validation.

    Raises:
        UsageError: there is no such set.
        FileError: its files are missing or damaged.

    >>> len(load("digits").test)
    450
    """
    return loaders[_known(name)](folder, seed)


def available(name: str, folder: str | Path | None = None) -> bool:
    """Whether the files of the data set ``name`` are there (their contents are checked on loading).

    Raises:
        UsageError: there is no such set.

    >>> available("digits")
    True
    """
    return _known(name) == "digits" or present(folder, name)


def _known(name: str) -> str:
    if name not in loaders:
        raise UsageError(
            "finding a data set", got=f"the name '{name}'", expected=f"one of {', '.join(loaders)}"
        )
    return name
