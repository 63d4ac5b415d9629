"""The summary of a board agrees with numbers computed by hand, and says what is missing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from qbench.analysis.entrant_summary import THRESHOLDS, EntrantSummary
from qbench.analysis.results import Results
from qbench.analysis.summary import BoardSummary
from qbench.analysis.tradeoffs import TradeoffPoint
from qbench.boards.build import build_board
from qbench.cli.options import cli
from qbench.stats import intervals
from qbench.store.database import Store
from tests.analysis.summary_runs import (
    FP,
    RTN,
    STE,
    Rows,
    make_section,
    print_summary,
    summarise,
)
from tests.run_folders import fake_board_members, make_attempt, make_run_config
from tests.synthetic_runs import (
    DEFAULTS,
    make_failed_run,
    make_frame,
    make_planned_run,
    make_run,
    make_runs,
)


def find_entrant(summary: BoardSummary, entrant: str) -> EntrantSummary:
    (entry,) = (e for e in summary.overall if e.entrant == entrant)
    return entry


# ---- the mean over cells ----


def test_the_mean_over_cells_is_of_the_gaps_that_the_board_shows() -> None:
    summary = summarise(make_section(FP, RTN, ste=STE))
    ste = find_entrant(summary, "ste")
    gaps = [
        (np.mean(RTN[f]) - np.mean(STE[f])) / (np.mean(RTN[f]) - np.mean(FP))
        for f in ("int2", "int4")
    ]
    assert ste.gap is not None and ste.gap.value == pytest.approx(np.mean(gaps))
    assert (ste.cells, summary.cells, ste.seeds, ste.missing) == (2, 2, 4, ())
    rtn = find_entrant(summary, "rtn")
    assert rtn.gap == intervals.Estimate(0, 0, 0, 3) and rtn.control
    # Full precision is not listed: it recovers everything by definition.
    assert [e.entrant for e in summary.overall] == ["ste", "rtn"]


def test_the_interval_of_one_cell_is_the_one_that_its_board_shows() -> None:
    rows = make_section(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})
    (section,) = build_board(make_frame(rows), defaults=DEFAULTS).sections
    (row,) = (row for row in section.rows if row.entrant == "ste")
    shown = row.cells[0].gap
    assert shown is not None and shown.low is not None
    assert find_entrant(summarise(rows), "ste").gap == shown


def test_cells_of_a_task_are_averaged_within_a_seed_and_tasks_are_independent() -> None:
    """One task of two columns has a t interval of the means by seed.

    Two tasks of one column each are combined by the Welch–Satterthwaite formula.
    """
    together = find_entrant(summarise(make_section(FP, RTN, ste=STE)), "ste")
    gain, gap = (
        np.array([[r - x for r, x in zip(RTN[f], other[f], strict=True)] for f in ("int4", "int2")])
        for other in (STE, dict.fromkeys(RTN, FP))
    )
    expected = intervals.mean_interval(intervals.linearise_ratio(gain, gap).mean(0))
    assert together.gap is not None
    assert (together.gap.low, together.gap.df) == pytest.approx((expected.low, 3))

    digits = make_section(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})
    grammar = make_section(FP, {"int4": RTN["int2"]}, "grammar", ste={"int4": STE["int2"]})
    apart = find_entrant(summarise(digits, grammar), "ste")
    assert apart.gap is not None and apart.gap.df is not None
    assert 3 <= apart.gap.df <= 6 and apart.cells == 2


def test_a_task_weighs_as_much_as_its_cells() -> None:
    digits = make_section(FP, RTN, ste=STE)
    grammar = make_section(FP, {"int4": RTN["int4"]}, "grammar", ste={"int4": FP})
    both = find_entrant(summarise(digits, grammar), "ste").gap
    alone = find_entrant(summarise(digits), "ste").gap
    assert both is not None and alone is not None
    # One cell of three recovers the whole gap.
    assert both.value == pytest.approx((2 * alone.value + 1) / 3)


# ---- what is missing ----


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "not part of the sweep"),
        (
            [
                *make_runs("ste", "int2", STE["int2"][:3]),
                make_failed_run("ste", "int2", 3),
            ],
            "1 of 4 diverged",
        ),
        (
            [make_planned_run("ste", "int2", s, "skipped", "no rule") for s in range(4)],
            "4 of 4 skipped",
        ),
        (
            [*make_runs("ste", "int2", STE["int2"][:3]), make_run("ste", "int2", 3, math.nan)],
            "1 of 4 diverged",
        ),
        (
            make_runs("ste", "int2", STE["int2"], audit_passed=False),
            "the audit of 4 of 4 runs failed",
        ),
        (
            [make_run("ste", "int2", s + 50, x) for s, x in enumerate(STE["int2"])],
            "no seed in common with the controls",
        ),
    ],
    ids=["absent", "diverged", "skipped", "nan", "audit", "seeds"],
)
def test_a_missing_cell_is_named_and_not_imputed(rows: Rows, reason: str) -> None:
    lotion = {f: [x + 0.001 for x in scores] for f, scores in STE.items()}
    summary = summarise(make_section(FP, RTN, ste={"int4": STE["int4"]}, lotion=lotion), rows)
    only_int4 = make_section(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})
    ste, alone = find_entrant(summary, "ste"), find_entrant(summarise(only_int4), "ste")
    assert (ste.gap, ste.cells, summary.cells) == (alone.gap, 1, 2)
    assert ste.missing == (f"digits/xs int2: {reason}",)
    assert summary.overall[-1] is ste, "listed after those with all cells, whatever its mean"
    printed = print_summary(summary)
    assert f"ste lacks digits/xs int2: {reason}" in printed and "not comparable" in printed


def test_a_column_without_a_gap_is_left_out_for_everyone_with_a_note() -> None:
    same = [x + 0.0001 for x in FP]
    summary = summarise(make_section(FP, {**RTN, "int8": same}, ste={**STE, "int8": same}))
    assert summary.cells == 2 and find_entrant(summary, "ste").missing == ()
    assert (
        "digits/xs int8: no gap to recover, because full precision is not clearly better than "
        "rounding"
    ) in summary.notes


def test_without_controls_there_is_no_overall_view() -> None:
    summary = summarise(make_runs("ste", "int4", STE["int4"]))
    assert summary.overall == () and summary.cells == 0
    assert summary.notes == (
        "digits/xs has no gap to recover: one of its controls fp and rtn is missing",
    )
    assert print_summary(summary) and summarise().sections == ()


def test_cells_of_a_task_without_a_common_seed_are_named() -> None:
    late = make_section(FP, {"int4": RTN["int4"]}, ste={"int4": STE["int4"]})
    late = [{**r, "seed": r["seed"] + 40, "size": "s", "key": "s" + r["key"]} for r in late]
    early = make_section(FP, {"int2": RTN["int2"]}, ste={"int2": STE["int2"]})
    ste = find_entrant(summarise(early, late), "ste")
    assert ste.gap is None and ste.cells == 0
    assert ste.missing == tuple(
        f"digits/{cell}: no seed in common with its other cells" for cell in ("xs int2", "s int4")
    )


def test_sections_of_one_title_are_distinguished_by_their_setting() -> None:
    long = [{**r, "steps": 600, "key": "long" + r["key"]} for r in make_section(FP, RTN)]
    ste = find_entrant(summarise(make_section(FP, RTN, ste=STE), long), "ste")
    assert ste.missing == tuple(
        f"digits/xs (start scratch, 600 steps, batch 64) {f}: not part of the sweep"
        for f in ("int2", "int4")
    )


@pytest.mark.parametrize(("seeds", "has_interval"), [(1, False), (3, True)])
def test_few_seeds_have_no_interquartile_mean_and_a_note_says_why(
    seeds: int, has_interval: bool
) -> None:
    rtn, ste_scores = ({f: x[:seeds] for f, x in cells.items()} for cells in (RTN, STE))
    summary = summarise(make_section(FP[:seeds], rtn, ste=ste_scores))
    ste = find_entrant(summary, "ste")
    assert ste.gap is not None and (ste.gap.low is not None) == has_interval
    assert ste.iqm is None and ste.profile is not None and ste.profile.low is None
    assert (
        "no interquartile mean and no confidence band of the profile for entrants with fewer than "
        f"10 seeds (the smallest number here is {seeds})"
    ) in summary.notes


# ---- ten seeds ----

NOISE = np.random.default_rng(0).normal(0, 0.01, (6, 10))
NOISE -= NOISE.mean(1, keepdims=True)


def summarise_ten_seeds() -> BoardSummary:
    """Return a summary of four columns whose gap is 1, of which ste recovers .9, .7, .5 and −1."""
    formats = ("int2", "int3", "int4", "int8")
    rtn = {f: list(1.1 + NOISE[1]) for f in formats}
    recovered = dict(zip(formats, (0.9, 0.7, 0.5, -1.0), strict=True))
    ste = {f: list(1.1 - gap + NOISE[2 + i]) for i, (f, gap) in enumerate(recovered.items())}
    return summarise(make_section(list(0.1 + NOISE[0]), rtn, ste=ste))


def test_the_interquartile_mean_does_not_follow_one_bad_cell() -> None:
    ste = find_entrant(summarise_ten_seeds(), "ste")
    assert ste.gap is not None and ste.gap.value == pytest.approx(0.275, abs=0.02)
    assert ste.iqm is not None and ste.iqm.value == pytest.approx(0.6, abs=0.02)
    assert ste.iqm.low is not None and ste.iqm.high is not None
    assert 0.57 < ste.iqm.low < ste.iqm.value < ste.iqm.high < 0.63


def test_the_same_numbers_give_the_same_bootstrap() -> None:
    assert summarise_ten_seeds() == summarise_ten_seeds()


def test_the_profile_is_the_share_of_cells_that_reach_each_threshold() -> None:
    assert THRESHOLDS[0] == 0 and THRESHOLDS[-1] == 1 and len(THRESHOLDS) == 21
    profile = find_entrant(summarise_ten_seeds(), "ste").profile
    assert profile is not None and profile.low is not None and profile.high is not None
    share = dict(zip(THRESHOLDS, profile.share, strict=True))
    expected = {0.0: 0.75, 0.4: 0.75, 0.6: 0.5, 0.8: 0.25, 1.0: 0.0}
    assert {threshold: share[threshold] for threshold in expected} == expected
    for low, middle, high in zip(profile.low, profile.share, profile.high, strict=True):
        assert low <= middle <= high
    # Only the cell at .5 is uncertain near that threshold; at .4 there is no doubt.
    edge = THRESHOLDS.index(0.5)
    assert profile.low[edge] < profile.high[edge]
    assert profile.low[8] == profile.high[8] == 0.75


# ---- the Pareto front ----


def list_points(summary: BoardSummary) -> dict[tuple[str, str], TradeoffPoint]:
    return {(p.entrant, p.format): p for p in summary.sections[0].points}


def test_the_front_is_of_score_bits_and_training_cost() -> None:
    lotion = {f: [x + 0.02 for x in scores] for f, scores in STE.items()}
    rows = make_section(FP, RTN, ste=STE, lotion=lotion)
    rows = [{**r, "train_s": 2.0 if r["method"] == "lotion" else r["train_s"]} for r in rows]
    points = list_points(summarise(rows))
    # rtn costs as much as ste, and lotion is worse and costs more.
    front = {cell for cell, point in points.items() if point.front}
    assert front == {("fp", "fp32"), ("ste", "int2"), ("ste", "int4")}
    assert points["lotion", "int4"].cost == pytest.approx(2 / 1.5)
    assert points["ste", "int4"].bits_per_weight == 4.25


def test_the_front_knows_which_direction_is_better() -> None:
    rows = make_section(
        [0.95] * 3, {"int4": [0.5] * 3}, ste={"int4": [0.9] * 3}, lotion={"int4": [0.7] * 3}
    )
    points = list_points(summarise([{**r, "better": "higher"} for r in rows]))
    front = {cell for cell, point in points.items() if point.front}
    assert front == {("fp", "fp32"), ("ste", "int4")}


def test_rounding_costs_the_training_of_the_network_that_it_rounds() -> None:
    points = list_points(summarise(make_section(FP, RTN, ste=STE)))
    assert points["rtn", "int4"].cost == 1.0


def test_a_cell_of_unknown_cost_is_not_on_the_front() -> None:
    section = make_section(FP, RTN, ste=STE)
    on_gpu = [{**r, "device_name": "gpu"} if r["method"] == "ste" else r for r in section]
    points = list_points(summarise(on_gpu))
    assert points["ste", "int4"].cost is None and not points["ste", "int4"].front
    assert points["fp", "fp32"].front


def test_a_cell_with_a_failed_audit_is_not_compared() -> None:
    section = make_section(FP, RTN, ste=STE)
    failed = [{**r, "audit_passed": False} if r["method"] == "ste" else r for r in section]
    assert ("ste", "int4") not in list_points(summarise(failed))


# ---- from a results folder ----


@pytest.fixture
def results_folder(tmp_path: Path) -> Path:
    """Return a folder with three seeds of fp, rtn and ste; fp and ste have validation curves."""
    scores = {"fp": 0.1, "rtn": 0.5, "ste": 0.2}
    cells = [make_run_config(method=m, fmt=None if m == "fp" else "int4") for m in scores]
    points = [
        {"step": n, "progress": n / 4, "seconds": n / 4, "val": 0.5 / n if n % 2 == 0 else None}
        for n in range(1, 5)
    ]
    curve = "".join(json.dumps(point) + "\n" for point in points)
    attempts = []
    for cell, seed in itertools.product(cells, range(3)):
        config = dataclasses.replace(cell, seed=seed)
        attempt = make_attempt(tmp_path, config, score=scores[cell.method] + seed / 1000)
        attempt.curve.write_text(curve if cell.method != "rtn" else "")
        attempts.append(attempt)
    with Store(tmp_path) as store:
        assert not store.ingest_attempts(attempts)
        store.save_board(fake_board_members("b", [(cell, None) for cell in cells], 3))
        store.write_snapshot()
    return tmp_path


def test_a_summary_is_read_from_a_results_folder(results_folder: Path) -> None:
    results = Results(results_folder)
    summary = results.summary("b")
    assert [e.entrant for e in summary.overall] == ["ste", "rtn"]
    assert summary.overall[0].gap is not None
    assert summary.overall[0].gap.value == pytest.approx(0.75)
    curves = results.validation_curves("b")
    first = next(iter(curves.values()))
    assert first.seconds.tolist() == [0.5, 1.0] and first.value.tolist() == [0.25, 0.125]
    assert len(curves) == 6
    (ste,) = (c for c in summary.sections[0].equal_time.cells if c.entrant == "ste")
    assert ste.at_time == intervals.Estimate(0.125, 0.125, 0.125, 2)


def test_the_command_prints_a_summary_and_its_json(results_folder: Path) -> None:
    folder = ["--results", str(results_folder)]
    shown = CliRunner().invoke(cli, ["show", "b", "--summary", *folder])
    assert shown.exit_code == 0
    assert "Gap recovered over 1 cell" in shown.output and "75 %" in shown.output
    data = CliRunner().invoke(cli, ["show", "--summary", "--json", *folder])
    summary = Results(results_folder).summary("b")
    assert json.loads(data.output) == json.loads(json.dumps(summary.to_json()))
    for words, message in ((["b", "--csv"], "not as csv"), (["nowhere"], "unknown board")):
        wrong = CliRunner().invoke(cli, ["show", *words, "--summary", *folder])
        assert message in str(wrong.exception)


def test_a_summary_is_json(results_folder: Path) -> None:
    summary = Results(results_folder).summary()
    data = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert data["summary_schema"] == 1 and data["thresholds"] == list(THRESHOLDS)
    assert data["overall"][0]["entrant"] == "ste" and data["overall"][0]["iqm"] is None
    (section,) = data["sections"]
    assert [c["entrant"] for c in section["equal_time"]["cells"]] == ["fp", "rtn", "ste"]
    assert section["points"][0]["front"] is True
