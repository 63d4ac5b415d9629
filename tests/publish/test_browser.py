"""The page in a real browser: sorting, filtering, ranks, details, keyboard, themes, a telephone, no scripts, nothing hostile, nothing asked for."""

from __future__ import annotations

import functools
import itertools
import json
import math
import random
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import stdtr

from qbench.boards import words as plaintext
from qbench.boards.build import build_board
from qbench.publish import site_folder
from qbench.stats.comparisons import clear_bests, holm, rank_ranges
from tests.browser import Watched, browser, needed, watch
from tests.made_sites import MEANS, files, one_of_everything, ranked
from tests.publish.test_publish import nasty
from tests.synthetic_runs import DEFAULTS

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


DESK, TELEPHONE = {"width": 1280, "height": 900}, {"width": 375, "height": 740}
STATS = Path(__file__).resolve().parents[2] / "qbench" / "publish" / "templates" / "stats.js"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    needed()
    with browser() as started:
        yield started


def partial() -> pd.DataFrame:
    """One entrant diverged once, under one format."""
    rows = ranked()
    lost = (rows["method"] == "lsq") & (rows["weights_format"] == "int4") & (rows["seed"] == 3)
    rows.loc[lost, ["state", "reason", "packed", "validation"]] = ["failed", "diverged", None, None]
    return rows


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sites on a disk, by name."""
    home, made = (
        tmp_path_factory.mktemp("sites"),
        {
            "ranked": ranked(),
            "partial": partial(),
            "all": one_of_everything(),
            "nasty": nasty(),
            "retired": retired(),
        },
    )
    for name, rows in made.items():
        site_folder.place(files(rows), home / name)
    return {name: home / name / "index.html" for name in made}


def retired() -> pd.DataFrame:
    """The best entrant's runs twice: now, and as an older version that was withdrawn."""
    rows = ranked()
    own = rows["method"] == "gdnsq"
    old = rows[own].assign(
        method_version=1, retired="it was wrong", key=[f"{n:032x}" for n in range(int(own.sum()))]
    )
    return pd.concat(
        [rows.assign(method_version=rows["method_version"].mask(own, 2)), old], ignore_index=True
    )


@pytest.fixture
def opened(chromium: Browser, sites: dict[str, Path]) -> Iterator[Any]:
    """A function that opens a site; at the end no page has said, thrown or asked for anything."""
    pages: list[Watched] = []

    def open_(name: str, link: str = "", **context: Any) -> Page:
        pages.append(
            watch(chromium, f"file://{sites[name]}{link}", **{"viewport": DESK, **context})
        )
        if context.get("java_script_enabled", True):
            pages[-1].page.wait_for_selector("noscript", state="detached")
        return pages[-1].page

    yield open_
    for seen in pages:
        assert seen.quiet(), (seen.said, seen.asked)
        seen.page.context.close()


def column(page: Page, section: int, place: int) -> list[str]:
    """The words of a column, in the rows that are shown."""
    script = "([s, n]) => [...document.querySelectorAll(`#s${s} tbody tr`)].filter(r => !r.hidden).map(r => (n ? r.cells[n] : r.cells[0].querySelector('bdi')).textContent.trim())"
    return list(page.evaluate(script, [section, place]))


def ranks(page: Page, section: int) -> dict[str, str]:
    return dict(zip(column(page, section, 0), column(page, section, 1), strict=True))


def head(page: Page, section: int, name: str) -> Any:
    return page.locator(f"#s{section} thead").get_by_role("button", name=name)


# ---- sorting ----


def test_where_a_browser_is_required_its_absence_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("QBENCH_CHROMIUM", raising=False)
    monkeypatch.delenv("QBENCH_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium on this machine"):
        needed()
    monkeypatch.setenv("QBENCH_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no Chromium on this machine"):
        needed()


