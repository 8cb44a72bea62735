"""The page is valid, complete, alone in the world, and shows hostile names as text."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from gracile.errors import ShapeError
from gracile.report import (
    Code,
    Figure,
    KeyFigure,
    KeyFigures,
    Section,
    Table,
    Text,
    facts,
    page,
    render,
    widths,
)

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "</style></svg></title></pre><iframe src=https://example.org>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{$ &amp; \x1b[2J\x00",
    'url(#x) id="y" href="z"',
    "]]><!-- --><![CDATA[",
]
ALLOWED_TEXT = """
html head meta title style body header main section h1 h2 p div dl dt dd span table caption
thead tbody tr th td figure figcaption pre code svg g defs path rect clippath use text
"""
ALLOWED = set(ALLOWED_TEXT.split())
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every tag is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def everything(name: str) -> tuple[Section, ...]:
    blocks = (
        KeyFigures((KeyFigure(name, name, name, name, "better"), KeyFigure("a", "", "1"))),
        Table((name, "number"), ((name, 1.5), ("b", 22)), name),
        widths({name: 20, "fc": 50}, {name: 7, "fc": 50}, name),
        widths({name: 20, "fc": 50}, {name: 7, "fc": 50}),
        Code(name, name),
        Text(name),
        Text(name, warning=True),
    )
    return (Section(name, blocks), Section("", (facts(KeyFigure(name, "1", "2")),)))


@pytest.mark.parametrize("name", ["plain", *HOSTILE], ids=range(len(HOSTILE) + 1))
def test_page_is_well_formed_and_stands_alone(name: str) -> None:
    html = render(name, everything(name), name)
    assert html.startswith("<!DOCTYPE html>\n<html lang=")
    assert html.endswith("</body>\n</html>\n")
    reader = Reader(html)
    assert {tag for tag, _ in reader.tags} <= ALLOWED
    for _, attributes in reader.tags:
        assert not [key for key in attributes if key.startswith("on") or key in {"src", "xmlns"}]
        assert (attributes.get("href") or "#").startswith("#")
        assert all(m == "#" for m in re.findall(r"url\((.)", attributes.get("style") or ""))
    if "http" not in name:
        assert "http:" not in html
        assert "https:" not in html


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_names_are_shown_as_text(name: str) -> None:
    reader = Reader(render(name, everything(name)))
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", "\ufffd", name)
    # title, h1, h2, tile (label, before, after, change), table (head, cell, caption), picture's caption,
    # code and its caption, two paragraphs, facts; and both pictures, where long names are shortened
    expected = 16 + (2 if len(shown) <= 26 else 0)
    assert len([text for text in reader.texts if text.removeprefix("from ") == shown]) == expected
    assert "\x1b" not in reader.text
    assert "\x00" not in reader.text


def test_ids_are_unique_and_references_meet_them() -> None:
    html = render("a", everything("a"))
    reader = Reader(html)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) > 10
    assert len(set(ids)) == len(ids)
    references = re.findall(r'(?:href="#|url\(#)([^")]+)', html)
    assert references
    assert set(references) <= set(ids)


def test_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    first = page("a", everything("a"), tmp_path / "deep" / "1.html")
    second = page("a", everything("a"), tmp_path / "2.html")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_text(encoding="utf-8") == render("a", everything("a"))


def test_numbers_are_aligned_and_unknown_is_said() -> None:
    table = Table(
        ("layer", "macs", "change"), (("a", 1234.0, "−3 %"), ("b", math.nan, "≥ 4"), ("2nd", 5, "–"))
    )
    assert table.numeric == (False, True, True)
    reader = Reader(render("a", (Section("s", (table,)),)))
    assert [attributes.get("class") for attributes in reader.named("td")] == [None, "number", "number"] * 3
    assert "1 234" in reader.text
    assert "unknown" in reader.text
    assert "nan" not in reader.text


def test_an_empty_table_has_its_header() -> None:
    reader = Reader(render("a", (Section("s", (Table(("x", "y"), ()),)),)))
    assert len(reader.named("th")) == 2
    assert reader.named("td") == []


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"table 'costs': got a row of 1 cells, \(1,\); expected 2 cells"):
        Table(("a", "b"), ((1,),), "costs")


def test_theme_phone_and_paper() -> None:
    html = render("a", ())
    for rule in ("prefers-color-scheme: dark", "@media print", "max-width: 34rem", "width=device-width"):
        assert rule in html
    policy = next(m for m in Reader(html).named("meta") if m.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_color_variable_is_defined_for_both_themes() -> None:
    html = render("a", everything("a"))
    css = html[html.index("<style>") : html.index("</style>")]
    light, dark = (set(re.findall(r"(--[\w-]+):", part)) for part in css.split("@media")[:2])
    assert light == dark
    assert set(re.findall(r"var\((--[\w-]+)", html)) <= light


def test_facts_show_every_field() -> None:
    table = facts(Table(("a", "b"), (), "caption"), "how")
    assert table.rows == (("header", "a, b"), ("rows", "none"), ("caption", "caption"))


def test_pictures_are_described() -> None:
    figure = widths({"conv1": 20}, {"conv1": 7})
    assert isinstance(figure, Figure)
    labels = [a.get("aria-label") for a in Reader(render("a", (Section("s", (figure,)),))).named("div")]
    assert "7 of 20 units are left: conv1 7 of 20" in labels
