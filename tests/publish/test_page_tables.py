"""The tables in a real browser: sorting, and filters that hide rows but leave ranks as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest

from qbench.boards import board_text
from qbench.boards.build import build_board
from tests.browser import require_browser
from tests.publish.pages import find_filter, find_head, read_column, read_ranks
from tests.synthetic_runs import DEFAULTS
from tests.synthetic_sites import FORMATS, MEANS, make_ranked_runs

if TYPE_CHECKING:
    from playwright.sync_api import Page


def test_without_a_browser_tests_are_skipped_or_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.delenv("QBENCH_CHROMIUM", raising=False)
    monkeypatch.delenv("QBENCH_BROWSER", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium on this machine"):
        require_browser()
    monkeypatch.setenv("QBENCH_BROWSER", "required")
    with pytest.raises(pytest.fail.Exception, match="no Chromium on this machine"):
        require_browser()


# ---- sorting ----


def read_means(page: Page, section: int, column: int) -> list[float]:
    cells = read_column(page, section, column)
    return [float(cell.split(" ")[0]) for cell in cells if "±" in cell]


def test_clicks_sort_best_first_then_worst_first_then_as_before(open_site: Any) -> None:
    page = open_site("ranked")
    before = read_column(page, 0, 0)
    sorted_head = page.locator("#s0 th[aria-sort]")
    find_head(page, 0, "int4").click()
    assert read_column(page, 0, 0)[0] == "gdnsq" and read_column(page, 0, 0)[-1] == "rtn"
    assert read_means(page, 0, 3) == sorted(read_means(page, 0, 3))
    assert sorted_head.get_attribute("aria-sort") == "ascending"
    find_head(page, 0, "int4").click()
    assert read_means(page, 0, 3) == sorted(read_means(page, 0, 3), reverse=True)
    assert sorted_head.get_attribute("aria-sort") == "descending"
    find_head(page, 0, "int4").click()
    assert read_column(page, 0, 0) == before and sorted_head.count() == 0


def test_rows_without_a_score_stay_at_the_end_in_both_orders(open_site: Any) -> None:
    page = open_site("varied")
    for _ in range(2):
        find_head(page, 0, "int4").click()
        assert read_column(page, 0, 0)[-2:] in (["lotion", "pege"], ["pege", "lotion"])
    failed = page.locator("#s0 tr", has_text="lotion").locator("td").nth(2)
    assert "oom" in failed.inner_text() and "failed" in str(failed.get_attribute("class"))


# ---- filters leave ranks as they are ----


def compute_ranks(rows: pd.DataFrame, section: int) -> dict[str, str]:
    """Return the ranks that a board of these rows has."""
    board = build_board(rows, defaults=DEFAULTS)
    ranked = [row for row in board.sections[section].rows if row.version and not row.retired]
    return {row.entrant: board_text.format_rank(row) or board_text.NO_VALUE for row in ranked}


def read_best(page: Page, section: int) -> set[tuple[str, int]]:
    """Return the entrant and the column of each best score, hidden ones included."""
    script = """section =>
        [...document.querySelectorAll(`#s${section} table.scores .best`)].map(cell =>
            [cell.parentElement.querySelector('bdi').textContent, cell.cellIndex - 2])
    """
    return {(name, column) for name, column in page.evaluate(script, section)}


FILTERS = [
    (set(MEANS), {"int2"}),
    (set(MEANS), {"int4"}),
    (set(MEANS) - {"gdnsq"}, {"int2", "int4"}),
    ({"rtn", "lsq", "ewgs"}, {"int2", "int4"}),
    ({"lotion", "pege"}, {"int4"}),
    ({"ste", "lotion", "pege", "lsq", "gdnsq"}, {"int2"}),
]
"""Methods and formats that are left."""


@pytest.mark.parametrize(("methods", "formats"), FILTERS)
def test_a_filter_leaves_ranks_and_best_scores_as_they_are(
    open_site: Any, methods: set[str], formats: set[str]
) -> None:
    page, rows = open_site("ranked"), make_ranked_runs()
    ranks = [compute_ranks(rows, section) for section in (0, 1)]
    best = [read_best(page, section) for section in (0, 1)]
    assert len(set(ranks[0].values())) > 3 and any(best)
    for name in [*(set(MEANS) - methods), *(set(FORMATS) - formats)]:
        find_filter(page, name).click()
    for section in (0, 1):
        left = {name: rank for name, rank in ranks[section].items() if name in {*methods, "fp"}}
        assert read_ranks(page, section) == left
        assert read_best(page, section) == best[section]
    # Among the methods that are left a rank could be another one: none may take it.
    part = rows[
        rows["method"].isin({*methods, "fp"}) & ~rows["weights_format"].isin(set(FORMATS) - formats)
    ]
    if len(methods) < len(MEANS):
        assert compute_ranks(part, 0) != {
            k: v for k, v in ranks[0].items() if k in methods | {"fp"}
        }
    page.get_by_role("button", name="show all").click()
    assert [read_ranks(page, section) for section in (0, 1)] == ranks


def test_the_page_says_that_a_filter_does_not_change_ranks(open_site: Any) -> None:
    hint = open_site("ranked").locator("#filters .hint")
    assert hint.is_visible()
    sentence = (
        "A filter only hides rows: ranks and best scores are always those of the whole board."
    )
    assert " ".join(hint.inner_text().split()) == sentence


def test_a_search_and_a_task_leave_ranks_as_they_are(open_site: Any) -> None:
    page, ranks = open_site("ranked"), compute_ranks(make_ranked_runs(), 1)
    page.get_by_label("Search").fill("lotion")
    page.get_by_label("Task and size").select_option("grammar/xs")
    assert read_ranks(page, 1) == {"lotion": ranks["lotion"]}


def test_who_failed_in_one_format_stays_unranked_when_that_is_hidden(open_site: Any) -> None:
    page = open_site("partial")
    ranks = read_ranks(page, 0)
    assert ranks["lsq"] == board_text.NO_VALUE and ranks["gdnsq"] != board_text.NO_VALUE
    for name in FORMATS:
        find_filter(page, name).click()
        assert read_ranks(page, 0) == ranks
        page.get_by_role("button", name="show all").click()
        assert read_ranks(page, 0) == ranks


def test_a_retired_version_is_shown_without_a_rank(open_site: Any) -> None:
    page, ranks = open_site("retired"), compute_ranks(make_ranked_runs(), 0)
    assert read_ranks(page, 0) == {**ranks, "gdnsq, version 1, retired": board_text.NO_VALUE}
    find_filter(page, "lotion").click()
    del ranks["lotion"]
    assert read_ranks(page, 0) == {**ranks, "gdnsq, version 1, retired": board_text.NO_VALUE}


def test_the_best_scores_are_those_of_the_board(open_site: Any) -> None:
    page = open_site("ranked")
    board = build_board(make_ranked_runs(), defaults=DEFAULTS)
    best = [
        {(row.entrant, i) for row in section.rows for i, cell in enumerate(row.cells) if cell.best}
        for section in board.sections
    ]
    assert [read_best(page, section) for section in (0, 1)] == best and any(best)


# ---- what filters hide ----


def test_search_and_task_narrow_what_is_shown(open_site: Any) -> None:
    page = open_site("ranked")
    status = page.locator("#status")
    page.get_by_label("Search").fill("lotion")
    assert (read_column(page, 0, 0), read_column(page, 1, 0)) == (["lotion"], ["lotion"])
    assert status.inner_text() == "2 rows in 2 tables shown."
    page.get_by_label("Task and size").select_option("grammar/xs")
    assert page.locator("#s0").is_hidden() and page.locator("#s1").is_visible()
    page.get_by_label("Search").fill("nobody")
    assert status.inner_text() == "Nothing matches."


def test_a_legend_filters_tables_and_figures(open_site: Any) -> None:
    page = open_site("ranked")
    panels = page.locator("#s0 figure.scores svg")
    marks = page.locator("#s0 figure.scores svg .m:not(.off)")
    before = marks.count()
    page.locator("#s0 .figures .key").get_by_role("button", name="lsq").click()
    assert "lsq" not in read_column(page, 0, 0) and marks.count() < before
    released = page.locator(".key [aria-pressed=false]").count()
    assert released == page.locator(".key li", has_text="lsq").count() > 2
    find_filter(page, "int2").click()
    assert panels.first.is_hidden() and panels.nth(1).is_visible()