def test_a_click_sorts_best_first_then_worst_first_then_as_it_was(opened: Any) -> None:
    page = opened("ranked")
    before = column(page, 0, 0)
    head(page, 0, "int4").click()
    assert column(page, 0, 0)[0] == "gdnsq" and column(page, 0, 0)[-1] == "rtn"
    means = [float(word.split(" ")[0]) for word in column(page, 0, 3) if "±" in word]
    assert means == sorted(means)
    assert page.locator("#s0 th[aria-sort]").get_attribute("aria-sort") == "ascending"
    head(page, 0, "int4").click()
    means = [float(word.split(" ")[0]) for word in column(page, 0, 3) if "±" in word]
    assert means == sorted(means, reverse=True)
    assert page.locator("#s0 th[aria-sort]").get_attribute("aria-sort") == "descending"
    head(page, 0, "int4").click()
    assert column(page, 0, 0) == before and page.locator("#s0 th[aria-sort]").count() == 0


def test_what_has_no_score_stays_at_the_floor_either_way(opened: Any) -> None:
    page = opened("all")
    for _ in range(2):
        head(page, 0, "int4").click()
        assert column(page, 0, 0)[-2:] in (["lotion", "pege"], ["pege", "lotion"])
    shown = page.locator("#s0 tr", has_text="lotion").locator("td").nth(2)
    assert "oom" in shown.inner_text() and "failed" in str(shown.get_attribute("class"))


# ---- filtering, and ranks of what is shown ----


def expected(
    rows: pd.DataFrame, section: int, methods: set[str], formats: set[str]
) -> dict[str, str]:
    """The ranks that Python gives to the same part of the rows."""
    part = rows[
        rows["method"].isin({*methods, "fp"})
        & (rows["weights_format"].isna() | rows["weights_format"].isin(formats))
    ]
    built = build_board(part, defaults=DEFAULTS)
    return {
        row.entrant: plaintext.rank(row) or "–"
        for row in built.sections[section].rows
        if row.version
    }


FILTERS = [
    (set(MEANS), {"int2"}), (set(MEANS), {"int4"}), (set(MEANS) - {"gdnsq"}, {"int2", "int4"}), ({"rtn", "lsq", "ewgs"}, {"int2", "int4"}), ({"lotion", "pege"}, {"int4"}),
    ({"ste", "lotion", "pege", "lsq", "gdnsq"}, {"int2"}),
]  # fmt: skip


def test_ranks_on_arrival_are_pythons(opened: Any) -> None:
    page, rows = opened("ranked"), ranked()
    for section in (0, 1):
        assert ranks(page, section) == expected(rows, section, set(MEANS), {"int2", "int4"})
    assert len(set(ranks(page, 0).values())) > 3


@pytest.mark.parametrize(("methods", "formats"), FILTERS)
def test_ranks_of_what_is_shown_are_pythons(
    opened: Any, methods: set[str], formats: set[str]
) -> None:
    page, rows = opened("ranked"), ranked()
    for name in set(MEANS) - methods:
        page.locator("#filters").get_by_role("button", name=name, exact=True).click()
    for name in {"int2", "int4"} - formats:
        page.locator("#filters").get_by_role("button", name=name, exact=True).click()
    for section in (0, 1):
        assert ranks(page, section) == expected(rows, section, methods, formats)
    assert "Ranks of the" in page.locator("#s0 .ranking").inner_text()
    page.get_by_role("button", name="show all").click()
    assert ranks(page, 0) == expected(rows, 0, set(MEANS), {"int2", "int4"})


def test_who_failed_somewhere_is_ranked_where_it_did_not(opened: Any) -> None:
    page, rows = opened("partial"), partial()
    assert ranks(page, 0)["lsq"] == "–"
    for name in ("int2", "int4"):
        page.locator("#filters").get_by_role("button", name=name, exact=True).click()
        left = {"int2", "int4"} - {name}
        assert ranks(page, 0) == expected(rows, 0, set(MEANS), left)
        assert (ranks(page, 0)["lsq"] != "–") == (left == {"int2"})
        page.get_by_role("button", name="show all").click()
        assert (
            ranks(page, 0) == expected(rows, 0, set(MEANS), {"int2", "int4"})
            and ranks(page, 0)["lsq"] == "–"
        )


