"""A board that is not fit to be published is refused in one line that says what to do."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from qbench.boards.build import build_board
from qbench.errors import QbenchError
from qbench.publish.admission import refuse_unpublishable
from tests.synthetic_runs import DEFAULTS, make_frame, make_planned_run
from tests.synthetic_sites import ENV, make_ranked_runs, make_site_files, make_varied_runs


def check_runs(rows: pd.DataFrame) -> None:
    refuse_unpublishable("made", build_board(rows, defaults=DEFAULTS), rows)


@pytest.mark.parametrize("control", ["fp", "rtn"])
def test_a_board_without_a_control_is_refused(control: str) -> None:
    rows = make_ranked_runs(seeds=3)
    advice = rf'the control {control} .* is missing; add "{control}" to `methods` in the sweep file'
    with pytest.raises(QbenchError, match=f"{advice} and run") as error:
        check_runs(rows[rows["method"] != control])
    assert "\n" not in str(error.value)
    check_runs(rows)


def test_a_control_that_never_ran_is_refused_too() -> None:
    rows = make_varied_runs()
    planned = make_frame(
        [
            make_planned_run("rtn", fmt, seed, **{**ENV, "effect": None})
            for fmt in ("int2", "int4")
            for seed in range(3)
        ]
    )
    board = build_board(rows[rows["method"] != "rtn"], planned=planned, defaults=DEFAULTS)
    advice = r"the control rtn .* has no finished run; `qbench sweep FILE` trains it"
    with pytest.raises(QbenchError, match=advice):
        refuse_unpublishable("made", board, rows)


@pytest.mark.parametrize(
    ("column", "mixed"),
    [
        ("method_version", "method ste 1, 2"),
        ("task_version", "task digits 1, 2"),
        ("board_version", "board 1, 2"),
    ],
)
def test_mixed_versions_are_refused_and_listed(column: str, mixed: str) -> None:
    rows = make_varied_runs()
    rows.loc[(rows["method"] == "ste") & (rows["seed"] == 1), column] = 2
    with pytest.raises(QbenchError, match=f"mixes versions, which do not compare: {mixed};"):
        check_runs(rows)


def test_a_board_without_a_finished_run_is_refused() -> None:
    rows = make_varied_runs()
    for part in (rows[:0], rows[rows["state"] != "ok"]):
        with pytest.raises(QbenchError, match="no finished run"):
            refuse_unpublishable("made", build_board(part, defaults=DEFAULTS), part)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_board_of_few_seeds_is_published_unranked(seeds: int) -> None:
    rows = make_ranked_runs(seeds=seeds)
    check_runs(rows)
    page = make_site_files(rows)["index.html"].decode()
    assert f"Unranked ({seeds} seed" in page and "They are not ranked: ranks need 10" in page
    assert bool(re.search(r">\d\.\d+ ± \d", page)) == (seeds > 1)
