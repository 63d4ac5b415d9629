"""The page as HTML: only its own elements, one script, one style, and names that stay text."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from qbench.publish import site_folder
from qbench.publish.page_sections import add_line_breaks
from tests.synthetic_sites import (
    make_hostile_runs,
    make_ranked_runs,
    make_site_files,
    make_varied_runs,
)

Elements = list[tuple[str, dict[str, str | None]]]
PAGE_TAGS = {
    *("html", "head", "meta", "title", "link", "style", "body", "header", "main", "section"),
    *("h1", "h2", "h3", "p", "a", "div", "span", "small", "b", "i", "bdi", "sup", "wbr", "ol"),
    *("ul", "li", "table", "caption", "thead", "tbody", "tr", "th", "td", "figure", "figcaption"),
    *("svg", "g", "path", "rect", "text", "code", "pre", "details", "summary", "dialog"),
    *("noscript", "script"),
}
FIGURE_TAGS = {
    *("ul", "li", "i", "bdi", "b", "div", "figure", "figcaption"),
    *("svg", "g", "path", "rect", "text", "title"),
}
NOSCRIPT = re.compile(r"<noscript>(.*?)</noscript>", re.DOTALL)


class ElementReader(HTMLParser):
    """Collects the elements with their attributes, as a browser would see them."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: Elements = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def read_elements(page: str) -> Elements:
    reader = ElementReader()
    reader.feed(page)
    return reader.elements


def can_act(attribute: str) -> bool:
    """Return whether an attribute could run a script, load something, or change the style."""
    dangerous = ("style", "src", "srcdoc", "formaction", "xlink:href")
    return attribute.startswith("on") or attribute in dangerous


@pytest.mark.parametrize(
    "rows", [make_hostile_runs(), make_ranked_runs(seeds=10)], ids=["hostile", "ranked"]
)
def test_the_page_holds_only_its_own_elements_attributes_and_links(rows: pd.DataFrame) -> None:
    files = make_site_files(rows)
    elements = read_elements(files["index.html"].decode())
    assert {tag for tag, _ in elements} <= PAGE_TAGS
    for tag, attributes in elements:
        assert not any(map(can_act, attributes)), (tag, attributes)
        target = attributes.get("href") or "#"
        own = target.startswith(("#", "data:image/svg+xml,"))
        assert own or target in files or target == site_folder.CHECKSUM_FILE, target
    assert sum(tag == "script" for tag, _ in elements) == 2


def test_the_policy_has_the_hashes_of_the_one_style_and_the_one_script() -> None:
    page = make_site_files(make_varied_runs())["index.html"].decode()
    policy = next(
        attributes["content"]
        for tag, attributes in read_elements(page)
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy and policy.startswith("default-src 'none'") and "unsafe" not in policy
    for kind, pattern in (
        ("style", r"<style>(.*?)</style>"),
        ("script", r"<script>(.*?)</script>"),
    ):
        (source,) = re.findall(pattern, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_figures_cannot_leave_their_noscript_element() -> None:
    """Where scripts run, it is read as text up to its end tag: a name must not contain one."""
    page = make_site_files(make_hostile_runs())["index.html"].decode()
    parts = NOSCRIPT.findall(page)
    assert len(parts) == page.count("<noscript") == page.count("</noscript") > 0
    for part in parts:
        assert {tag for tag, _ in read_elements(part)} <= FIGURE_TAGS


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("ewgs (delta=adaptive, on/off)", "ewgs (delta=adaptive, on/<wbr>off)"),
        ("a_b|c;d,e:f", "a_<wbr>b|<wbr>c;<wbr>d,<wbr>e:<wbr>f"),
        ("x" * 60, "x" * 60),
        ("<img/onerror=1>,b", "&lt;img/<wbr>onerror=1&gt;,<wbr>b"),
    ],
)
def test_names_break_at_blanks_and_punctuation_only(name: str, broken: str) -> None:
    assert add_line_breaks(name) == broken


@pytest.mark.parametrize(
    "name", ["board.json", "cells.csv", "leaderboard.md", "leaderboard.tex", "index.html"]
)
def test_no_file_holds_characters_that_act_in_a_terminal_or_turn_text_round(name: str) -> None:
    written = make_site_files(make_hostile_runs())[name].decode()
    assert not re.findall(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]", written
    )


def test_long_names_do_not_flood_the_page() -> None:
    page = make_site_files(make_hostile_runs())["index.html"].decode()
    data = r'<script type="application/json".*?</script>'
    visible = re.sub(data, "", page, flags=re.DOTALL)
    assert max(map(len, re.findall("x+", visible))) < 100