def test_what_was_retired_is_shown_and_ranked_with_nobody(opened: Any) -> None:
    page, rows = opened("retired"), ranked()
    found = ranks(page, 0)
    assert found.pop("gdnsq, version 1, retired") == "–"
    assert found == expected(rows, 0, set(MEANS), {"int2", "int4"})
    page.locator("#filters").get_by_role("button", name="lotion", exact=True).click()
    again = ranks(page, 0)
    assert again.pop("gdnsq, version 1, retired") == "–" and again == expected(
        rows, 0, set(MEANS) - {"lotion"}, {"int2", "int4"}
    )


def test_the_best_of_what_is_shown_is_pythons(opened: Any) -> None:
    page, rows = opened("ranked"), ranked()
    for name in ("gdnsq", "ewgs"):
        page.locator("#filters").get_by_role("button", name=name, exact=True).click()
    built = build_board(rows[~rows["method"].isin(["gdnsq", "ewgs"])], defaults=DEFAULTS)
    best = {
        (s, row.entrant, i)
        for s, section in enumerate(built.sections)
        for row in section.rows
        for i, c in enumerate(row.cells)
        if c.best
    }
    script = "s => [...document.querySelectorAll(`#s${s} tr`)].filter(r => !r.hidden).flatMap(r => [...r.cells].map((c, i) => [r, c, i]).filter(([, c]) => c.matches('.best')).map(([r, , i]) => [r.querySelector('bdi').textContent, i - 2]))"
    assert {(s, who, i) for s in (0, 1) for who, i in page.evaluate(script, s)} == best
    assert best


def test_search_and_task_narrow_what_is_shown(opened: Any) -> None:
    page = opened("ranked")
    page.get_by_label("Search").fill("lotion")
    assert (column(page, 0, 0), column(page, 1, 0)) == (["lotion"], ["lotion"])
    assert "2 rows in 2 tables shown" in page.locator("#status").inner_text()
    page.get_by_label("Task and size").select_option("grammar/xs")
    assert page.locator("#s0").is_hidden() and page.locator("#s1").is_visible()
    page.get_by_label("Search").fill("nobody")
    assert page.locator("#status").inner_text() == "Nothing matches."


def test_the_legend_filters_tables_and_figures(opened: Any) -> None:
    page = opened("ranked")
    drawn = page.locator("#s0 figure.scores svg .m:not(.off)")
    before = drawn.count()
    page.locator("#s0 .figures .key").get_by_role("button", name="lsq").click()
    assert "lsq" not in column(page, 0, 0) and drawn.count() < before
    assert (
        page.locator(".key [aria-pressed=false]").count()
        == page.locator(".key li", has_text="lsq").count()
        > 2
    )
    page.locator("#filters").get_by_role("button", name="int2", exact=True).click()
    assert (
        page.locator("#s0 figure.scores svg").first.is_hidden()
        and page.locator("#s0 figure.scores svg").nth(1).is_visible()
    )


# ---- the statistics themselves ----


@pytest.fixture(scope="module")
def calculator(chromium: Browser) -> Page:
    page = chromium.new_page()
    page.add_script_tag(content=STATS.read_text() + "\nwindow.stats = stats;")
    return page


def test_the_tail_of_t_is_scipys(calculator: Page) -> None:
    cases = [
        (t, df)
        for t, df in itertools.product(
            (0, 1e-6, 0.3, 1, 2.2, 4.7, 12, 60, 1e3), (1, 2, 3, 9, 11, 30, 99)
        )
    ]
    found = calculator.evaluate("cases => cases.map(([t, df]) => stats.twoSided(t, df))", cases)
    np.testing.assert_allclose(found, [2 * stdtr(df, -t) for t, df in cases], rtol=1e-10)


