"""A board in a few numbers: each by hand, nothing imputed, what is missing said."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from qbench.analysis.equal_time import TimedCell, ValidationCurve, ValidationCurves, interpolate_at
from qbench.analysis.results import Results
from qbench.analysis.summary import (
    THRESHOLDS,
    BoardSummary,
    EntrantSummary,
    TradeoffPoint,
    summarise_board,
)
from qbench.boards.build import build_board, make_section_builders
from qbench.cli.options import cli
from qbench.stats import intervals
from qbench.store.database import Store
from qbench.terminal.summary import show_summary
from tests.run_folders import fake_board_members, make_attempt, make_run_config
from tests.synthetic_runs import (
    DEFAULTS,
    make_failed_run,
    make_frame,
    make_planned_run,
    make_run,
    make_runs,
)

Rows = list[dict[str, Any]]
FP = [0.100, 0.102, 0.098, 0.101]
RTN = {"int2": [0.40, 0.45, 0.43, 0.41], "int4": [0.20, 0.22, 0.21, 0.20]}
STE = {"int2": [0.30, 0.36, 0.32, 0.33], "int4": [0.13, 0.14, 0.15, 0.12]}


def task(
    fp: Sequence[float], rtn: dict[str, Any], name: str = "digits", **methods: dict[str, Any]
) -> Rows:
    """The runs of a section."""
    found = make_runs("fp", None, fp, task=name)
    for method, cells in {"rtn": rtn, **methods}.items():
        for fmt, scores in cells.items():
            found += make_runs(method, fmt, scores, task=name)
    return found


def summary(*parts: Rows, curves: ValidationCurves | None = None) -> BoardSummary:
    return summarise_board(make_section_builders(make_frame(*parts), None, DEFAULTS)[1], curves or {}, "title")


def entry(found: BoardSummary, entrant: str) -> EntrantSummary:
    (only,) = (e for e in found.overall if e.entrant == entrant)
    return only


def printed(found: BoardSummary, width: int = 120) -> str:
    out = io.StringIO()
    show_summary(found, Console(file=out, width=width))
    return " ".join(out.getvalue().split())


# ---- overall ----


def test_the_mean_over_cells_is_of_the_gaps_that_the_board_shows() -> None:
    found = summary(task(FP, RTN, ste=STE))
    ste = entry(found, "ste")
    gaps = [
        (np.mean(RTN[f]) - np.mean(STE[f])) / (np.mean(RTN[f]) - np.mean(FP))
        for f in ("int2", "int4")
    ]
    assert ste.gap is not None and ste.gap.value == pytest.approx(np.mean(gaps))
    assert (ste.cells, found.cells, ste.seeds, ste.missing) == (2, 2, 4, ())
    assert entry(found, "rtn").gap == intervals.Estimate(0, 0, 0, 3) and entry(found, "rtn").control
    assert [e.entrant for e in found.overall] == ["ste", "rtn"], (
        "full precision recovers everything by definition"
    )


def test_the_interval_of_one_cell_is_the_one_that_its_board_shows() -> None:
    rows = make_frame(task(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]}))
    shown = next(
        row.cells[0].gap
        for row in build_board(rows, defaults=DEFAULTS).sections[0].rows
        if row.entrant == "ste"
    )
    ste = entry(summary(task(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})), "ste")
    assert ste.gap == shown and shown is not None and shown.low is not None


def test_cells_of_a_task_are_averaged_within_a_seed_and_tasks_are_independent() -> None:
    """Two tasks of one column each: Welch–Satterthwaite over tasks. One task of two: a t interval of per-seed means."""
    one = {"int4": RTN["int4"]}, {"int4": STE["int4"]}
    apart = entry(
        summary(
            task(FP, one[0], ste=one[1]),
            task(FP, {"int4": RTN["int2"]}, "grammar", ste={"int4": STE["int2"]}),
        ),
        "ste",
    )
    gain, gap = (
        np.array([[r - x for r, x in zip(RTN[f], other[f], strict=True)] for f in ("int4", "int2")])
        for other in (STE, dict.fromkeys(RTN, FP))
    )
    together = entry(summary(task(FP, RTN, ste=STE)), "ste")
    expected = intervals.mean_interval(intervals.linearise_ratio(gain, gap).mean(0))
    assert together.gap is not None and apart.gap is not None
    assert (together.gap.low, together.gap.df) == pytest.approx((expected.low, 3))
    assert apart.gap.df is not None and 3 <= apart.gap.df <= 6 and apart.cells == 2


def test_a_task_weighs_as_much_as_its_cells() -> None:
    found = summary(
        task(FP, RTN, ste=STE), task(FP, {"int4": RTN["int4"]}, "grammar", ste={"int4": FP})
    )
    digits = summary(task(FP, RTN, ste=STE))
    both, alone = entry(found, "ste").gap, entry(digits, "ste").gap
    assert (
        both is not None
        and alone is not None
        and both.value == pytest.approx((2 * alone.value + 1) / 3)
    )


@pytest.mark.parametrize(
    ("spoilt", "why"),
    [
        ([], "not asked for"),
        ([*make_runs("ste", "int2", STE["int2"][:3]), make_failed_run("ste", "int2", 3)], "1 of 4 diverged"),
        ([make_planned_run("ste", "int2", s, "skipped", "no rule") for s in range(4)], "4 of 4 skipped"),
        (
            [*make_runs("ste", "int2", STE["int2"][:3]), make_run("ste", "int2", 3, math.nan)],
            "1 of 4 diverged",
        ),
        (make_runs("ste", "int2", STE["int2"], audit_passed=False), "the audit of 4 of 4 runs failed"),
        (
            [make_run("ste", "int2", s + 50, x) for s, x in enumerate(STE["int2"])],
            "no seed in common with the controls",
        ),
    ],
    ids=["absent", "diverged", "skipped", "nan", "audit", "seeds"],
)
def test_a_cell_that_is_missing_is_said_and_not_imputed(spoilt: Rows, why: str) -> None:
    lotion = {f: [x + 0.001 for x in xs] for f, xs in STE.items()}
    found = summary(task(FP, RTN, ste={"int4": STE["int4"]}, lotion=lotion), spoilt)
    ste, alone = (
        entry(found, "ste"),
        entry(summary(task(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})), "ste"),
    )
    assert (ste.gap, ste.cells, found.cells) == (alone.gap, 1, 2)
    assert ste.missing == (f"digits/xs int2: {why}",)
    assert found.overall[-1] is ste, "it stands below those that have all cells, whatever its mean"
    assert f"ste lacks digits/xs int2: {why}" in printed(found) and "not comparable" in printed(
        found
    )


def test_a_column_without_a_gap_is_left_out_for_everyone_and_said() -> None:
    level = [x + 0.0001 for x in FP]
    found = summary(task(FP, {**RTN, "int8": level}, ste={**STE, "int8": level}))
    assert found.cells == 2 and entry(found, "ste").missing == ()
    assert (
        "digits/xs int8: no gap to recover, full precision is not clearly above rounding"
        in found.notes
    )


def test_without_controls_there_is_no_overall_view() -> None:
    found = summary(make_runs("ste", "int4", STE["int4"]))
    assert found.overall == () and found.cells == 0
    assert found.notes == (
        "digits/xs has no gap to recover: its controls fp and rtn are not both there",
    )
    assert printed(found) and summary().sections == ()


def test_cells_of_a_task_without_a_common_seed_are_said() -> None:
    late = task(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})
    late = [{**r, "seed": r["seed"] + 40, "size": "s", "key": "s" + r["key"]} for r in late]
    found = summary(task(FP, {"int2": RTN["int2"]}, ste={"int2": STE["int2"]}), late)
    ste = entry(found, "ste")
    assert ste.gap is None and ste.cells == 0
    assert ste.missing == tuple(
        f"digits/{place}: no seed in common with its other cells" for place in ("xs int2", "s int4")
    )


@pytest.mark.parametrize(("seeds", "has_interval"), [(1, False), (3, True)])
def test_few_seeds_have_no_interquartile_mean_and_the_notes_say_why(
    seeds: int, has_interval: bool
) -> None:
    cut = [{f: x[:seeds] for f, x in cells.items()} for cells in (RTN, STE)]
    found = summary(task(FP[:seeds], cut[0], ste=cut[1]))
    ste = entry(found, "ste")
    assert ste.gap is not None and (ste.gap.low is not None) == has_interval
    assert ste.iqm is None and ste.profile is not None and ste.profile.low is None
    assert (
        f"no interquartile mean and no bands of profiles where there are fewer than 10 seeds: here {seeds}"
        in found.notes
    )


# ---- ten seeds ----

TEN = np.random.default_rng(0).normal(0, 0.01, (6, 10))
TEN -= TEN.mean(1, keepdims=True)


def many() -> BoardSummary:
    """Four columns whose gap is 1 and of which ste recovers .9, .7, .5 and −1."""
    formats = ("int2", "int3", "int4", "int8")
    rtn = {f: list(1.1 + TEN[1] + 0 * i) for i, f in enumerate(formats)}
    ste = {
        f: list(1.1 - g + TEN[2 + i])
        for i, (f, g) in enumerate(zip(formats, (0.9, 0.7, 0.5, -1.0), strict=True))
    }
    return summary(task(list(0.1 + TEN[0]), rtn, ste=ste))


def test_the_interquartile_mean_does_not_follow_one_bad_cell() -> None:
    ste = entry(many(), "ste")
    assert ste.gap is not None and ste.gap.value == pytest.approx(0.275, abs=0.02)
    assert ste.iqm is not None and ste.iqm.value == pytest.approx(0.6, abs=0.02)
    assert (
        ste.iqm.low is not None
        and ste.iqm.high is not None
        and 0.57 < ste.iqm.low < ste.iqm.value < ste.iqm.high < 0.63
    )
    assert many() == many(), "the same numbers give the same draws"


def test_the_profile_is_the_share_of_cells_that_reach_each_threshold() -> None:
    profile = entry(many(), "ste").profile
    assert profile is not None and profile.low is not None and profile.high is not None
    share = dict(zip(THRESHOLDS, profile.share, strict=True))
    assert (share[0.0], share[0.4], share[0.6], share[0.8], share[1.0]) == (
        0.75,
        0.75,
        0.5,
        0.25,
        0.0,
    )
    assert THRESHOLDS[0] == 0 and THRESHOLDS[-1] == 1 and len(THRESHOLDS) == 21
    assert all(
        low <= s <= high
        for low, s, high in zip(profile.low, profile.share, profile.high, strict=True)
    )
    edge = THRESHOLDS.index(0.5)
    assert profile.low[edge] < profile.high[edge] and profile.low[8] == profile.high[8] == 0.75, (
        "only the cell at .5 is in doubt there"
    )


# ---- the front ----


def points(found: BoardSummary) -> dict[tuple[str, str], TradeoffPoint]:
    return {(p.entrant, p.format): p for p in found.sections[0].points}


def test_the_front_is_of_score_bits_and_training_cost() -> None:
    rows = task(FP, RTN, ste=STE, lotion={f: [x + 0.02 for x in xs] for f, xs in STE.items()})
    rows = [{**r, "train_s": 2.0 if r["method"] == "lotion" else r["train_s"]} for r in rows]
    got = points(summary(rows))
    on = {place for place, p in got.items() if p.front}
    assert on == {("fp", "fp32"), ("ste", "int2"), ("ste", "int4")}, (
        "rtn costs as much as ste, lotion is worse and dearer"
    )
    assert (
        got["lotion", "int4"].cost == pytest.approx(2 / 1.5)
        and got["ste", "int4"].bits_per_weight == 4.25
    )


def test_the_front_knows_which_way_is_better() -> None:
    rows = task(
        [0.95] * 3, {"int4": [0.5] * 3}, ste={"int4": [0.9] * 3}, lotion={"int4": [0.7] * 3}
    )
    got = points(summary([{**r, "better": "higher"} for r in rows]))
    assert {place for place, p in got.items() if p.front} == {("fp", "fp32"), ("ste", "int4")}


def test_rounding_costs_the_training_of_what_it_rounds() -> None:
    assert points(summary(task(FP, RTN, ste=STE)))["rtn", "int4"].cost == 1.0


def test_a_cell_of_unknown_cost_is_not_on_the_front() -> None:
    rows = [
        {**r, "device_name": "gpu"} if r["method"] == "ste" else r for r in task(FP, RTN, ste=STE)
    ]
    got = points(summary(rows))
    assert (
        got["ste", "int4"].cost is None and not got["ste", "int4"].front and got["fp", "fp32"].front
    )
    spoilt = [
        {**r, "audit_passed": False} if r["method"] == "ste" else r for r in task(FP, RTN, ste=STE)
    ]
    assert ("ste", "int4") not in points(summary(spoilt)), "what may not be compared"


# ---- equal training time ----


def curves_of(
    rows: Rows, seconds: dict[str, float], shape: Sequence[float] = (0.4, 0.3, 0.2, 0.1)
) -> ValidationCurves:
    """Four evaluations, evenly over the given time, of the score's shape."""
    quarters = np.arange(1, 5) / 4
    return {
        (r["key"], 1): ValidationCurve(
            seconds[r["method"]] * quarters, quarters, np.array(shape) + r["seed"] / 100
        )
        for r in rows
        if r["method"] in seconds
    }


