"""gracile: efficient and scalable deep learning for PyTorch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gracile.cost.target import Program, Target, compile

__version__ = "0.1.0"
__all__ = ["Program", "Target", "__version__", "compile"]


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name in ("Program", "Target", "compile"):
        return getattr(importlib.import_module("gracile.cost.target"), name)
    raise AttributeError(f"module 'gracile' has no attribute '{name}'")
