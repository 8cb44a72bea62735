"""An outcome as something to look at: a page, and one screen of the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from gracile.pipeline.outcome import Latency, Outcome
from gracile.report import (
    Block,
    Code,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    console,
    factor,
    facts,
    latency_bars,
    page,
    percent,
    si,
    training_curve,
    widths,
)


def publish(outcome: Outcome, path: str | Path) -> Path:
    """Write the outcome as one self-contained HTML page; return its path."""
    sections = [
        Section("What was gained, and what was lost", (gains(outcome), *_caveats(outcome))),
        Section("What is left of every layer", (_widths(outcome), _layers(outcome))),
        Section("Measured latency", _timed(outcome)),
        Section("How it learned", (training_curve(dict(outcome.histories), _stages(outcome)),)),
        Section(
            "How to do it again",
            (
                Code(outcome.command or "gracile.pipeline.slim(...)"),
                facts(outcome.environment, "The machine"),
            ),
        ),
    ]
    return page(outcome.title, sections, Path(path))


def summarize(outcome: Outcome) -> None:
    """Print what was gained and lost on one screen."""
    console(outcome.title, [Section("", (gains(outcome), *_caveats(outcome)))])


def _stages(outcome: Outcome) -> str:
    return _LEARNED if "structure" in dict(outcome.histories) else _CHOSEN


def gains(outcome: Outcome) -> KeyFigures:
    """The numbers that matter, before and after."""
    before, after = outcome.before, outcome.after
    moved = 100 * (after.score - before.score)
    figures = [
        KeyFigure(
            f"test {outcome.score}",
            percent(before.score),
            percent(after.score),
            f"{moved:+.2f} points",
            "same" if moved == 0 else "better" if moved > 0 else "worse",
        )
        if outcome.score == "accuracy"
        else KeyFigure(f"test {outcome.score}", f"{before.score:.2f}", f"{after.score:.2f}"),
        _fewer("parameters", before.parameters, after.parameters),
        _fewer("MACs", before.macs, after.macs),
        _fewer("bytes", before.bytes, after.bytes, "B"),
    ]
    figures += [_faster(latency) for latency in outcome.latencies]
    return KeyFigures(tuple(figures))


_LEARNED = "The dense network, then the same under group Lasso, then what was left of it."
_CHOSEN = "The dense network, then what was left of it after every cut."


def _fewer(label: str, before: float | None, after: float | None, unit: str = "") -> KeyFigure:
    if before is None or after is None:
        return KeyFigure(label, "unknown", "unknown")
    return KeyFigure(
        label, si(before, unit), si(after, unit), f"{factor(before, after)} fewer", _verdict(before, after)
    )


def _faster(latency: Latency) -> KeyFigure:
    reduced, ratio = latency.reduced, latency.reduced.speedup
    sure = reduced.speedup_lower > 1 or reduced.speedup_upper < 1  # else the interval holds "no change"
    return KeyFigure(
        f"latency, batch {latency.batch}",
        si(latency.dense.median_s, "s"),
        si(latency.reduced.median_s, "s"),
        f"{factor(ratio, 1)} faster" if ratio >= 1 else f"{factor(1, ratio)} slower",
        _verdict(ratio, 1) if sure else "same",
    )


def _verdict(before: float, after: float) -> Literal["better", "worse", "same"]:
    return "better" if after < before else "same" if after == before else "worse"


def _caveats(outcome: Outcome) -> tuple[Block, ...]:
    proof = (
        f"The cut was checked before fine-tuning: the reduced network's outputs differ from those of the "
        f"network it was cut from by at most {outcome.equality:.1e} of their size ({outcome.verdict})."
    )
    kept = tuple(Text(f"Kept: {reason}", warning=True) for reason in outcome.refused[:8])
    asked = (Text(f"Budget: {outcome.asked}."),) if outcome.asked else ()
    return (*asked, Text(proof), *kept)


def _widths(outcome: Outcome) -> Block:
    return widths(
        {layer.name: layer.width[0] for layer in outcome.layers},
        {layer.name: layer.width[1] for layer in outcome.layers},
        "Outputs of every layer: the pale bar was there, the solid part is left.",
    )


def _layers(outcome: Outcome) -> Block:
    rows = tuple(
        (layer.name, *layer.width, *layer.parameters, *("unknown" if m is None else m for m in layer.macs))
        for layer in outcome.layers
    )
    header = ("layer", "width", "left", "parameters", "left ", "MACs", "left  ")
    return Table(header, rows, "Widths, parameters and multiply-accumulates by layer")


def _timed(outcome: Outcome) -> tuple[Block, ...]:
    if not outcome.latencies:
        return (Text("Not measured."),)
    return (_latency_bars(outcome), _latencies(outcome))


def _latency_bars(outcome: Outcome) -> Block:
    groups = {
        f"batch {each.batch}": {"dense": each.dense, "reduced": each.reduced} for each in outcome.latencies
    }
    return latency_bars(groups, "Median and quartiles; dense and reduced took turns in one process.")


def _latencies(outcome: Outcome) -> Block:
    rows = []
    for each in outcome.latencies:
        for timing in (each.dense, each.reduced):
            spread = f"{si(timing.lower_s, 's')} to {si(timing.upper_s, 's')}"
            ratio = f"{timing.speedup:.2f}x ({timing.speedup_lower:.2f} to {timing.speedup_upper:.2f})"
            rows.append((each.batch, timing.name, timing.threads, si(timing.median_s, "s"), spread, ratio))
    header = ("batch", "network", "threads", "median", "quartiles", "faster (95 % interval)")
    rounds = len(outcome.latencies[0].dense.samples_s)
    return Table(header, tuple(rows), f"{rounds} interleaved rounds")
