"""The arithmetic of a board: each number by hand, and what must not change with other entrants."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from qbench.boards.board import Board, BoardCell, Row, Section
from qbench.boards.board_text import format_rank, format_score
from qbench.boards.build import build_board
from qbench.boards.csv_files import to_csv
from qbench.boards.markdown import to_markdown
from tests.synthetic_runs import (
    DEFAULTS,
    make_failed_run,
    make_frame,
    make_planned_run,
    make_run,
    make_runs,
    make_small_board_frame,
)

FP = make_runs("fp", None, [0.100, 0.102, 0.098])
RTN = make_runs("rtn", "int4", [0.200, 0.205, 0.195])
STE = make_runs("ste", "int4", [0.130, 0.136, 0.133])


def build_test_board(*parts: Sequence[dict[str, Any]], **more: Any) -> Board:
    return build_board(make_frame(*parts), **{"defaults": DEFAULTS, **more})


def build_section(*parts: Sequence[dict[str, Any]], **more: Any) -> Section:
    (found,) = build_test_board(*parts, **more).sections
    return found


def find_row(section: Section, entrant: str) -> Row:
    (found,) = (r for r in section.rows if r.entrant == entrant)
    return found


def find_cell(section: Section, entrant: str, fmt: str = "int4") -> BoardCell:
    found = find_row(section, entrant)
    return found.cells[0 if found.spans_columns else [c.format for c in section.columns].index(fmt)]


def join_notes(section: Section, cell: BoardCell) -> str:
    return "; ".join(section.notes[n - 1] for n in cell.notes)


# ---- tracks ----


def test_recipes_of_their_own_share_a_section_only_as_published() -> None:
    own = make_runs(
        "ste", "int4", [0.130, 0.136, 0.133], start="fp:0.5", recipe='{"optimizer": "sgd"}'
    )
    assert len(build_test_board(FP, RTN, own).sections) == 2
    board = build_test_board(FP, RTN, own, track="as-published")
    (found,) = board.sections
    assert [r.entrant for r in found.rows] == ["fp", "rtn", "ste"] and "start" not in found.setting
    assert any("as published" in note for note in board.notes)


def test_a_published_recipe_and_the_plain_entry_of_one_method_are_two_rows() -> None:
    own = make_runs(
        "ste",
        "int4",
        [0.6, 0.61, 0.62],
        recipe='{"optimizer": "sgd"}',
        label="ste as published (x)",
    )
    (found,) = build_test_board(
        FP, RTN, [{**r, "label": "ste"} for r in STE], own, track="as-published"
    ).sections
    assert {r.entrant: r.cells[0].seeds for r in found.rows if r.method == "ste"} == {
        "ste": 3,
        "ste as published (x)": 3,
    }


# ---- numbers ----


def test_mean_and_interval_are_scipys() -> None:
    scores = [0.130, 0.136, 0.133, 0.121]
    got = find_cell(build_section(FP, RTN, make_runs("ste", "int4", scores)), "ste")
    low, high = reference.t.interval(0.95, 3, np.mean(scores), reference.sem(scores))
    assert got.score is not None and got.state == "ok" and got.seeds == got.asked == 4
    assert (got.score.value, got.score.low, got.score.high) == pytest.approx(
        (np.mean(scores), low, high)
    )


def solve_fieller(n: np.ndarray, d: np.ndarray) -> list[float]:
    """Return the ends of the ratios that a t test at 5 % does not reject: roots of a quadratic."""
    t2 = reference.t.ppf(0.975, len(n) - 1) ** 2
    vn, vd, cov = reference.sem(n) ** 2, reference.sem(d) ** 2, float(np.cov(n, d)[0, 1]) / len(n)
    return sorted(
        np.roots(
            [
                d.mean() ** 2 - t2 * vd,
                -2 * (n.mean() * d.mean() - t2 * cov),
                n.mean() ** 2 - t2 * vn,
            ]
        ).real
    )


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_gap_is_the_ratio_of_means_with_fiellers_interval(better: str) -> None:
    fp, rtn, m = (
        np.array([0.100, 0.102, 0.098]),
        np.array([0.200, 0.205, 0.195]),
        np.array([0.130, 0.136, 0.133]),
    )
    sign = 1.0 if better == "lower" else -1.0
    parts = [
        make_runs(name, fmt, list(sign * x), better=better)
        for name, fmt, x in (("fp", None, fp), ("rtn", "int4", rtn), ("ste", "int4", m))
    ]
    got = find_cell(build_section(*parts), "ste").gap
    assert got is not None
    assert got.value == pytest.approx((m.mean() - rtn.mean()) / (fp.mean() - rtn.mean()))
    assert [got.low, got.high] == pytest.approx(solve_fieller(rtn - m, rtn - fp))
    assert got.value != pytest.approx(np.mean((m - rtn) / (fp - rtn)), abs=1e-9), (
        "not the mean of ratios"
    )


def test_gap_pairs_seeds_that_all_three_have() -> None:
    extra = [make_run("ste", "int4", 9, 0.5)]
    with_it, without = (
        find_cell(build_section(FP, RTN, [*STE, *more]), "ste") for more in (extra, [])
    )
    assert with_it.gap == without.gap and with_it.seeds == 4 and with_it.score != without.score


def test_the_gap_of_the_control_is_zero_and_full_precision_has_none() -> None:
    got = build_section(FP, RTN, STE)
    control = find_cell(got, "rtn").gap
    assert control is not None and (control.value, control.low, control.high) == (0, 0, 0)
    assert find_cell(got, "fp").gap is None


def test_no_gap_below_the_minimum_effect() -> None:
    rtn = make_runs("rtn", "int4", [0.1004, 0.1024, 0.0984])
    assert find_cell(build_section(FP, rtn, STE), "ste").gap is None, (
        "a unit of the last digit, where nobody says more"
    )
    assert (
        find_cell(build_section(FP, rtn, STE, minimum_effect={"digits": 1e-4}), "ste").gap
        is not None
    )
    assert (
        find_cell(build_section(FP, rtn, [{**r, "effect": 1e-4} for r in STE]), "ste").gap
        is not None
    ), "the metric's own"
    assert find_cell(build_section(FP, RTN, STE, minimum_effect={"digits": 0.2}), "ste").gap is None
    assert "<br>–" in to_markdown(build_test_board(FP, rtn, STE))


def test_no_gap_where_the_controls_cannot_be_told_apart() -> None:
    noisy = make_runs("rtn", "int4", [0.300, 0.050, 0.250])
    got = build_section(FP, noisy, STE)
    assert find_cell(got, "ste").gap is None and find_cell(got, "ste").score is not None


def test_randomised_rounding_bits_and_levels() -> None:
    ste = [
        {**r, "rr_mean": 0.2 + r["seed"] / 10, "bits_per_weight": 4.5, "levels": 16} for r in STE
    ]
    got = build_section(FP, RTN, ste)
    assert find_cell(got, "ste").rr == pytest.approx(0.3) and find_cell(got, "rtn").rr is None
    assert got.columns[0].bits_per_weight == (4.25, 4.5) and got.columns[0].levels == (15, 16)
    assert any("equal numbers of levels: 15 for rtn; 16 for ste" in note for note in got.notes)


def test_cost_is_a_ratio_to_full_precision_on_the_same_device() -> None:
    fast = [
        {**r, "step_s_median": x, "device_name": "gpu"}
        for r, x in zip(STE, [0.002, 0.003, 0.004], strict=True)
    ]
    fp = [*FP, make_run("fp", None, 3, 0.1, device_name="gpu", step_s_median=0.001)]
    assert find_row(build_section(fp, RTN, fast), "ste").cost.step_ratio == pytest.approx(3.0)
    assert find_row(build_section(FP, RTN, fast), "ste").cost.step_ratio is None, (
        "full precision never ran there"
    )
    stacked = [{**r, "step_s_median": 0.0001, "company": 8} for r in STE]
    assert find_row(build_section(FP, RTN, stacked), "ste").cost.step_ratio is None, (
        "stacked runs are compared with equally many stacked runs"
    )
    assert find_row(
        build_section([{**r, "step_s_median": 0.0002, "company": 8} for r in FP], RTN, stacked),
        "ste",
    ).cost.step_ratio == pytest.approx(0.5)
    cost = find_row(build_section(FP, RTN, STE), "ste").cost
    assert (cost.step_ratio, cost.train_s, cost.peak_memory_bytes) == (
        pytest.approx(1.25),
        1.5,
        2**27,
    )


# ---- who is best, and ranks ----


def test_best_is_clear_of_the_second() -> None:
    second = make_runs("lotion", "int4", [0.140, 0.147, 0.142])
    assert find_cell(build_section(FP, RTN, STE, second), "ste").best
    assert not find_cell(build_section(FP, RTN, STE, second), "lotion").best
    close = build_section(FP, RTN, STE, second, minimum_effect={"digits": 0.02})
    assert not any(c.best for r in close.rows for c in r.cells), "a difference of 0.01 is not 0.02"
    noisy = make_runs("lotion", "int4", [0.200, 0.100, 0.165])
    assert not find_cell(build_section(FP, RTN, STE, noisy), "ste").best, "no test tells them apart"


def test_best_is_corrected_for_the_number_of_rivals() -> None:
    """One rival is beaten at p = 0.03; with three such rivals Holm requires 0.05/3."""
    base = [0.130, 0.136, 0.133]
    rival = [
        [round(x + d, 4) for x, d in zip(base, shift, strict=True)]
        for shift in ([0.010, 0.013, 0.016], [0.013, 0.0075, 0.0125])
    ]
    p = reference.ttest_rel(base, rival[1]).pvalue
    assert 0.05 / 3 < p < 0.05
    one = build_section(make_runs("ste", "int4", base), make_runs("rtn", "int4", rival[1]))
    assert find_cell(one, "ste").best
    three = build_section(
        *(
            make_runs(name, "int4", x)
            for name, x in (
                ("ste", base),
                ("rtn", rival[1]),
                ("lotion", rival[1]),
                ("pege", rival[1]),
            )
        )
    )
    assert not find_cell(three, "ste").best


def test_full_precision_is_no_rival() -> None:
    got = build_section(FP, RTN, STE)
    assert find_cell(got, "ste").best and not find_cell(got, "fp").best


@pytest.mark.parametrize(
    "spoilt",
    [
        [{**STE[0], "audit_passed": False}, *STE[1:]],
        [*STE[:2], make_failed_run("ste", "int4", 2)],
        [*STE[:2], make_planned_run("ste", "int4", 2)],
        [*STE[:2], {**STE[2], "packed": math.nan}],
    ],
    ids=["audit", "failed", "planned", "not finite"],
)
def test_an_incomplete_cell_is_never_best(spoilt: list[dict[str, Any]]) -> None:
    assert find_cell(build_section(FP, RTN, STE), "ste").best
    got = build_section(FP, RTN, spoilt)
    assert not find_cell(got, "ste").best and "**" not in to_markdown(
        build_test_board(FP, RTN, spoilt)
    )
    assert join_notes(got, find_cell(got, "ste"))


def make_ten_runs(
    method: str, centre: float, seed: int, count: int = 10, fmt: str = "int4"
) -> list[dict[str, Any]]:
    common, own = (
        np.random.default_rng(0).normal(0, 0.1, count),
        np.random.default_rng(seed).normal(0, 0.002, count),
    )
    return make_runs(method, fmt, list(centre + common + own))


def test_ranks_are_shared_and_need_ten_seeds() -> None:
    names = (("ste", 1.0), ("lotion", 2.0), ("pege", 2.0), ("rtn", 2.0))
    got = build_section(*(make_ten_runs(name, centre, i) for i, (name, centre) in enumerate(names)))
    assert {r.entrant: format_rank(r) for r in got.rows if r.entrant != "fp"} == {
        "ste": "1",
        "lotion": "2–4",
        "pege": "2–4",
        "rtn": "2–4",
    }
    few = build_section(
        *(make_ten_runs(name, centre, i, 9) for i, (name, centre) in enumerate(names))
    )
    assert all(r.rank is None for r in few.rows) and find_cell(few, "ste").best


def test_only_complete_rows_are_ranked() -> None:
    spoilt = make_ten_runs("pege", 2.0, 3)
    spoilt[4] = make_failed_run("pege", "int4", 4)
    got = build_section(make_ten_runs("ste", 1.0, 0), make_ten_runs("lotion", 2.0, 2), spoilt)
    assert (
        find_row(got, "ste").rank,
        find_row(got, "lotion").rank,
        find_row(got, "pege").rank,
    ) == (
        (1, 1),
        (2, 2),
        None,
    )


def test_ranks_are_by_the_mean_over_formats() -> None:
    """One entrant is best at two bits by more than it is worse at four."""
    cells = [
        ("ste", 1.0, "int2"),
        ("ste", 1.5, "int4"),
        ("lotion", 2.0, "int2"),
        ("lotion", 1.0, "int4"),
    ]
    parts = [make_ten_runs(name, centre, i, fmt=fmt) for i, (name, centre, fmt) in enumerate(cells)]
    got = build_section(*parts)
    assert (find_row(got, "ste").rank, find_row(got, "lotion").rank) == ((1, 1), (2, 2))
    assert find_cell(got, "lotion").best and find_cell(got, "ste", "int2").best


# ---- what has no score stays ----


@pytest.mark.parametrize(
    ("made", "state", "shown", "note"),
    [
        (lambda s: make_failed_run("ste", "int4", s), "failed", "diverged", "3 of 3 diverged"),
        (lambda s: make_failed_run("ste", "int4", s, "oom", "no memory"), "failed", "oom", "3 of 3 oom: no memory"),
        (lambda s: make_failed_run("ste", "int4", s, None), "failed", "failed", "3 of 3 failed"),
        (lambda s: make_failed_run("ste", "int4", s, ["oom", "data", "oom"][s]), "failed", "data, oom", "1 of 3 data, 2 of 3 oom"),
        (lambda s: make_planned_run("ste", "int4", s, "skipped", "no rule"), "skipped", "skipped", "skipped: no rule"),
        (lambda s: make_planned_run("ste", "int4", s), "planned", "planned", "3 of 3 planned"),
        (lambda s: make_run("ste", "int4", s, math.inf), "failed", "diverged", "3 of 3 diverged"),
        (lambda s: make_failed_run("ste", "int4", s, "plugin", "boom") if s else make_run("ste", "int4", 0, 0.1), "partial", "0.100", "2 of 3 plugin: boom"),
    ],
)  # fmt: skip
def test_a_cell_without_a_score_stays_and_says_why(
    made: Any, state: str, shown: str, note: str
) -> None:
    got = build_section(FP, RTN, [made(s) for s in range(3)])
    c = find_cell(got, "ste")
    assert (c.state, format_score(c, 3), join_notes(got, c)) == (state, shown, note)
    board = build_test_board(FP, RTN, [made(s) for s in range(3)])
    assert note in to_csv(board) and f" {note}" in to_markdown(board)


def test_a_partial_cell_counts_its_seeds() -> None:
    c = find_cell(build_section(FP, RTN, [*STE[:2], make_failed_run("ste", "int4", 2)]), "ste")
    assert (c.seeds, c.asked, c.failures) == (2, 3, {"diverged": 1})
    assert c.score is not None and c.score.value == pytest.approx(0.133), "nothing is imputed"


def test_a_cell_without_runs_is_absent() -> None:
    got = build_section(FP, RTN, STE, make_runs("ste", "int2", [0.5, 0.6, 0.7]))
    assert find_cell(got, "rtn", "int2").state == "absent" and "no rtn" in join_notes(
        got, find_cell(got, "rtn", "int2")
    )
    assert find_cell(got, "ste", "int2").gap is None and find_cell(got, "ste").gap is not None


def test_a_failed_audit_gets_a_note() -> None:
    got = build_section(FP, RTN, [{**STE[0], "audit_passed": False}, *STE[1:]])
    c = find_cell(got, "ste")
    assert c.audits_failed == 1 and "audit of 1 of 3 runs failed" in join_notes(got, c)
    assert (
        find_row(got, "ste").cost.audits_failed == 1
        and find_row(got, "rtn").cost.audits_failed == 0
    )


def test_missing_full_precision_is_a_row_that_says_so() -> None:
    got = build_section(RTN, STE)
    c = find_cell(got, "fp")
    assert (
        got.rows[0].entrant == "fp"
        and c.state == "absent"
        and join_notes(got, c).startswith("no full precision here, so no gap")
    )
    assert find_cell(got, "ste").gap is None and find_cell(got, "ste").score is not None
    assert find_row(got, "ste").cost.step_ratio is None


def test_missing_rtn_is_a_row_that_says_so() -> None:
    other = make_runs("rtn", "int4", [0.2, 0.21, 0.22], params={"scale": "mse"})
    got = build_section(FP, STE, other)
    assert join_notes(got, find_cell(got, "rtn")).startswith(
        "no rtn with default parameters (rtn (scale=mse) will not do), so no gap"
    )
    assert all(c.gap is None for r in got.rows for c in r.cells)
    assert find_row(got, "rtn").main and not find_row(got, "rtn (scale=mse)").main


def test_an_empty_frame_is_an_empty_board() -> None:
    got = build_board(pd.DataFrame())
    assert got.sections == () and "No runs yet" in to_markdown(got)
    assert (
        build_board(pd.DataFrame(), planned=make_frame([make_planned_run("ste", "int4", 0)]))
        .sections[0]
        .rows[-1]
        .cells[0]
        .state
        == "planned"
    )


# ---- which rows count ----


def test_two_attempts_count_once() -> None:
    lost = [
        {**make_failed_run("ste", "int4", 0, "oom"), "key": STE[0]["key"], "attempt": a}
        for a in (1, 3)
    ]
    won = {**STE[0], "attempt": 2}
    assert find_cell(build_section(FP, RTN, [*lost, won, *STE[1:]]), "ste") == find_cell(
        build_section(FP, RTN, [won, *STE[1:]]), "ste"
    )
    later = [
        {**lost[0], "reason": r, "attempt": a}
        for a, r in ((2, "timeout"), (10, "data"), (1, "oom"))
    ]
    c = find_cell(build_section(FP, RTN, [*later, *STE[1:]]), "ste")
    assert c.failures == {"data": 1} and c.asked == 3


def test_planned_runs_count_where_there_is_no_run() -> None:
    planned = make_frame(
        [make_planned_run("ste", "int4", s, key=r["key"]) for s, r in enumerate(STE)],
        [make_planned_run("pege", "int4", 0)],
    )
    got = build_section(FP, RTN, STE, planned=planned)
    assert find_cell(got, "ste") == find_cell(build_section(FP, RTN, STE), "ste")
    assert find_cell(got, "pege").state == "planned" and got.seeds == 3


@pytest.mark.parametrize(
    ("column", "said_of"),
    [
        ("method_version", "ste version 1"),
        ("task_version", "digits version 1"),
        ("board_version", "board version 1"),
    ],
)
def test_old_versions_are_left_out_with_a_note(column: str, said_of: str) -> None:
    old = [{**r, column: 1, "key": f"old{r['seed']}", "packed": 9.0} for r in STE]
    new = [{**r, column: 2} for r in (STE if column == "method_version" else [*FP, *RTN, *STE])]
    got = build_test_board(*([FP, RTN] if column == "method_version" else []), old, new)
    (only,) = got.sections
    assert find_cell(only, "ste").score == find_cell(
        build_section(FP, RTN, STE), "ste"
    ).score and find_row(only, "ste").version == (2 if column[0] == "m" else 1)
    assert got.notes == (f"left out: 3 runs of older versions: {said_of}",) and got.notes[
        0
    ] in to_markdown(got)


def test_the_best_learning_rate_on_validation_is_shown() -> None:
    slow = [
        {**r, "lr": 0.001, "key": f"slow{r['seed']}", "packed": 0.5, "validation": 0.1} for r in STE
    ]
    got = build_section(FP, RTN, STE, slow)
    c = find_cell(got, "ste")
    assert (
        (c.lr, c.rates) == (0.001, 2)
        and c.score is not None
        and c.score.value == pytest.approx(0.5)
    ), "test does not choose"
    assert [n for n in got.notes if "learning rates" in n] == [
        "learning rates: the best on validation, of unequal numbers of trials: 2 for ste; 1 for fp, rtn"
    ]
    spoilt = [make_failed_run("ste", "int4", 0, lr=0.001), *slow[1:]]
    assert find_cell(build_section(FP, RTN, STE, spoilt), "ste").lr == 0.003, (
        "a rate that fails is not chosen for its survivors"
    )


def test_equal_trials_and_rates_in_recipes() -> None:
    both = [[{**r, "lr": None, "recipe": json.dumps({"lr": lr, "clip": 1.0}), "key": f"{lr}{r['key']}", "validation": r["packed"] + lr} for r in part]
            for part in (FP, RTN, STE) for lr in (0.1, 0.01)]  # fmt: skip
    got = build_section(*both)
    assert "learning rates: the best on validation, of 2 for everyone" in got.notes
    assert {c.lr for r in got.rows for c in r.cells} == {0.01}
    assert not any("learning rates" in note for note in build_section(FP, RTN, STE).notes)


@pytest.mark.parametrize(("best", "says"), [(0.001, "smallest"), (0.003, None), (0.01, "largest")])
def test_a_best_rate_at_an_end_of_those_tried_gets_a_note(best: float, says: str | None) -> None:
    tried = [
        make_runs("ste", "int4", [0.13 + (lr != best) * 0.01] * 3, lr=lr)
        for lr in (0.001, 0.003, 0.01)
    ]
    notes = [n for n in build_section(FP, RTN, *tried).notes if n.startswith("best at the")]
    assert notes == (
        [] if says is None else [f"best at the {says} rate tried, so another might be better: ste"]
    )


# ---- sections and labels ----


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"task": "grammar"}, "grammar/xs"),
        ({"task_params": '{"net":"mlp"}'}, "digits (net=mlp)/xs"),
        ({"size": "m"}, "digits/m"),
        ({"start": "fp:0.5"}, "start fp:0.5"),
        ({"steps": 600}, "600 steps"),
        ({"batch": 8}, "batch 8"),
        ({"recipe": '{"clip":0.5}'}, "clip=0.5"),
        ({"data": "0123456789abcdef"}, "data 0123456789ab"),
    ],
)
def test_a_section_holds_runs_that_are_trained_alike(change: dict[str, Any], told: str) -> None:
    other = [{**r, **change, "key": "x" + r["key"]} for r in [*FP, *RTN, *STE]]
    got = build_test_board(FP, RTN, STE, other).sections
    assert len(got) == 2 and len({(s.title, s.setting) for s in got}) == 2
    assert sum(told in f"{s.title}, {s.setting}".split(", ") or told == s.title for s in got) == 1
    assert [find_cell(s, "ste").score for s in got] == [
        find_cell(build_section(FP, RTN, STE), "ste").score
    ] * 2


def test_sizes_go_from_small_to_large_and_formats_from_few_bits_to_many() -> None:
    parts = [
        [{**r, "size": size, "key": size + r["key"]} for r in RTN]
        for size in ("l", "xs", "m", "huge", "s")
    ]
    assert [s.size for s in build_test_board(*parts).sections] == ["xs", "s", "m", "l", "huge"]
    shapes = [("int8", "channel", None), ("fp4", "channel", None), ("int4", "block-32", None), ("int4", "channel", "int8"), ("int2", "tensor", None),
              ("int4", "channel", None)]  # fmt: skip
    rows = [
        {
            **RTN[0],
            "weights_format": w,
            "weights_granularity": g,
            "act_format": a,
            "act_granularity": a and "tensor",
            "key": f"{w}{g}{a}",
        }
        for w, g, a in shapes
    ]
    labels = ["int2/tensor", "int4", "int4/block-32", "int4 a:int8", "fp4", "int8"]
    assert [c.format for c in build_section(rows).columns] == labels


def test_labels_show_parameters_that_are_not_default() -> None:
    clipped = [
        {**r, "key": "c" + r["key"]}
        for r in make_runs("ste", "int4", [0.2], params={"clip_gradient": True, "scale": "mse"})
    ]
    names = [r.entrant for r in build_section(FP, RTN, STE, clipped).rows]
    assert names == ["fp", "rtn", "ste", "ste (clip_gradient=true, scale=mse)"]
    unknown = {k: v for k, v in DEFAULTS.items() if k != "ste"}
    assert [r.entrant for r in build_section(STE, clipped, defaults=unknown).rows[2:]] == [
        "ste (clip_gradient=false, scale=absmax)", "ste (clip_gradient=true, scale=mse)",
    ], "where nobody told the defaults, what tells them apart"  # fmt: skip
    assert [r.entrant for r in build_section([{**r, "label": "Ours"} for r in STE]).rows[2:]] == [
        "Ours"
    ]


def test_a_method_of_no_paper_keeps_its_provenance_in_the_csv() -> None:
    board = build_test_board([{**r, "provenance": "own"} for r in STE])
    provenance = {
        row["entrant"]: row["provenance"] for row in csv.DictReader(to_csv(board).splitlines())
    }
    assert provenance["ste"] == "own"


def test_a_reconstructed_method_says_so() -> None:
    assert find_row(
        build_section([{**r, "provenance": "reconstructed"} for r in STE]), "ste"
    ).reconstructed
    assert "| ste (reconstructed) |" in to_markdown(
        build_test_board([{**r, "provenance": "reconstructed"} for r in STE])
    )


# ---- properties ----

SCORES = st.one_of(
    st.floats(0.01, 3).map(lambda x: round(x, 4)), st.none(), st.sampled_from([math.nan, math.inf])
)
PLACES = {
    "fp": (None,),
    "rtn": ("int2", "int4"),
    "ste": ("int2", "int4", "int8"),
    "lotion": ("int2", "int4"),
    "pege": ("int4", "fp4"),
}


@st.composite
def draw_entries(draw: st.DrawFn, method: str) -> list[dict[str, Any]]:
    """Draw runs of one entrant in some formats; some failed and some have a failed audit."""
    found = []
    for fmt in (
        draw(st.sets(st.sampled_from(PLACES[method]), min_size=1)) if method != "fp" else [None]
    ):
        for lr in draw(st.sampled_from([(0.003,), (0.003, 0.01)])):
            for seed, x in enumerate(draw(st.lists(SCORES, min_size=1, max_size=4))):
                made = make_failed_run if x is None else make_run
                more = (
                    {"reason": draw(st.sampled_from(["oom", "diverged"]))}
                    if x is None
                    else {"score": x, "audit_passed": draw(st.booleans())}
                )
                found.append(made(method, fmt, seed, lr=lr, **more))
    return found


@st.composite
def draw_frames(
    draw: st.DrawFn, methods: Sequence[str] = ("fp", "rtn", "ste", "lotion")
) -> list[dict[str, Any]]:
    there = draw(st.sets(st.sampled_from(methods), min_size=1))
    return [r for method in sorted(there) for r in draw(draw_entries(method))]


def collect_numbers(board: Board) -> dict[tuple[str, str, str], tuple[Any, ...]]:
    """Return everything a board says of an entrant under a format, except comparisons."""
    found = {}
    for s in board.sections:
        for r in s.rows:
            formats = ["fp32"] if r.spans_columns else [c.format for c in s.columns]
            for fmt, c in zip(formats, r.cells, strict=True):
                found[r.entrant, r.params, fmt] = (
                    dataclasses.replace(c, best=False, notes=()),
                    join_notes(s, c),
                    r.cost,
                    r.role,
                    r.main,
                    r.version,
                )
    return found


@given(draw_frames(), draw_entries("pege"))
def test_an_entrant_never_moves_anothers_number(
    before: list[dict[str, Any]], added: list[dict[str, Any]]
) -> None:
    alone, together = (
        collect_numbers(build_test_board(before)),
        collect_numbers(build_test_board(before, added)),
    )
    # A control that is missing is a row of its own only where there is a format to miss it under.
    assert {place: together[place] for place in alone} == alone


@given(draw_frames(("fp", "rtn", "ste", "pege")), st.randoms(use_true_random=False), st.data())
def test_the_order_of_rows_never_matters(
    rows: list[dict[str, Any]], random: Any, data: st.DataObject
) -> None:
    again = [{**r, "attempt": 2} for r in rows if data.draw(st.booleans())]
    mixed = [*rows, *again]
    random.shuffle(mixed)
    assert build_test_board(mixed) == build_test_board(rows, again)


@given(draw_frames(("fp", "rtn", "ste")), st.lists(st.floats(width=32), min_size=4, max_size=4))
def test_only_finite_numbers_are_numbers(rows: list[dict[str, Any]], odd: list[float]) -> None:
    wild = dict(zip(("packed", "rr_mean", "train_s", "lr"), odd, strict=True))
    board = build_test_board(
        rows, [make_run("pege", "int4", 7, None, **{**wild, "lr": abs(wild["lr"])})]
    )
    json.dumps(board.to_json(), allow_nan=False)
    for s in board.sections:
        for c in (c for r in s.rows for c in r.cells if c.score):
            assert all(
                x is None or math.isfinite(x)
                for x in (
                    *dataclasses.astuple(c.score),
                    *(dataclasses.astuple(c.gap) if c.gap else ()),
                )
            )
            assert c.seeds + sum(c.failures.values()) == c.asked
    printed = to_markdown(board).partition("Score:")[0] + to_csv(board)
    assert not {"nan", "inf", "-inf"} & set(
        printed.replace("|", ",").replace("±", ",").replace("\n", ",").replace(" ", ",").split(",")
    )


def test_the_small_board_has_every_state() -> None:
    """The frame of the golden files contains one cell of each state."""
    (only,) = build_board(make_small_board_frame(), defaults=DEFAULTS).sections
    assert {c.state for r in only.rows for c in r.cells} == {"ok", "partial", "failed", "skipped"}
    assert (
        len(only.notes) == 5
        and any(c.best for r in only.rows for c in r.cells)
        and any(r.reconstructed for r in only.rows)
    )