def timed(found: BoardSummary, entrant: str, fmt: str) -> TimedCell:
    (only,) = (
        c for c in found.sections[0].equal_time.cells if (c.entrant, c.format) == (entrant, fmt)
    )
    return only


def test_a_slow_method_is_seen_where_it_was_when_full_precision_was_done() -> None:
    """Full precision takes 1.5 s and ste 4 s: between the first evaluation, at 1 s, and the second, at 2 s."""
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    found = summary(rows, curves=curves_of(rows, {"fp": 1.5, "ste": 4.0}))
    assert found.sections[0].equal_time.seconds == {"cpu": 1.5}
    ste, fp, rtn = (
        timed(found, "ste", "int4"),
        timed(found, "fp", "fp32"),
        timed(found, "rtn", "int4"),
    )
    assert ste.at_time is not None and ste.at_steps is not None and fp.at_time is not None
    expected = intervals.mean_interval([0.35, 0.36, 0.37])
    assert (ste.at_time.value, ste.at_time.low) == pytest.approx((0.35 + 0.01, expected.low))
    assert (
        ste.at_steps.value == pytest.approx(0.11)
        and ste.progress == pytest.approx(0.375)
        and ste.note == ""
    )
    assert fp.at_time == fp.at_steps and fp.progress == 1.0
    assert (
        rtn.at_time is None
        and rtn.at_steps is None
        and rtn.note == "3 of 3 runs without a validation curve"
    )
    assert "– 3 of 3 runs without a validation curve: rtn int4" in printed(
        found
    ) and "38 %" in printed(found)


