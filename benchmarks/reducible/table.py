"""The page that shows a study: by source and family, and every failure with its reason."""

from __future__ import annotations

import math
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import torch

from gracile.files import write_bytes
from reducible.trial import EQUAL, Trial

WRITTEN = ("hand", "random")  # sources that are no public architectures
LIMIT_S = 10.0  # of CPU time that one architecture may cost beyond its own forward passes
HEADER = """# Coverage

Which public architectures can be reduced, with no hints: half of every block of units is removed at random.
This page is made by `make coverage` from [results/coverage](../results/coverage/trials.jsonl).

*reduced*: at least a tenth of the parameters gone, the result moved, and it computes what is claimed.
*refused*: nothing, or less than a tenth, could be removed; the reason is given below. *wrong*: the reduced
network runs and is another function. *left*: share of the parameters, median. *error*: largest difference
from the masked network relative to its largest output, in float32. *CPU*: seconds beyond the forward
passes, which are counted and priced at one plain forward each; median and largest.

Weights are random; batch-norm statistics are calibrated and vectors jittered, so that no output is constant.
Errors are those of the library's own verification, on other weights than the network's (jittered further, or
drawn anew), some of which amplify rounding, and of `benchmarks/reducible/check.py`, which shares no code with
it: an ordinary full-size copy of the network itself with zeros, on fresh inputs with a batch of two. Where
operators count along what is removed (the mean of LayerNorm), no plain masked network exists; there a second
removal with `norms="keep"` is checked so.
"""


def write(page: Path, trials: Sequence[Trial]) -> None:
    """The whole page, atomically."""
    write_bytes(page, "\n".join([HEADER, *_body(trials)]).encode())


def summary(trials: Sequence[Trial]) -> list[str]:
    """The figures of a study in a few lines."""
    if not trials:
        return ["no trials"]
    outcomes = Counter(t.outcome for t in trials)
    built = [t for t in trials if t.outcome != "cannot build"]
    reduced = [t for t in built if t.outcome == "ok"]
    errors = [t.check_error for t in reduced if t.check_error is not None]
    plain = [t for t in reduced if t.check == "masked"]
    kept = [t for t in reduced if t.check == "kept"]
    return [
        f"{len(built)} architectures: {len(reduced)} reduced ({len(reduced) / max(1, len(built)):.1%}), "
        + ", ".join(f"{outcomes[kind]} {kind}" for kind in ("refused", "wrong", "timeout", "failed"))
        + (f"; {outcomes['cannot build']} could not be built" if outcomes["cannot build"] else ""),
        f"parameters left: median {_median([t.left for t in reduced]):.3f}",
        f"largest error found by the library {_largest([t.error for t in reduced]):.1e}, "
        f"by the independent check {_largest(errors):.1e} "
        f"({sum(e > EQUAL['float32'] for e in errors)} above {EQUAL['float32']:.0e})",
        f"checked against a plain masked copy: {len(plain)}; with norms='keep': {len(kept)}; "
        f"by verification alone: {len(reduced) - len(plain) - len(kept)}",
        f"CPU seconds beyond forward passes: median {_median([t.own_s for t in built]):.2f}, "
        f"largest {_largest([t.own_s for t in built]):.1f}, "
        f"above {LIMIT_S:.0f} s: {sum((t.own_s or 0) > LIMIT_S for t in built)}",
    ]


def _body(trials: Sequence[Trial]) -> Iterable[str]:
    written = [t for t in trials if t.source in WRITTEN]
    public = [t for t in trials if t.source not in WRITTEN]
    for title, part in (("Public architectures", public), ("Written for this study", written)):
        if part:
            yield f"{title}:"
            yield ""
            yield from (f"- {line}" for line in summary(part))
            yield ""
    yield f"Made with {_environment()}."
    yield ""
    yield "## By source"
    yield ""
    yield from _rows(trials, lambda t: t.source)
    for source in dict.fromkeys(t.source for t in trials):
        yield ""
        yield f"## {source}"
        yield ""
        yield from _rows([t for t in trials if t.source == source], lambda t: t.family)
    yield ""
    yield "## What was not reduced, and why"
    yield ""
    yield "| architecture | outcome | reason |"
    yield "|---|---|---|"
    for trial in trials:
        if trial.outcome != "ok":
            yield f"| {trial.source}/{trial.name} | {trial.outcome} | {_plain(trial.reason)} |"
    yield ""
    yield "## Least reduced"
    yield ""
    yield "| architecture | left | held by |"
    yield "|---|---|---|"
    for trial in sorted((t for t in trials if t.outcome == "ok"), key=lambda t: -(t.left or 0))[:30]:
        yield f"| {trial.source}/{trial.name} | {trial.left:.3f} | {_plain((trial.refusals or [''])[0])} |"
    yield ""


def _rows(trials: Sequence[Trial], by: Callable[[Trial], str]) -> Iterable[str]:
    yield "| | models | reduced | refused | wrong | left | error | CPU median | CPU largest |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for name in sorted({by(t) for t in trials}, key=str.lower):
        rows = [t for t in trials if by(t) == name and t.outcome != "cannot build"]
        if not rows:
            continue
        reduced = [t for t in rows if t.outcome == "ok"]
        wrong = sum(t.outcome == "wrong" for t in rows)
        error = _largest([e for t in reduced for e in (t.error, t.check_error)])
        yield (
            f"| {name} | {len(rows)} | {len(reduced)} | {len(rows) - len(reduced) - wrong} | {wrong} "
            f"| {_median([t.left for t in reduced]):.2f} | {error:.0e} "
            f"| {_median([t.own_s for t in rows]):.1f} | {_largest([t.own_s for t in rows]):.1f} |"
        )


def _median(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return median(known) if known else math.nan


def _largest(values: Iterable[float | None]) -> float:
    return max((v for v in values if v is not None), default=math.nan)


def _plain(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")[:300]


def _environment() -> str:
    names = [f"Python {platform.python_version()}", f"torch {torch.__version__}"]
    for package in ("torchvision", "timm", "transformers"):
        try:
            names.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(names)
