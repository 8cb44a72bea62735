"""Pictures carry the numbers they were given, and nothing that runs or loads."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import matplotlib
import pytest

from gracile.cost import Timing
from gracile.errors import ShapeError, UsageError
from gracile.report import Figure, grouped_bars, latency_bars, scaling, training_curve, widths
from gracile.report.svg import checked, with_ids
from gracile.train import Epoch, History, Metrics


def texts(figure: Figure) -> list[str]:
    return ["".join(e.itertext()).strip() for e in ElementTree.fromstring(figure.svg).iter("text")]


def bar_lengths(figure: Figure, color: str) -> list[float]:
    """Widths of the filled rectangles of one color, in points, from top to bottom."""
    found = []
    for path in ElementTree.fromstring(figure.svg).iter("path"):
        if f"fill: var({color}" in path.get("style", ""):
            x, y = zip(*re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d")), strict=True)
            found.append((min(map(float, y)), max(map(float, x)) - min(map(float, x))))
    return [length for _, length in sorted(found)]


def history(*scores: float, name: str = "accuracy") -> History:
    epochs = tuple(
        Epoch(n, 10 * n, 1.0 / n, Metrics(1.1 / n, score), 0.1, 1.0) for n, score in enumerate(scores, 1)
    )
    best = 1 + max(range(len(scores)), key=lambda n: scores[n])
    return History(epochs, best, Metrics(0.5, 0.5), name, "all epochs done")


def timing(name: str, median: float) -> Timing:
    return Timing(name, median, 0.9 * median, 1.2 * median, 1.0, 1.0, 1.0, 1, 0, (median,) * 5, 1, "cpu")


def test_widths_draw_what_is_left() -> None:
    figure = widths({"conv1": 20, "conv2": 50, "fc": 8, "gone": 4}, {"conv1": 5, "conv2": 50, "fc": 2})
    assert {"conv1", "20 → 5", "50", "8 → 2", "4 → 0"} <= set(texts(figure))
    full = bar_lengths(figure, "--pale")
    left = bar_lengths(figure, "--series-0")
    shares = [new / old for new, old in zip(left, full, strict=True)]
    assert shares == pytest.approx([0.25, 1.0, 0.25, 0.0], abs=1e-3)
    assert "57 of 82 units are left" in figure.alt


def test_no_layers_and_many_layers() -> None:
    assert "0 of 0" in widths({}, {}).alt
    many = {f"layer{n}": 64 for n in range(60)}
    assert len(bar_lengths(widths(many, many), "--series-0")) == 60


def test_latency_bars_are_in_proportion_and_labeled() -> None:
    dense, reduced = timing("dense", 8e-3), timing("reduced", 2e-3)
    figure = latency_bars({"batch 64": {"dense": dense, "reduced": reduced}})
    assert {"batch 64", "dense", "reduced", "8.00 ms", "2.00 ms"} <= set(texts(figure))
    (slow,), (fast,) = bar_lengths(figure, "--series-0"), bar_lengths(figure, "--series-1")
    assert slow / fast == pytest.approx(4.0, rel=1e-3)
    assert figure.alt == "batch 64: dense 8.00 ms, reduced 2.00 ms"


def test_series_keep_their_color_across_groups() -> None:
    figure = grouped_bars({"a": {"x": 1.0, "y": 2.0}, "b": {"y": 3.0}, "empty": {"x": 0.0}})
    assert len(bar_lengths(figure, "--series-0")) == 2
    assert len(bar_lengths(figure, "--series-1")) == 2


def test_unknown_is_said_and_nothing_is_refused() -> None:
    figure = grouped_bars({"MACs": {"dense": 5e6, "odd": float("nan")}})
    assert {"5.00 M", "unknown"} <= set(texts(figure))
    assert len(bar_lengths(figure, "--series-0")) == 1
    for empty in ({}, {"a": {}}):
        with pytest.raises(ShapeError, match="one bar or more"):
            grouped_bars(empty)


def test_scaling_is_straight_where_gains_are_ideal() -> None:
    counts = (1, 2, 8, 64)
    figure = scaling({"all": {n: float(n) for n in counts}, "none": dict.fromkeys(counts, 1.0)})
    assert {"1", "2", "8", "64", "machines", "all", "none", "ideal"} <= set(texts(figure))
    assert figure.alt == "Throughput of 64 machines over one: all 64, none 1"
    for place, straight in ((0, 1.0), (1, 0.0)):
        lines = [
            [tuple(map(float, point)) for point in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.get("d"))]
            for path in ElementTree.fromstring(figure.svg).iter("path")
            if f"stroke: var(--series-{place}" in path.get("style", "") and "fill: none" in path.get("style")
        ]
        (x, y), *_, (right, top) = max(lines, key=len)
        reach = (y - top) / (right - x)
        assert (reach > 0.3) == bool(straight)
        assert straight or abs(reach) < 1e-6
    for bad in ({}, {"a": {}}, {"a": {2: 0.0}}, {"a": {0: 1.0}}, {"a": {2: math.nan}}):
        with pytest.raises(ShapeError, match="gains"):
            scaling(bad)


def test_training_curve_names_phases_and_score() -> None:
    figure = training_curve({"dense": history(0.5, 0.9, 0.8), "fine-tune": history(0.85)})
    assert {"dense", "fine-tune", "Validation accuracy", "epoch"} <= set(texts(figure))
    assert figure.alt == "Training curves; best validation accuracy: dense 0.9, fine-tune 0.85"
    with pytest.raises(ShapeError, match="one kind of score"):
        training_curve({"a": history(0.5), "b": history(90.0, name="perplexity")})


@pytest.mark.parametrize(
    "name", ["$x$", "$\\frac{", "<b>&", "層\n二", "very.long.dotted.path.of.a.layer.conv1", "\x00\x1b"]
)
def test_any_name_can_be_drawn(name: str) -> None:
    drawn = texts(widths({name: 2}, {name: 1}))[0:9]
    shown = name.replace("\x00", "\ufffd").replace("\x1b", "\ufffd").replace("\n", " ")
    assert shown in drawn or any("…" in text and text.endswith("conv1") for text in drawn)


def test_the_same_numbers_give_the_same_picture_and_settings_come_back() -> None:
    before = dict(matplotlib.rcParams)
    assert widths({"a": 2}, {"a": 1}) == widths({"a": 2}, {"a": 1})
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    "svg",
    [
        "<svg><script>alert(1)</script></svg>",
        "<svg><g onload='alert(1)'/></svg>",
        "<svg><use href='https://example.org/a.svg#b'/></svg>",
        "<svg><path style='fill: url(https://example.org)'/></svg>",
        "<svg><foreignObject/></svg>",
        "<svg xmlns='http://www.w3.org/2000/svg'/>",
        "<!DOCTYPE svg [<!ENTITY a 'b'>]><svg>&a;</svg>",
        "<svg><g></svg>",
        "<p/>",
        "",
    ],
)
def test_pictures_that_do_more_than_draw_are_refused(svg: str) -> None:
    with pytest.raises(UsageError, match="checking a picture"):
        Figure(svg, "alt")


def test_ids_get_their_prefix_and_text_stays() -> None:
    svg = '<svg><clipPath id="a" /><g clip-path="url(#a)"><text>id="a" url(#a)</text></g></svg>'
    changed = with_ids(svg, "f1-")
    assert changed == svg.replace('id="a" />', 'id="f1-a" />').replace('"url(#a)"', '"url(#f1-a)"')
    assert checked(changed).find("g/text").text == 'id="a" url(#a)'
