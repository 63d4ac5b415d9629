"""Entrants at equal training time: where each run was when full precision had finished."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qbench.analysis.equal_time import (
    TimedCell,
    ValidationCurve,
    ValidationCurves,
    interpolate_at,
)
from qbench.analysis.summary import BoardSummary
from qbench.stats import intervals
from tests.analysis.summary_runs import (
    FP,
    RTN,
    STE,
    Rows,
    make_section,
    print_summary,
    summarise,
)
from tests.synthetic_runs import make_run


def make_rows() -> Rows:
    """Return three seeds of fp, which takes 1.5 s, rtn and ste."""
    return make_section(FP[:3], {"int4": RTN["int4"][:3]}, ste={"int4": STE["int4"][:3]})


def make_curves(
    rows: Rows, seconds: dict[str, float], scores: Sequence[float] = (0.4, 0.3, 0.2, 0.1)
) -> ValidationCurves:
    """Return curves of four evaluations each, evenly over the time that a method takes."""
    quarters = np.arange(1, 5) / 4
    return {
        (r["key"], 1): ValidationCurve(
            seconds[r["method"]] * quarters, quarters, np.array(scores) + r["seed"] / 100
        )
        for r in rows
        if r["method"] in seconds
    }


def find_cell(summary: BoardSummary, entrant: str, fmt: str) -> TimedCell:
    cells = summary.sections[0].equal_time.cells
    (cell,) = (c for c in cells if (c.entrant, c.format) == (entrant, fmt))
    return cell


def test_a_slow_method_is_shown_at_the_time_when_full_precision_finished() -> None:
    """ste takes 4 s, so 1.5 s is between its first evaluation, at 1 s, and its second, at 2 s."""
    rows = make_rows()
    summary = summarise(rows, curves=make_curves(rows, {"fp": 1.5, "ste": 4.0}))
    assert summary.sections[0].equal_time.seconds == {"cpu": 1.5}
    ste = find_cell(summary, "ste", "int4")
    expected = intervals.mean_interval([0.35, 0.36, 0.37])
    assert ste.at_time is not None and ste.at_steps is not None
    assert (ste.at_time.value, ste.at_time.low) == pytest.approx((0.36, expected.low))
    assert ste.at_steps.value == pytest.approx(0.11)
    assert ste.progress == pytest.approx(0.375) and ste.note == ""
    fp = find_cell(summary, "fp", "fp32")
    assert fp.at_time is not None and fp.at_time == fp.at_steps and fp.progress == 1.0
    assert "38 %" in print_summary(summary)


def test_runs_without_a_curve_are_named() -> None:
    rows = make_rows()
    summary = summarise(rows, curves=make_curves(rows, {"fp": 1.5, "ste": 4.0}))
    rtn = find_cell(summary, "rtn", "int4")
    assert rtn.at_time is None and rtn.at_steps is None
    assert rtn.note == "3 of 3 runs without a validation curve"
    assert "– 3 of 3 runs without a validation curve: rtn int4" in print_summary(summary)


def test_a_fast_method_counts_with_its_last_evaluation() -> None:
    rows = make_rows()
    summary = summarise(rows, curves=make_curves(rows, {"fp": 1.5, "ste": 1.0}))
    ste = find_cell(summary, "ste", "int4")
    assert ste.at_time is not None
    assert ste.at_time == ste.at_steps and ste.progress == 1.0


def test_a_cell_with_a_run_that_was_not_evaluated_in_time_has_no_score() -> None:
    rows = make_rows()
    curves = dict(make_curves(rows, {"fp": 1.5, "ste": 1.5}))
    late = next(r["key"] for r in rows if r["method"] == "ste" and r["seed"] == 1)
    curves[late, 1] = curves[late, 1]._replace(seconds=curves[late, 1].seconds * 10)
    ste = find_cell(summarise(rows, curves=curves), "ste", "int4")
    # The other two runs are no fair sample of the three.
    assert ste.at_time is None and ste.at_steps is not None
    assert ste.note == "1 of 3 runs not evaluated by then"


def test_times_are_compared_on_one_device() -> None:
    rows = make_rows()
    curves = make_curves(rows, {"fp": 1.5, "ste": 1.5})
    on_gpu = [{**r, "device_name": "gpu"} if r["method"] == "ste" else r for r in rows]
    ste = find_cell(summarise(on_gpu, curves=curves), "ste", "int4")
    assert ste.at_time is None
    assert ste.note == (
        "3 of 3 runs without a full-precision run on the same device with the same number of "
        "stacked runs"
    )
    fp_on_gpu = make_run("fp", None, 7, 0.1, device_name="gpu", train_s=0.8)
    summary = summarise([*on_gpu, fp_on_gpu], curves=curves)
    assert summary.sections[0].equal_time.seconds == {"cpu": 1.5, "gpu": 0.8}
    assert find_cell(summary, "ste", "int4").at_time is not None


def test_times_are_compared_between_equally_many_stacked_runs() -> None:
    rows = make_rows()
    curves = make_curves(rows, {"fp": 1.5, "ste": 1.5})
    stacked = [{**r, "company": 6} if r["method"] == "ste" else r for r in rows]
    summary = summarise(stacked, curves=curves)
    assert find_cell(summary, "ste", "int4").at_time is None
    assert find_cell(summary, "fp", "fp32").at_time is not None
    assert [p.cost for p in summary.sections[0].points if p.entrant == "ste"] == [None]
    stacked_fp = make_run("fp", None, 7, 0.1, company=6, train_s=0.8)
    summary = summarise([*stacked, stacked_fp], curves=curves)
    assert summary.sections[0].equal_time.seconds == {"cpu": 1.5, "cpu, 6 stacked runs": 0.8}
    assert find_cell(summary, "ste", "int4").at_time is not None
    assert [p.cost is None for p in summary.sections[0].points if p.entrant == "ste"] == [False]


def test_between_evaluations_time_is_linear_and_before_the_first_nothing_is_known() -> None:
    curve = ValidationCurve(np.array([1.0, 2.0]), np.array([0.5, 1.0]), np.array([4.0, 2.0]))
    assert interpolate_at(curve, 1.25) == (3.5, 0.625)
    assert interpolate_at(curve, 9) == (2.0, 1.0)
    assert interpolate_at(curve, 0.5) == (None, 0.25)


def test_the_curve_of_the_attempt_that_counts_is_used() -> None:
    rows = make_rows()
    second_attempts = [{**r, "attempt": 2} for r in rows]
    curves = make_curves(rows, {"fp": 1.5, "ste": 1.5})
    ste = find_cell(summarise(second_attempts, curves=curves), "ste", "int4")
    assert ste.note == "3 of 3 runs without a validation curve"
    curves = {(key, 2): curve for (key, _), curve in curves.items()}
    assert find_cell(summarise(second_attempts, curves=curves), "ste", "int4").at_time is not None