def test_a_fast_method_counts_with_its_last_evaluation() -> None:
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    ste = timed(summary(rows, curves=curves_of(rows, {"fp": 1.5, "ste": 1.0})), "ste", "int4")
    assert ste.at_time == ste.at_steps and ste.progress == 1.0


def test_a_run_that_was_not_evaluated_by_then_leaves_its_cell_open() -> None:
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    curves = dict(curves_of(rows, {"fp": 1.5, "ste": 1.5}))
    late = next(r["key"] for r in rows if r["method"] == "ste" and r["seed"] == 1)
    curves[late, 1] = curves[late, 1]._replace(seconds=curves[late, 1].seconds * 10)
    ste = timed(summary(rows, curves=curves), "ste", "int4")
    assert ste.at_time is None and ste.at_steps is not None
    assert ste.note == "1 of 3 runs not evaluated by then", (
        "the other two are no sample of the three"
    )


def test_time_is_of_the_same_device() -> None:
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    elsewhere = [{**r, "device_name": "gpu"} if r["method"] == "ste" else r for r in rows]
    ste = timed(summary(elsewhere, curves=curves_of(rows, {"fp": 1.5, "ste": 1.5})), "ste", "int4")
    assert (
        ste.at_time is None
        and ste.note == "no full precision on the device and in the company of 3 of 3 runs"
    )
    both = [*elsewhere, make_run("fp", None, 7, 0.1, device_name="gpu", train_s=0.8)]
    found = summary(both, curves=curves_of(rows, {"fp": 1.5, "ste": 1.5}))
    assert (
        found.sections[0].equal_time.seconds == {"cpu": 1.5, "gpu": 0.8}
        and timed(found, "ste", "int4").at_time is not None
    )


