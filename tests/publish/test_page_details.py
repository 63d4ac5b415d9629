"""Details of a cell and figures in a real browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tests.publish.pages import find_filter
from tests.synthetic_sites import MEANS, make_ranked_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


# ---- details ----


def test_a_cell_opens_its_details_and_gets_the_focus_back(open_site: Any) -> None:
    page, rows = open_site("ranked"), make_ranked_runs()
    link = page.locator("#s0 tr", has_text="lsq").locator("td a").first
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert page.url.partition("#")[2].startswith("cell=digits-xs-lsq-int2")
    own = (
        (rows["method"] == "lsq") & (rows["task"] == "digits") & (rows["weights_format"] == "int2")
    )
    runs = rows[own].sort_values("seed")
    lines = [line.split() for line in dialog.locator("tbody tr").all_inner_texts()]
    assert [line[0] for line in lines] == [str(seed) for seed in runs["seed"]]
    np.testing.assert_allclose([float(line[1]) for line in lines], runs["packed"], rtol=1e-5)
    text = dialog.inner_text()
    for words in (
        f"qbench reproduce {runs['key'].iloc[0]}",
        "qbench sweep made.toml",
        "commit",
        "c" * 12,
        "AMD EPYC",
        "torch",
        "2.13.0",
        "steps",
        "300",
        "passed",
        "own",
    ):
        assert words in text, words
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "cell=" not in url)
    dialog.wait_for(state="hidden")
    focused = page.evaluate("document.activeElement.getAttribute('href')")
    assert focused == link.get_attribute("href")


def test_a_link_to_a_cell_opens_it(open_site: Any, sites: dict[str, Path]) -> None:
    doc = json.loads((sites["ranked"].parent / "board.json").read_text())
    (cell,) = (
        cell
        for row in doc["sections"][1]["rows"]
        if row["entrant"] == "gdnsq"
        for cell in row["cells"]
        if cell["format"] == "int4"
    )
    page = open_site("ranked", f"#cell={cell['id']}")
    assert "gdnsq · int4" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.evaluate("location.hash = 'cell=nobody'")
    assert page.get_by_role("dialog").is_hidden()


def test_a_failed_cell_says_why(open_site: Any) -> None:
    page = open_site("varied")
    page.locator("#s0 tr", has_text="lotion").locator("td a").nth(1).click()
    assert "3 of 3 oom: out of memory on cpu" in page.get_by_role("dialog").inner_text()


# ---- figures ----


def open_with_delayed_figures(chromium: Browser, path: Path) -> Page:
    """Open a page where figures are drawn only when the test calls `later()`."""
    page = chromium.new_page()
    page.add_init_script("window.requestIdleCallback = later => { window.later = later; }")
    page.goto(f"file://{path}")
    return page


def test_figures_are_drawn_when_the_browser_is_idle(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    """Before, they are text in a noscript element that nobody sees; nothing gets lost."""
    page = open_with_delayed_figures(chromium, sites["ranked"])
    waiting, drawn = page.locator("noscript"), page.locator(".figures svg")
    assert waiting.count() == 3 and drawn.count() == 0
    assert "<svg" not in page.locator("body").inner_text()
    assert page.locator("#s0 thead button").count() > 0
    texts = waiting.all_text_contents()
    for left in (2, 1, 0):
        page.evaluate("later()")
        assert waiting.count() == left
    assert drawn.count() == sum(text.count("<svg") for text in texts) > 10
    page.close()


def test_a_filter_set_before_figures_are_drawn_applies_to_them(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    page = open_with_delayed_figures(chromium, sites["ranked"])
    page.locator("#filters").get_by_role("button", name="lsq").click()
    find_filter(page, "int2").click()
    for _ in range(3):
        page.evaluate("later()")
    script = """[...document.querySelectorAll('#s0 figure.scores svg')].map(svg => [
        getComputedStyle(svg).display !== 'none',
        svg.querySelectorAll('.m:not(.off)').length,
        svg.querySelectorAll('.m.off').length,
    ])"""
    assert page.evaluate(script) == [[False, 7, 1], [True, 7, 1]]
    assert page.locator("#s0 .key [aria-pressed=false]").all_text_contents() == ["lsq"]
    page.close()


def test_a_page_that_is_printed_early_has_all_figures(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    page = chromium.new_page()
    page.add_init_script("window.requestIdleCallback = () => 0")
    page.goto(f"file://{sites['ranked']}")
    assert page.locator(".figures svg").count() == 0
    page.pdf()
    assert page.locator(".figures svg").count() > 10 and page.locator("noscript").count() == 0
    page.close()


def test_bands_of_the_profile_show_for_a_highlighted_entrant_or_for_few(open_site: Any) -> None:
    page = open_site("ranked")
    count_bands = """[...document.querySelectorAll('.profile .ribbon')]
        .filter(band => band.getBoundingClientRect().width > 0).length"""
    assert page.locator(".profile .ribbon").count() == len(MEANS)
    assert page.evaluate(count_bands) == 0
    page.locator(".overall .key li", has_text="lsq").hover()
    assert page.evaluate(count_bands) == 1
    page.locator("h1").hover()
    assert page.evaluate(count_bands) == 0
    for name in ("ste", "lotion", "pege", "ewgs"):
        find_filter(page, name).click()
    assert page.evaluate(count_bands) == 3
    page.get_by_role("button", name="show all").click()
    assert page.evaluate(count_bands) == 0
    plain = open_site("ranked", java_script_enabled=False)
    assert plain.locator(".profile .ribbon:visible").count() == 0