def test_ranks_and_bests_of_random_boards_are_pythons(calculator: Page) -> None:
    chance, cases = random.Random(1), []
    for _ in range(60):
        n, seeds, step = (
            chance.randint(2, 9),
            chance.randint(10, 14),
            chance.choice([0.0, 0.02, 0.1]),
        )
        shared = [chance.gauss(0, 1) for _ in range(seeds)]
        # Some are the same but for a constant, which no test can tell anything of; some lack a seed.
        noise = [chance.choice([0.0, 0.004, 0.05]) for _ in range(n)]
        entrants = [
            {
                s: shared[s] + k * step + chance.gauss(0, noise[k])
                for s in range(seeds)
                if chance.random() > 0.02
            }
            for k in range(n)
        ]
        cases.append((entrants, chance.choice(["lower", "higher"]), chance.choice([0.0, 0.03])))
    script = """cases => cases.map(([scores, better, effect]) => {
        const maps = scores.map(s => new Map(Object.entries(s).map(([k, v]) => [+k, v])));
        return [stats.rankRanges(maps, better, effect), stats.clearBests([maps, maps.slice(0, 2)], better, effect)];
    })"""
    found = calculator.evaluate(script, json.loads(json.dumps(cases)))
    for (entrants, better, effect), (js_ranks, js_bests) in zip(cases, found, strict=True):
        assert [tuple(r) for r in js_ranks] == rank_ranges(entrants, better, effect)
        assert [None if b < 0 else b for b in js_bests] == clear_bests(
            [entrants, entrants[:2]], better, effect
        )
    assert len({json.dumps(r) for r, _ in found}) > 10


def test_holm_is_pythons(calculator: Page) -> None:
    chance = random.Random(2)
    p = [chance.random() ** 4 for _ in range(40)]
    np.testing.assert_allclose(calculator.evaluate("p => stats.holm(p)", p), holm(p), rtol=1e-14)


def test_the_gamma_function_is_pythons(calculator: Page) -> None:
    cases = [0.5, 1, 1.5, 2, 4.5, 10, 49.5, 100]
    np.testing.assert_allclose(
        calculator.evaluate("x => x.map(stats.lgamma)", cases),
        list(map(math.lgamma, cases)),
        rtol=1e-13,
        atol=1e-13,
    )


# ---- details ----


def test_a_cell_opens_its_details_and_gives_the_focus_back(opened: Any) -> None:
    page, rows = opened("ranked"), ranked()
    link = page.locator("#s0 tr", has_text="lsq").locator("td a").first
    link.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert page.url.partition("#")[2].startswith("cell=digits-xs-lsq-int2")
    own = rows[
        (rows["method"] == "lsq") & (rows["task"] == "digits") & (rows["weights_format"] == "int2")
    ].sort_values("seed")
    seeds = dialog.locator("tbody tr")
    assert [row.split()[0] for row in seeds.all_inner_texts()] == [str(s) for s in own["seed"]]
    np.testing.assert_allclose(
        [float(row.split()[1]) for row in seeds.all_inner_texts()], own["packed"], rtol=1e-5
    )
    words = dialog.inner_text()
    for said in (
        f"qbench reproduce {own['key'].iloc[0]}",
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
        assert said in words, said
    page.keyboard.press("Escape")
    page.wait_for_url(lambda url: "cell=" not in url)
    dialog.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.getAttribute('href')") == link.get_attribute(
        "href"
    )


def test_a_link_to_a_cell_opens_it(opened: Any, sites: dict[str, Path]) -> None:
    doc = json.loads((sites["ranked"].parent / "board.json").read_text())
    cell = next(
        c
        for row in doc["sections"][1]["rows"]
        if row["entrant"] == "gdnsq"
        for c in row["cells"]
        if c["format"] == "int4"
    )
    page = opened("ranked", f"#cell={cell['id']}")
    assert "gdnsq · int4" in page.get_by_role("dialog").inner_text()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("dialog").wait_for(state="hidden")
    page.evaluate("location.hash = 'cell=nobody'")
    assert page.get_by_role("dialog").is_hidden()


def test_what_failed_says_why(opened: Any) -> None:
    page = opened("all")
    page.locator("#s0 tr", has_text="lotion").locator("td a").nth(1).click()
    assert "3 of 3 oom: out of memory on cpu" in page.get_by_role("dialog").inner_text()


# ---- for everybody ----


def test_everything_can_be_done_from_the_keyboard(opened: Any) -> None:
    page = opened("ranked")
    reached, outlined = [], 0
    for _ in range(40):
        page.keyboard.press("Tab")
        name, visible = page.evaluate(
            "[document.activeElement.textContent.trim().slice(0, 24), getComputedStyle(document.activeElement).outlineStyle !== 'none']"
        )
        reached.append(name)
        outlined += visible
    assert (
        reached[0] == "Skip to the tables"
        and "Theme: auto" in reached
        and "lsq" in reached
        and "method" in reached
    )
    assert outlined == 40
    head(page, 0, "method").focus()
    page.keyboard.press("Space")
    assert column(page, 0, 0) == sorted(column(page, 0, 0))


