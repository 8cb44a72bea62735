"""One self-contained HTML page: no scripts, no other files, readable on paper and on a telephone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gracile.files import write_bytes
from gracile.report.blocks import Section
from gracile.report.quantities import printable
from gracile.report.svg import with_ids


def page(title: str, sections: Sequence[Section], path: str | Path, subtitle: str = "") -> Path:
    """Write a report as one HTML file, atomically; return its path.

    Args:
        title: heading and window title.
        sections: what to show, in order.
        path: of the file; folders are made.
        subtitle: one line below the title.

    >>> import tempfile
    >>> from gracile.report import Text
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page("Demo", [Section("Result", (Text("It works."),))], Path(folder) / "demo.html").name
    'demo.html'
    """
    return write_bytes(path, render(title, sections, subtitle).encode())


def render(title: str, sections: Sequence[Section], subtitle: str = "") -> str:
    """The HTML text of :func:`page`. The same arguments give the same text, byte for byte.

    >>> "<h1>a &lt;b&gt; c</h1>" in render("a <b> c", ())
    True
    """
    numbers = iter(range(1, 1 + sum(len(section.blocks) for section in sections)))

    def drawn(svg: str) -> Markup:
        # Parsed, checked for anything active, and written anew: safe to stand in the page as it is.
        return Markup(with_ids(svg, f"f{next(numbers)}-"))

    environment = Environment(
        loader=PackageLoader("gracile.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["drawn"] = drawn
    return environment.get_template("page.html").render(title=title, subtitle=subtitle, sections=sections)
