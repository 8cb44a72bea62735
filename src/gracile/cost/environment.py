"""What a measurement was made on: enough to repeat it, nothing that identifies a person or a host."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

import gracile

try:
    from gracile._native import instruction_sets
except ImportError:  # installed without a compiler
    instruction_sets = None

_KNOWN = ("sse4_2", "avx2", "fma", "avx512f", "avx512_vnni", "asimd")
_NAMES = {"sse4_2": "sse4.2", "avx512_vnni": "avx512vnni", "asimd": "neon"}


@final
@dataclass(frozen=True)
class Environment:
    """Processor, system and versions.

    Attributes:
        processor: its marketing name.
        cores: logical processors that this process may use.
        threads: that torch uses by default.
        instructions: vector instruction sets, ascending.
        accelerator: name of the first CUDA device, or ``""``.
        system: operating system and architecture.
        python, torch, gracile: versions.
    """

    processor: str
    cores: int
    threads: int
    instructions: tuple[str, ...]
    accelerator: str
    system: str
    python: str
    torch: str
    gracile: str


def environment() -> Environment:
    """Describe this machine and the versions in use.

    >>> environment().cores > 0
    True
    """
    facts = _facts(Path("/proc/cpuinfo"))
    return Environment(
        processor=facts.get("model name") or platform.processor() or platform.machine() or "unknown",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        instructions=tuple(instruction_sets() if instruction_sets else _listed(facts)),
        accelerator=torch.cuda.get_device_name(0) if torch.cuda.is_available() else "",
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        torch=str(torch.__version__),
        gracile=gracile.__version__,
    )


def _facts(cpuinfo: Path) -> dict[str, str]:
    try:
        lines = cpuinfo.read_text(errors="replace").split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}


def _listed(facts: dict[str, str]) -> Sequence[str]:
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    return [_NAMES.get(flag, flag) for flag in _KNOWN if flag in flags]
