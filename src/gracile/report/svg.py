"""Matplotlib figures as inline SVG: reproducible, without references, in the colors of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib
from matplotlib.figure import Figure as Canvas

from gracile.errors import UsageError

# Okabe and Ito's palette, told apart by readers with any color vision. The page replaces each
# color by a variable of the same place, so that pictures follow its light and dark themes.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, LINE, PALE = "#1c2128", "#5b6470", "#d9dee4", "#dbe4ee"

_VARIABLES = {
    **{color: f"var(--series-{place}, {color})" for place, color in enumerate(SERIES)},
    INK: f"var(--ink, {INK})",
    MUTED: f"var(--muted, {MUTED})",
    LINE: f"var(--line, {LINE})",
    PALE: f"var(--pale, {PALE})",
}
_COLORS = re.compile("|".join(map(re.escape, _VARIABLES)))
_ALLOWED = frozenset(
    (
        "svg",
        "g",
        "defs",
        "path",
        "rect",
        "circle",
        "line",
        "clipPath",
        "use",
        "text",
        "tspan",
        "title",
        "desc",
    )
)
_STYLE = {
    "svg.hashsalt": "gracile",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a layer may be called "$x$"
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the house style; matplotlib's own settings come back afterwards."""
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # Letters that matplotlib's font lacks are set by the browser.
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing", UserWarning)
        yield


def to_svg(canvas: Canvas) -> str:
    """Save a matplotlib figure as one ``<svg>`` element that can stand in an HTML page."""
    stream = io.StringIO()
    canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in {"metadata", "style"}:
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        attributes = {_local(name): value for name, value in element.attrib.items()}
        element.attrib.clear()
        element.attrib.update({name: _themed(value) for name, value in attributes.items()})
    for unwanted in ("width", "height", "version"):
        root.attrib.pop(unwanted, None)
    return ElementTree.tostring(root, encoding="unicode")


def checked(svg: str) -> ElementTree.Element:
    """Parse an SVG element that draws and does nothing else.

    Raises:
        UsageError: malformed, or an element or attribute that could run or load something.

    >>> checked('<svg><path d="M 0 0"/></svg>').tag
    'svg'
    """
    found = "a document type" if "<!" in svg else ""  # entities could grow without bound
    try:
        root = ElementTree.fromstring(svg) if not found else ElementTree.Element("svg")
    except ElementTree.ParseError as error:
        found, root = str(error), ElementTree.Element("svg")
    for element in root.iter():
        if element.tag not in _ALLOWED:
            found = f"the element <{element.tag}>"
        for name, value in element.attrib.items():
            reference = name.endswith("href") and not value.startswith("#")
            if name.lower().startswith("on") or reference or re.search(r"url\((?!#)|@import", value):
                found = f'the attribute {name}="{value}"'
    if found or root.tag != "svg":
        raise UsageError(
            "checking a picture",
            got=found or f"the element <{root.tag}>",
            expected="one <svg> element of shapes and text, without namespaces",
            hint="make pictures with gracile.report.plots",
        )
    return root


def with_ids(svg: str, prefix: str) -> str:
    """Begin every id, and every reference to one, with ``prefix``: ids must be unique on a page.

    >>> with_ids('<svg><g id="a"/><use href="#a"/></svg>', "f1-")
    '<svg><g id="f1-a" /><use href="#f1-a" /></svg>'
    """
    root = checked(svg)
    for element in root.iter():
        for name, value in element.attrib.items():
            if name == "id":
                element.set(name, prefix + value)
            elif name == "href":
                element.set(name, f"#{prefix}{value[1:]}")
            else:
                element.set(name, value.replace("url(#", f"url(#{prefix}"))
    return ElementTree.tostring(root, encoding="unicode")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _themed(value: str) -> str:
    return _COLORS.sub(lambda match: _VARIABLES[match[0]], value)