def test_time_is_of_runs_in_as_large_a_company() -> None:
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    curves = curves_of(rows, {"fp": 1.5, "ste": 1.5})
    beside = [{**r, "company": 6} if r["method"] == "ste" else r for r in rows]
    alone = summary(beside, curves=curves)
    assert (
        timed(alone, "ste", "int4").at_time is None
        and timed(alone, "fp", "fp32").at_time is not None
    )
    assert [p.cost for p in alone.sections[0].points if p.entrant == "ste"] == [None]
    both = summary([*beside, make_run("fp", None, 7, 0.1, company=6, train_s=0.8)], curves=curves)
    assert (
        both.sections[0].equal_time.seconds == {"cpu": 1.5, "cpu, 6 side by side": 0.8}
        and timed(both, "ste", "int4").at_time is not None
    )
    assert [p.cost is None for p in both.sections[0].points if p.entrant == "ste"] == [False]


def test_between_evaluations_time_is_linear_and_before_the_first_nothing_is_known() -> None:
    run = ValidationCurve(np.array([1.0, 2.0]), np.array([0.5, 1.0]), np.array([4.0, 2.0]))
    assert (
        interpolate_at(run, 1.25) == (3.5, 0.625) and interpolate_at(run, 9) == (2.0, 1.0) and interpolate_at(run, 0.5) == (None, 0.25)
    )


