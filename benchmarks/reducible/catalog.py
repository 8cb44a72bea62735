"""All architectures, by where they come from. A catalog is a module with a tuple ``ARCHITECTURES``."""

from __future__ import annotations

import importlib
from fnmatch import fnmatch

from reducible.architecture import Architecture

SOURCES = {
    "torchvision": "reducible.torchvision",
    "timm": "reducible.timm",
    "transformers": "reducible.transformers",
    "hand": "reducible.edge_cases",
    "random": "reducible.programs",
}


def architectures(source: str) -> tuple[Architecture, ...]:
    """The catalog of one source.

    Raises:
        ImportError: the library it draws from is not installed.
    """
    found: tuple[Architecture, ...] = importlib.import_module(SOURCES[source]).ARCHITECTURES
    return found


def find(key: str) -> Architecture:
    """The architecture called ``"source/name"``.

    Raises:
        KeyError: there is none.
    """
    source, _, name = key.partition("/")
    for architecture in architectures(source):
        if architecture.name == name:
            return architecture
    raise KeyError(key)


def matching(source: str, pattern: str) -> list[Architecture]:
    """Those whose name or ``source/name`` fits a shell pattern; in the order of the catalog."""
    return [a for a in architectures(source) if fnmatch(a.name, pattern) or fnmatch(a.key, pattern)]
