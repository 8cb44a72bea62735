"""One network to try: how to build it and what to call it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Built:
    """A network with an example of its inputs.

    ``outputs`` picks, from what the model returns, the part that matters; None takes all of it.
    """

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    outputs: Callable[[Any], Any] | None = None


@dataclass(frozen=True)
class Architecture:
    """A name, where it comes from (torchvision, timm, transformers, hand), its family, and how to build it.

    ``build(batch)`` gives random weights from a fixed seed and an example of that batch size.
    """

    name: str
    source: str
    family: str
    build: Callable[[int], Built]

    @property
    def key(self) -> str:
        """``"timm/resnet18"``: unique over all catalogs."""
        return f"{self.source}/{self.name}"