def test_the_curve_of_the_attempt_that_counts_is_read() -> None:
    rows = task(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})
    second = [{**r, "attempt": 2} for r in rows]
    curves = curves_of(rows, {"fp": 1.5, "ste": 1.5})
    assert (
        timed(summary(second, curves=curves), "ste", "int4").note
        == "3 of 3 runs without a validation curve"
    )
    again = {(key, 2): value for (key, _), value in curves.items()}
    assert timed(summary(second, curves=again), "ste", "int4").at_time is not None


# ---- from the store ----


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """fp, rtn and ste, three seeds, with curves that say a validation at every point."""
    cells = [make_run_config(method=m, fmt=None if m == "fp" else "int4") for m in ("fp", "rtn", "ste")]
    scores = {"fp": 0.1, "rtn": 0.5, "ste": 0.2}
    lines = [
        {"step": n, "progress": n / 4, "seconds": n / 4, "val": 0.5 / n if n % 2 == 0 else None}
        for n in range(1, 5)
    ]
    attempts = []
    for cell, seed in itertools.product(cells, range(3)):
        attempts.append(
            make_attempt(
                tmp_path,
                dataclasses.replace(cell, seed=seed),
                score=scores[cell.method] + seed / 1000,
            )
        )
        attempts[-1].curve.write_text(
            "".join(json.dumps(line) + "\n" for line in lines if cell.method != "rtn")
        )
    with Store(tmp_path) as store:
        assert not store.ingest_attempts(attempts)
        store.save_board(fake_board_members("b", [(cell, None) for cell in cells], 3))
        store.write_snapshot()
    return tmp_path


def test_a_summary_comes_out_of_a_results_folder(folder: Path) -> None:
    results = Results(folder)
    found = results.summary("b")
    assert [e.entrant for e in found.overall] == ["ste", "rtn"] and found.overall[0].gap is not None
    assert found.overall[0].gap.value == pytest.approx(0.75)
    (first, *_) = results.evaluations("b").values()
    assert first.seconds.tolist() == [0.5, 1.0] and first.value.tolist() == [0.25, 0.125]
    assert len(results.evaluations("b")) == 6 and timed(
        found, "ste", "int4"
    ).at_time == intervals.Estimate(0.125, 0.125, 0.125, 2)


def test_the_command_prints_a_summary_and_its_json(folder: Path) -> None:
    shown = CliRunner().invoke(cli, ["show", "b", "--summary", "--results", str(folder)])
    assert (
        shown.exit_code == 0
        and "Gap recovered over 1 cell" in shown.output
        and "75 %" in shown.output
    )
    data = CliRunner().invoke(cli, ["show", "--summary", "--json", "--results", str(folder)])
    assert json.loads(data.output) == json.loads(json.dumps(Results(folder).summary("b").to_json()))
    for words, says in ((["b", "--csv"], "not as csv"), (["nowhere"], "unknown board")):
        wrong = CliRunner().invoke(cli, ["show", *words, "--summary", "--results", str(folder)])
        assert says in str(wrong.exception)


def test_sections_of_one_title_are_told_apart() -> None:
    long = [{**r, "steps": 600, "key": "long" + r["key"]} for r in task(FP, RTN)]
    ste = entry(summary(task(FP, RTN, ste=STE), long), "ste")
    assert ste.missing == tuple(
        f"digits/xs (start scratch, 600 steps, batch 64) {f}: not asked for"
        for f in ("int2", "int4")
    )


def test_a_summary_is_json(folder: Path) -> None:
    data = json.loads(json.dumps(Results(folder).summary().to_json(), allow_nan=False))
    assert (
        data["summary_schema"] == 1
        and data["overall"][0]["entrant"] == "ste"
        and data["overall"][0]["iqm"] is None
    )
    assert [cell["entrant"] for cell in data["sections"][0]["equal_time"]["cells"]] == [
        "fp",
        "rtn",
        "ste",
    ]
    assert (
        data["thresholds"] == list(THRESHOLDS) and data["sections"][0]["points"][0]["front"] is True
    )
