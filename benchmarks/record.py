"""Where benchmarks leave their figures: one new JSON file for each run, never overwritten."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gracile.cost import environment
from gracile.files import write_json

RESULTS = Path(__file__).resolve().parent.parent / "results"


def record(benchmark: str, command: str, figures: dict[str, Any]) -> Path:
    """Write figures with command, time and environment; return the path."""
    now = datetime.now(UTC)
    entry = {
        "benchmark": benchmark,
        "command": command,
        "finished": now.isoformat(timespec="seconds"),
        "environment": environment(),
        **figures,
    }
    return write_json(RESULTS / f"{benchmark}-{now:%Y%m%dT%H%M%S}.json", entry)
