"""The three parts of a data set: one to learn from, one to choose by, one to be judged by."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, final

from gracile.errors import UsageError


@final
@dataclass(frozen=True)
class Splits:
    """Data sets of ``(input, target)`` pairs; nothing is ever selected by looking at ``test``.

    Args:
        train: has ``__len__`` and ``__getitem__``, as :class:`torch.utils.data.Dataset`; so have all.
        validation: chooses epochs, strengths, and when to stop.
        test: measured once, after everything has been chosen.

    Raises:
        UsageError: one of them is empty.
    """

    train: Any
    validation: Any
    test: Any

    def __post_init__(self) -> None:
        for part in fields(self):
            if len(getattr(self, part.name)) == 0:
                raise UsageError("splitting data", got=f"an empty {part.name} set", expected="samples")
