"""The page for everybody: keyboard, screen reader, contrast, phone, paper, no scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from qbench.publish.site_folder import write_site_folder
from tests.browser import open_page
from tests.publish.pages import DESKTOP, PHONE, find_head, read_column
from tests.synthetic_sites import make_ranked_runs, make_site_files

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAPER_COLOUR = "getComputedStyle(document.body).backgroundColor"


# ---- keyboard and screen reader ----


def test_everything_can_be_done_from_the_keyboard(open_site: Any) -> None:
    page = open_site("ranked")
    script = """[
        document.activeElement.textContent.trim().slice(0, 24),
        getComputedStyle(document.activeElement).outlineStyle !== 'none',
    ]"""
    reached, outlined = [], 0
    for _ in range(40):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(script)
        reached.append(name)
        outlined += visible
    assert reached[0] == "Skip to the tables"
    assert {"Theme: auto", "lsq", "method"} <= set(reached)
    assert outlined == 40
    find_head(page, 0, "method").focus()
    page.keyboard.press("Space")
    assert read_column(page, 0, 0) == sorted(read_column(page, 0, 0))


def test_a_screen_reader_finds_names_for_everything(open_site: Any) -> None:
    page = open_site("ranked")
    unnamed = """() => {
        const findAll = selector => [...document.querySelectorAll(selector)];
        const isLabelled = svg => svg.getAttribute('aria-label')
            || svg.getAttribute('aria-labelledby').split(' ').every(id =>
                document.getElementById(id)?.textContent);
        return [
            ...findAll('table.scores').filter(t => !t.caption || !t.caption.textContent),
            ...findAll('th').filter(th => !th.scope),
            ...findAll('svg[role=img]').filter(svg => !isLabelled(svg)),
            ...findAll('svg:not([role])').filter(s => s.getAttribute('aria-hidden') !== 'true'),
            ...findAll('button, input, select').filter(control =>
                !control.textContent.trim() && !control.getAttribute('aria-label')),
        ].map(element => element.outerHTML.slice(0, 200));
    }"""
    assert page.evaluate(unnamed) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


# ---- colours ----

CONTRASTS = """() => {
    const probe = document.body.appendChild(document.createElement('i'));
    const readColour = name => {
        probe.style.setProperty('color', `var(${name})`);
        return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
    };
    const luminance = name => readColour(name)
        .map(v => v / 255)
        .map(v => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const paper = luminance('--paper');
    const contrast = l => (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05);
    const names = ['--ink', '--soft', '--accent', '--bad', '--c0', '--c1', '--c2', '--c3', '--c4',
        '--c5', '--c6', '--c7', '--ctl', '--ref'];
    const contrasts = Object.fromEntries(names.map(name => [name, contrast(luminance(name))]));
    probe.remove();
    return contrasts;
}"""
"""The contrast of each colour to the paper, as WCAG defines it."""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_marks_have_enough_contrast_in_both_themes(open_site: Any, scheme: str) -> None:
    page = open_site("ranked", color_scheme=scheme)
    for _ in range(3):
        contrasts = page.evaluate(CONTRASTS)
        # WCAG asks 4.5 of text and 3 of graphics; colours of marks begin with --c.
        weak = {n: c for n, c in contrasts.items() if c < (3 if n.startswith("--c") else 4.5)}
        assert weak == {}
        page.get_by_role("button", name="Theme").click()


def test_the_theme_follows_the_system_and_the_button(open_site: Any) -> None:
    page = open_site("ranked", color_scheme="dark")
    dark = page.evaluate(PAPER_COLOUR)
    page.get_by_role("button", name="Theme: auto").click()
    light = page.evaluate(PAPER_COLOUR)
    page.get_by_role("button", name="Theme: light").click()
    assert page.evaluate(PAPER_COLOUR) == dark
    assert light == open_site("ranked", color_scheme="light").evaluate(PAPER_COLOUR)
    assert dark != light


def test_motion_is_reduced_on_request(open_site: Any) -> None:
    duration = "getComputedStyle(document.querySelector('svg .m')).transitionDuration"
    assert open_site("ranked").evaluate(duration) != "0s"
    assert open_site("ranked", reduced_motion="reduce").evaluate(duration) == "0s"


# ---- sizes ----


@pytest.mark.parametrize("name", ["ranked", "varied", "hostile"])
def test_on_a_phone_tables_scroll_but_the_page_does_not(open_site: Any, name: str) -> None:
    page = open_site(name, viewport=PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    page.locator("td a").first.click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= PHONE["width"]


LINES_OF_NAMES = """() => [...document.querySelectorAll('#s0 tbody th')].map(th => {
    const texts = document.createTreeWalker(th.querySelector('bdi'), NodeFilter.SHOW_TEXT);
    const words = [];
    while (texts.nextNode()) {
        const node = texts.currentNode;
        for (const word of node.data.matchAll(/[^ ]+/g)) {
            const range = document.createRange();
            range.setStart(node, word.index);
            range.setEnd(node, word.index + word[0].length);
            const tops = [...range.getClientRects()].map(r => Math.round(r.top));
            words.push([word[0], new Set(tops).size]);
        }
    }
    return [words, th.getBoundingClientRect().width];
})"""
"""The words of each name with the number of lines they take, and the width of the name's cell."""


def test_a_long_name_breaks_at_blanks_only(chromium: Browser, tmp_path: Path) -> None:
    """A word that is too long for any line breaks, so that it does not push the numbers away."""
    labels = {
        "ewgs": "ewgs (delta=adaptive)",
        "lotion": "lotion (fisher=empirical, scale=hessian)",
        "ste": "x" * 60,
    }
    rows = make_ranked_runs(seeds=3)
    parts = [rows[rows["method"].isin(["fp", "rtn"])]]
    parts += [rows[rows["method"] == method].assign(label=name) for method, name in labels.items()]
    write_site_folder(make_site_files(pd.concat(parts)), tmp_path / "site")
    for size in (DESKTOP, PHONE):
        page = open_page(chromium, tmp_path / "site" / "index.html", viewport=size).page
        names = page.evaluate(LINES_OF_NAMES)
        lines = {word: count for words, _ in names for word, count in words}
        assert {word for word, count in lines.items() if count > 1} <= {"x" * 60}
        assert max(width for _, width in names) < 0.52 * size["width"]
        assert {"(delta=adaptive)", "(fisher=empirical,", "scale=hessian)"} <= set(lines)
        page.context.close()


# ---- paper and no scripts ----


def test_the_page_prints_without_controls_on_white(open_site: Any) -> None:
    page = open_site("ranked", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.locator("#filters").is_hidden()
    assert page.get_by_role("button", name="Theme").is_hidden()
    assert page.evaluate(PAPER_COLOUR) == "rgb(255, 255, 255)"
    assert page.locator("#s0 table").is_visible()
    assert len(page.pdf()) > 10_000


def test_a_table_of_nine_formats_fits_on_paper(chromium: Browser, tmp_path: Path) -> None:
    rows = make_ranked_runs(seeds=3, tasks=["digits"])
    parts = [rows[rows["method"] == "fp"]]
    widths = [(weights, acts) for weights in (1, 2, 4) for acts in (1, 2, 4)]
    for n, (weights, acts) in enumerate(widths):
        part = rows[rows["weights_format"] == "int4"]
        formats = {"weights_format": f"int{weights}", "act_format": f"int{acts}"}
        keys = [f"{int(key[:8], 16) ^ (n + 1):08x}{key[8:]}" for key in part["key"]]
        parts.append(part.assign(**formats, act_granularity="tensor", key=keys))
    write_site_folder(make_site_files(pd.concat(parts)), tmp_path / "site")
    # Letter in landscape, the narrower of the common papers: 11 inches less two margins of 12 mm.
    width = round(11 * 96 - 24 / 25.4 * 96)
    page = open_page(
        chromium, tmp_path / "site" / "index.html", viewport={"width": width, "height": 800}
    ).page
    page.emulate_media(media="print")
    assert page.locator("#s0 thead th.score").count() == 9
    right = "document.querySelector('table.scores').getBoundingClientRect().right"
    assert page.evaluate(f"{right} - document.documentElement.clientWidth") <= 0
    page.context.close()


def test_without_scripts_the_page_has_plain_tables_and_figures(open_site: Any) -> None:
    page = open_site("ranked", java_script_enabled=False)
    words = page.locator("body").inner_text()
    assert "gdnsq" in words and "±" in words and "show all" not in words
    assert page.locator("#s0 tbody tr").count() == 8
    assert page.locator("#s0 svg[role=img]").count() > 6
    assert page.locator("button").count() == 0
    assert page.locator("#filters").is_hidden()
    assert page.get_by_role("dialog").is_hidden()
    page.locator("td a").first.click()
    assert page.locator("td:target").count() == 1
