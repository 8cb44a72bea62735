"""The file of trials: one JSON line for each architecture, the last one counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from gracile.files import write_bytes
from reducible.trial import Trial


def read(path: Path) -> dict[str, Trial]:
    """Trials by ``"source/name"``; none where there is no file. A last line that was cut off is left out."""
    found: dict[str, Trial] = {}
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            try:
                trial = Trial(**json.loads(line))
            except ValueError:
                continue
            found[f"{trial.source}/{trial.name}"] = trial
    return found


def append(path: Path, trial: Trial) -> None:
    """Add one line, in one write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(_line(trial))


def rewrite(path: Path, trials: Iterable[Trial]) -> None:
    """One line each, in order, atomically."""
    write_bytes(
        path, "".join(_line(t) for t in sorted(trials, key=lambda t: (t.source, t.family, t.name))).encode()
    )


def _line(trial: Trial) -> str:
    short = {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in asdict(trial).items()}
    return json.dumps(short) + "\n"