def test_a_screen_reader_finds_names_for_everything(opened: Any) -> None:
    page = opened("ranked")
    unnamed = """() => [
        ...[...document.querySelectorAll('table.scores')].filter(t => !t.caption || !t.caption.textContent),
        ...[...document.querySelectorAll('th')].filter(t => !t.scope),
        ...[...document.querySelectorAll('svg[role=img]')].filter(s => !s.getAttribute('aria-label') && s.getAttribute('aria-labelledby').split(' ').some(id => !document.getElementById(id)?.textContent)),
        ...[...document.querySelectorAll('svg:not([role])')].filter(s => s.getAttribute('aria-hidden') !== 'true'),
        ...[...document.querySelectorAll('button, input, select')].filter(b => !b.textContent.trim() && !b.getAttribute('aria-label')),
    ].map(e => e.outerHTML.slice(0, 200))"""
    assert page.evaluate(unnamed) == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_the_paper_in_both_themes(opened: Any, scheme: str) -> None:
    page = opened("ranked", color_scheme=scheme)
    for _ in range(3):
        contrasts = page.evaluate(CONTRAST)
        assert {
            name: ratio
            for name, ratio in contrasts.items()
            if ratio < (3 if name.startswith("--c") else 4.5)
        } == {}
        page.get_by_role("button", name="Theme").click()


CONTRAST = """() => {
    const probe = document.body.appendChild(document.createElement('i'));
    const rgb = name => { probe.className = 'probe'; probe.style.setProperty('color', `var(${name})`); return getComputedStyle(probe).color.match(/[\\d.]+/g).slice(0, 3).map(Number); };
    const light = c => c.map(v => v / 255).map(v => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)).reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
    const paper = light(rgb('--paper')), names = ['--ink', '--soft', '--accent', '--bad', '--c0', '--c1', '--c2', '--c3', '--c4', '--c5', '--c6', '--c7', '--ctl', '--ref'];
    const found = Object.fromEntries(names.map(n => [n, light(rgb(n))]).map(([n, l]) => [n, (Math.max(l, paper) + 0.05) / (Math.min(l, paper) + 0.05)]));
    probe.remove();
    return found;
}"""


