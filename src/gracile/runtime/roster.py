"""Which engines there are on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from gracile.errors import UsageError
from gracile.runtime.engines import Engine
from gracile.runtime.onnx_engines import DeepSparse, OnnxRuntimeEngine, OpenVino
from gracile.runtime.torch_engines import ChannelsLast, Compiled, Torch

OTHERS: tuple[Engine, ...] = (
    Torch(),
    ChannelsLast(),
    Compiled(),
    OnnxRuntimeEngine(),
    OpenVino(),
    DeepSparse(),
)
"""All that are known besides gracile's own, installed or not."""


@final
@dataclass(frozen=True)
class Roster:
    """Engines that were asked for.

    Attributes:
        present: those that are installed.
        missing: name of each other one -> why it is not there.
    """

    present: tuple[Engine, ...]
    missing: Mapping[str, str]


def select(names: Iterable[str] | None, known: Iterable[Engine]) -> Roster:
    """Which of the known engines can be used here.

    Args:
        names: of those wanted, in any case, without spaces and signs; by default all but the patient ones.
        known: to choose from.

    Raises:
        UsageError: there is no engine of that name.

    >>> [engine.name for engine in select(["torch"], OTHERS).present]
    ['torch']
    """
    every = {short(engine.name): engine for engine in known}
    asked = every if names is None else dict.fromkeys(map(short, names))
    unknown = [name for name in asked if name not in every]
    if unknown or not asked:
        raise UsageError(
            "choosing engines",
            got=f"'{', '.join(unknown)}'",
            expected=f"some of {', '.join(every)}, separated by commas",
        )
    present, missing = [], {}
    for engine in map(every.__getitem__, asked):
        if engine.version is None:
            missing[engine.name] = f"no package {engine.package}" + (
                f": {engine.hint}" if engine.hint else ""
            )
        elif names is None and engine.patient:
            missing[engine.name] = "takes long to prepare; ask for it by name"
        else:
            present.append(engine)
    return Roster(tuple(present), missing)


def short(name: str) -> str:
    """How an engine is named in commands.

    >>> short("ONNX Runtime"), short("torch.compile")
    ('onnxruntime', 'torchcompile')
    """
    return re.sub("[^a-z0-9]", "", name.lower())
