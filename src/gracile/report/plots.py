"""The pictures of a report; each answers one question at a glance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from gracile.cost import Timing
from gracile.errors import ShapeError
from gracile.report.blocks import Figure
from gracile.report.quantities import number, printable, si
from gracile.report.svg import INK, LINE, MUTED, PALE, SERIES, style, to_svg
from gracile.train import History

_WIDTH = 4.6  # inches: on a telephone the letters of a wider picture would be too small


def widths(before: Mapping[str, int], after: Mapping[str, int], caption: str = "") -> Figure:
    """How wide is each layer still? A pale bar was there before, the solid part is left.

    Args:
        before, after: layer -> units. A layer missing from ``after`` is gone.
        caption: printed below.
    """
    with style():
        row = 0.27 if len(before) <= 24 else 0.2
        canvas = Canvas(figsize=(_WIDTH, 0.4 + row * max(len(before), 1)), layout="constrained")
        axes = canvas.add_subplot()
        for place, (layer, old) in enumerate(before.items()):
            new = after.get(layer, 0)
            axes.barh(place, 100.0, height=0.72, color=PALE)
            axes.barh(place, 100.0 * new / max(old, new, 1), height=0.72, color=SERIES[0])
            axes.text(103, place, f"{old} → {new}" if new != old else f"{old}", va="center", fontsize=9)
        axes.set_yticks(range(len(before)), [_short(layer) for layer in before])
        axes.set_xlim(0, 128)
        axes.set_ylim(max(len(before), 1) - 0.5, -0.5)
        axes.set_xticks([0, 50, 100], ["0 %", "50 %", "100 %"])
        _bare(axes)
        left = sum(min(after.get(layer, 0), old) for layer, old in before.items())
        alt = f"{left} of {sum(before.values())} units are left: " + ", ".join(
            f"{printable(layer)} {after.get(layer, 0)} of {old}" for layer, old in before.items()
        )
        return Figure(to_svg(canvas), alt, caption)


def training_curve(histories: Mapping[str, History], caption: str = "") -> Figure:
    """Did it learn, and did it stop in time? Loss and score of every phase, epoch by epoch.

    Dashed: training loss; solid: validation; the dot marks the epoch that was selected. Phases
    follow each other from left to right.

    Args:
        histories: phase -> finished run, in the order in which they ran; scores of one kind.
        caption: printed below.
    """
    scores = list(dict.fromkeys(history.score for history in histories.values()))
    if len(scores) != 1:
        raise ShapeError("training curve", got=f"scores {scores}", expected="runs with one kind of score")
    with style():
        canvas = Canvas(figsize=(_WIDTH, 3.5), layout="constrained")
        top, bottom = canvas.subplots(2, sharex=True)
        start = 0
        for color, (phase, history) in zip(_colors(len(histories)), histories.items(), strict=True):
            x = [start + epoch.number for epoch in history.epochs]
            validation = [epoch.validation for epoch in history.epochs]
            dot = {"marker": "o", "markersize": 4.5, "markevery": [history.selected - 1], "color": color}
            top.plot(x, [epoch.train_loss for epoch in history.epochs], color=color, ls=(0, (3, 2)), lw=1.1)
            top.plot(x, [metrics.loss for metrics in validation], **dot)
            bottom.plot(x, [metrics.score for metrics in validation], label=_short(phase), **dot)
            start += len(history.epochs)
        top.set_title("Loss (dashed: training)")
        bottom.set_title(f"Validation {printable(scores[0])}")
        bottom.set_xlabel("epoch")
        bottom.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if scores[0] == "accuracy":
            bottom.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=" %"))
        canvas.legend(loc="outside upper left", ncols=3)
        best = ", ".join(
            f"{printable(phase)} {number(history.best.score)}" for phase, history in histories.items()
        )
        return Figure(to_svg(canvas), f"Training curves; best validation {scores[0]}: {best}", caption)


def latency_bars(groups: Mapping[str, Mapping[str, Timing]], caption: str = "") -> Figure:
    """Is it really faster? Median time of every candidate, with quartiles, in groups.

    Args:
        groups: group (``"batch 1"``) -> what :func:`gracile.cost.measure` returned.
        caption: printed below.
    """
    bars = {name: {c: t.median_s for c, t in timings.items()} for name, timings in groups.items()}
    spread = {
        name: {c: (t.median_s - t.lower_s, t.upper_s - t.median_s) for c, t in timings.items()}
        for name, timings in groups.items()
    }
    return grouped_bars(bars, spread, lambda value: si(value, "s"), caption)


def grouped_bars(
    groups: Mapping[str, Mapping[str, float]],
    spread: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    label: Callable[[float], str] = si,
    caption: str = "",
) -> Figure:
    """Which is less, and by how much? Horizontal bars in groups, each group on a scale of its own.

    Args:
        groups: group -> series -> value.
        spread: group -> series -> distances down and up from the value.
        label: how a value is written.
        caption: printed below.

    Raises:
        ShapeError: there is no bar to draw.
    """
    spread = spread or {}
    if not groups or not all(groups.values()):
        raise ShapeError("bars", got=f"the groups {dict(groups)}", expected="one bar or more in each group")
    series = list(dict.fromkeys(name for bars in groups.values() for name in bars))
    colors = dict(zip(series, _colors(len(series)), strict=True))
    with style():
        counts = [len(bars) for bars in groups.values()]
        canvas = Canvas(figsize=(_WIDTH, 0.36 * len(counts) + 0.3 * sum(counts)), layout="constrained")
        rows = canvas.subplots(len(groups), height_ratios=counts, squeeze=False)[:, 0]
        for axes, (group, bars) in zip(rows, groups.items(), strict=True):
            most = 0.0
            for place, (name, value) in enumerate(bars.items()):
                down, up = spread.get(group, {}).get(name, (0.0, 0.0))
                axes.barh(place, value, height=0.7, color=colors[name])
                if down or up:
                    axes.errorbar(value, place, xerr=[[down], [up]], color=INK, capsize=2.5, lw=1.1)
                end = 0.0 if math.isnan(value) else value + up  # unknown: a label without a bar
                axes.annotate(label(value), (end, place), (5, 0), textcoords="offset points", va="center")
                most = max(most, end)
            axes.set_title(_short(group))
            axes.set_yticks(range(len(bars)), [_short(name) for name in bars])
            axes.set_ylim(len(bars) - 0.5, -0.5)
            axes.set_xlim(0, 1.3 * most if most > 0 else 1.0)
            axes.set_xticks([])
            _bare(axes)
        alt = "; ".join(
            f"{printable(group)}: " + ", ".join(f"{printable(name)} {label(v)}" for name, v in bars.items())
            for group, bars in groups.items()
        )
        return Figure(to_svg(canvas), alt, caption)


def scaling(curves: Mapping[str, Mapping[int, float]], caption: str = "") -> Figure:
    """How much do more machines bring? Throughput of all over that of one; dashed, what would be ideal.

    Args:
        curves: series -> number of machines -> times as many samples a second as one machine.
        caption: printed below.

    Raises:
        ShapeError: there is no point to draw, or one that no logarithm has.
    """
    points = [(n, gain) for curve in curves.values() for n, gain in curve.items()]
    if not points or not all(n >= 1 and 0 < gain < math.inf for n, gain in points):
        raise ShapeError("curves", got=f"{dict(curves)}", expected="positive gains for 1 or more machines")
    with style():
        canvas = Canvas(figsize=(_WIDTH, 3.4), layout="constrained")
        axes = canvas.add_subplot()
        counts = sorted({n for n, _ in points})
        axes.plot(counts, counts, color=MUTED, lw=0.9, ls=(0, (3, 2)), label="ideal")
        for color, (name, curve) in zip(_colors(len(curves)), curves.items(), strict=True):
            axes.plot(list(curve), list(curve.values()), color=color, marker="o", ms=3, label=_short(name))
        axes.set(xscale="log", yscale="log", xlabel="machines", ylabel="times the throughput of one")
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda gain, _: f"{gain:g}"))
        axes.minorticks_off()
        axes.legend(fontsize=8)
        most = counts[-1]
        alt = f"Throughput of {most} machines over one: " + ", ".join(
            f"{printable(name)} {number(curve[most])}" for name, curve in curves.items() if most in curve
        )
        return Figure(to_svg(canvas), alt, caption)


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines["left"].set_color(LINE)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", labelcolor=MUTED)


def _colors(count: int) -> Sequence[str]:
    return [SERIES[place % len(SERIES)] for place in range(count)]


def _short(name: str, most: int = 26) -> str:
    clean = printable(name).replace("\n", " ")
    return clean if len(clean) <= most else f"{clean[: most // 2 - 1]}…{clean[-most // 2 :]}"