def test_the_theme_follows_the_system_and_the_button(opened: Any) -> None:
    page = opened("ranked", color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(paper)
    page.get_by_role("button", name="Theme: auto").click()
    light = page.evaluate(paper)
    page.get_by_role("button", name="Theme: light").click()
    assert (page.evaluate(paper), light) == (
        dark,
        opened("ranked", color_scheme="light").evaluate(paper),
    )
    assert dark != light


@pytest.mark.parametrize("name", ["ranked", "all", "nasty"])
def test_a_telephone_scrolls_tables_not_the_page(opened: Any, name: str) -> None:
    page = opened(name, viewport=TELEPHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= TELEPHONE["width"]
    page.locator("td a").first.click()
    page.get_by_role("dialog").wait_for()
    assert page.evaluate("document.querySelector('dialog').scrollWidth") <= TELEPHONE["width"]


def test_without_scripts_it_is_a_plain_table_with_figures(opened: Any) -> None:
    page = opened("ranked", java_script_enabled=False)
    words = page.locator("body").inner_text()
    assert "gdnsq" in words and "±" in words and "show all" not in words
    assert (
        page.locator("#s0 tbody tr").count() == 8 and page.locator("#s0 svg[role=img]").count() > 6
    )
    assert (
        page.locator("button").count() == 0
        and page.locator("#filters").is_hidden()
        and page.get_by_role("dialog").is_hidden()
    )
    page.locator("td a").first.click()
    assert page.locator("td:target").count() == 1


def test_figures_are_drawn_when_there_is_time_and_not_before(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    """On arrival they are text; drawn, they are what stood in the text, and none of it was ever shown as words."""
    page = chromium.new_page()
    page.add_init_script("window.requestIdleCallback = later => { window.later = later; }")
    page.goto(f"file://{sites['ranked']}")
    assert page.locator("noscript").count() == 3 and page.locator(".figures svg").count() == 0
    assert (
        "<svg" not in page.locator("body").inner_text()
        and page.locator("#s0 thead button").count() > 0
    )
    texts = page.locator("noscript").all_text_contents()
    for left in (2, 1, 0):
        page.evaluate("later()")
        assert page.locator("noscript").count() == left
    assert page.locator(".figures svg").count() == sum(text.count("<svg") for text in texts) > 10
    page.close()


def test_who_was_hidden_before_the_figures_came_stays_hidden(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    page = chromium.new_page()
    page.add_init_script("window.requestIdleCallback = later => { window.later = later; }")
    page.goto(f"file://{sites['ranked']}")
    page.locator("#filters").get_by_role("button", name="lsq").click()
    page.locator("#filters").get_by_role("button", name="int2", exact=True).click()
    for _ in range(3):
        page.evaluate("later()")
    shown = "[...document.querySelectorAll('#s0 figure.scores svg')].map(s => [getComputedStyle(s).display !== 'none', s.querySelectorAll('.m:not(.off)').length, s.querySelectorAll('.m.off').length])"
    assert page.evaluate(shown) == [[False, 7, 1], [True, 7, 1]]
    assert page.locator("#s0 .key [aria-pressed=false]").all_text_contents() == ["lsq"]
    page.close()


def test_all_figures_are_there_when_it_is_printed_early(
    chromium: Browser, sites: dict[str, Path]
) -> None:
    page = chromium.new_page()
    page.add_init_script("window.requestIdleCallback = () => 0")
    page.goto(f"file://{sites['ranked']}")
    assert page.locator(".figures svg").count() == 0
    page.pdf()
    assert page.locator(".figures svg").count() > 10 and page.locator("noscript").count() == 0
    page.close()


def test_a_band_of_the_profile_shows_for_who_is_pointed_at_or_among_few(opened: Any) -> None:
    page = opened("ranked")
    bands = "[...document.querySelectorAll('.profile .ribbon')].filter(r => r.getBoundingClientRect().width > 0).length"
    assert page.locator(".profile .ribbon").count() == len(MEANS) and page.evaluate(bands) == 0
    item = page.locator(".overall .key li", has_text="lsq")
    item.hover()
    assert page.evaluate(bands) == 1
    page.locator("h1").hover()
    assert page.evaluate(bands) == 0
    for name in ("ste", "lotion", "pege", "ewgs"):
        page.locator("#filters").get_by_role("button", name=name, exact=True).click()
    assert page.evaluate(bands) == 3
    page.get_by_role("button", name="show all").click()
    assert page.evaluate(bands) == 0
    assert (
        opened("ranked", java_script_enabled=False).locator(".profile .ribbon:visible").count() == 0
    )


def test_a_long_name_breaks_at_blanks_only(chromium: Browser, tmp_path: Path) -> None:
    """Each word of a name lies on one line; one too long for any line breaks rather than push the numbers away."""
    names = ("ewgs (delta=adaptive)", "lotion (fisher=empirical, scale=hessian)", "x" * 60)
    rows = ranked(seeds=3)
    labelled = [
        rows.assign(label=name)[rows["method"] == method]
        for method, name in zip(("ewgs", "lotion", "ste"), names, strict=True)
    ]
    site_folder.place(
        files(pd.concat([rows[rows["method"].isin(["fp", "rtn"])], *labelled])), tmp_path / "site"
    )
    script = """() => [...document.querySelectorAll('#s0 tbody th')].map(th => {
        const node = document.createTreeWalker(th.querySelector('bdi'), NodeFilter.SHOW_TEXT), words = [];
        while (node.nextNode()) for (const word of node.currentNode.data.matchAll(/[^ ]+/g)) {
            const range = document.createRange();
            range.setStart(node.currentNode, word.index);
            range.setEnd(node.currentNode, word.index + word[0].length);
            words.push([word[0], new Set([...range.getClientRects()].map(r => Math.round(r.top))).size]);
        }
        return [words, th.getBoundingClientRect().width];
    })"""
    for size in (DESK, TELEPHONE):
        page = watch(chromium, tmp_path / "site" / "index.html", viewport=size).page
        found = page.evaluate(script)
        broken = {word for words, _ in found for word, lines in words if lines > 1}
        assert broken <= {"x" * 60} and max(width for _, width in found) < 0.52 * size["width"]
        assert {w for words, _ in found for w, _ in words} >= {
            "(delta=adaptive)",
            "(fisher=empirical,",
            "scale=hessian)",
        }
        page.context.close()


def test_a_table_of_nine_formats_fits_its_paper(chromium: Browser, tmp_path: Path) -> None:
    rows = ranked(seeds=3, tasks=["digits"])
    parts = [rows[rows["method"] == "fp"]]
    for n, fmt in enumerate(f"int{w} a:int{a}" for w in (1, 2, 4) for a in (1, 2, 4)):
        part = rows[rows["weights_format"] == "int4"]
        weights, _, acts = fmt.partition(" a:")
        keys = [f"{int(key[:8], 16) ^ (n + 1):08x}{key[8:]}" for key in part["key"]]
        parts.append(
            part.assign(weights_format=weights, act_format=acts, act_granularity="tensor", key=keys)
        )
    site_folder.place(files(pd.concat(parts)), tmp_path / "site")
    # Letter, the narrower of the papers in use, lies across: 11 inches less two margins of 12 mm.
    page = watch(
        chromium,
        tmp_path / "site" / "index.html",
        viewport={"width": round(11 * 96 - 24 / 25.4 * 96), "height": 800},
    ).page
    page.emulate_media(media="print")
    assert page.locator("#s0 thead th.score").count() == 9
    assert (
        page.evaluate(
            "document.querySelector('table.scores').getBoundingClientRect().right - document.documentElement.clientWidth"
        )
        <= 0
    )
    page.context.close()


def test_motion_is_reduced_for_who_asks(opened: Any) -> None:
    still = "getComputedStyle(document.querySelector('svg .m')).transitionDuration"
    assert opened("ranked").evaluate(still) != "0s"
    assert opened("ranked", reduced_motion="reduce").evaluate(still) == "0s"


def test_it_prints_without_controls_and_on_white(opened: Any) -> None:
    page = opened("ranked", color_scheme="dark")
    page.emulate_media(media="print")
    assert (
        page.locator("#filters").is_hidden()
        and page.get_by_role("button", name="Theme").is_hidden()
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("#s0 table").is_visible()
    assert len(page.pdf()) > 10_000


# ---- nothing hostile, nothing asked for ----


def test_hostile_names_do_nothing(opened: Any) -> None:
    page = opened("nasty")
    for link in page.locator("td a").all()[:24]:
        link.click()
        page.get_by_role("dialog").wait_for()
        page.keyboard.press("Escape")
    page.get_by_label("Search").fill("<img")
    assert page.evaluate(
        "[document.images.length, document.querySelectorAll('script').length, document.querySelectorAll('svg svg').length]"
    ) == [0, 2, 0]


def test_the_policy_stops_what_the_page_is_not(chromium: Browser, sites: dict[str, Path]) -> None:
    """Provoked: were a name to become markup after all, it could not act."""
    seen = watch(chromium, sites["ranked"])
    seen.page.evaluate(
        "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\"><p style=\"color:red\">x</p>')"
    )
    seen.page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'window.hit = 2'; document.body.append(s); }"
    )
    seen.page.evaluate("fetch('https://example.org/').catch(() => 0)")
    seen.page.wait_for_timeout(200)
    assert seen.page.evaluate("window.hit") is None
    assert len([line for line in seen.said if "Content Security Policy" in line]) >= 4
    assert not [url for url in seen.asked if url.startswith("http")]


def test_a_server_is_asked_for_one_file(chromium: Browser, sites: dict[str, Path]) -> None:
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(sites["ranked"].parent))
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen = watch(chromium, f"http://127.0.0.1:{server.server_port}/index.html")
        seen.page.wait_for_timeout(300)
        server.shutdown()
    assert asked == ["/index.html"] and not seen.said
