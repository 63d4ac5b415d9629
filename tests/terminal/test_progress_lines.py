"""The lines of a progress display: their words, their widths and their numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qbench.sweeps.listener import SweepSummary
from qbench.terminal.progress_lines import (
    draw_bar,
    fit_title,
    format_clock,
    format_closing_line,
    format_loss,
    format_overall_line,
    format_rough_clock,
    format_run_line,
)
from qbench.terminal.progress_tally import SweepTally
from tests.terminal.printing import TITLE, join_words


@given(
    width=st.integers(12, 200),
    title=st.text(max_size=80),
    total=st.integers(0, 10**5),
    done=st.integers(0, 10**5),
    elapsed=st.floats(0, 1e6),
    loss=st.none() | st.floats(),
    share=st.floats(0, 1),
)
def test_no_line_is_wider_than_the_terminal(
    width: int, title: str, total: int, done: int, elapsed: float, loss: float | None, share: float
) -> None:
    done = min(done, total)
    tally = SweepTally(total, done // 2, 0.0, finished=done // 3, failed=done // 7, work=0.5)
    overall = join_words(format_overall_line(tally, elapsed, width))
    assert cell_len(overall) <= max(width, len(f"{tally.done}/{total}"))
    row = (fit_title(title, 60).rstrip(), format_loss(loss), format_clock(elapsed))
    line = join_words(format_run_line(row, share, (60, 11, 9), width))
    assert cell_len(line) <= max(width, 30), "below that the terminal cuts it"


@pytest.mark.parametrize(
    ("title", "width", "shown"),
    [
        (TITLE, 30, TITLE + "     "),
        (TITLE, 25, TITLE),
        (TITLE, 20, "ste int2 dig… seed 1"),
        (TITLE, 10, "ste int2… "),
        ("数字数字数字 seed 12", 17, "数字数字… seed 12"),
        ("endless" * 9, 10, "endlessen…"),
    ],
)
def test_a_title_that_is_too_long_keeps_its_seed(title: str, width: int, shown: str) -> None:
    assert fit_title(title, width) == shown
    assert cell_len(shown) == width


# ---- numbers ----


def test_a_loss_has_four_significant_digits() -> None:
    numbers = {2.302585: "2.303", 0.5: "0.5000", 12345.6: "1.235e+04", 1234.5: "1234"}
    numbers |= {1.23456e-5: "1.235e-05"}
    assert {x: format_loss(x) for x in numbers} == numbers
    assert [format_loss(x) for x in (float("nan"), None, "?")] == ["nan", "", ""]


def test_a_clock_is_rounded_down() -> None:
    clocks = {0: "0:00", 41.9: "0:41", 59.99: "0:59", 60: "1:00", 3900: "1:05:00"}
    assert {x: format_clock(x) for x in clocks} == clocks


def test_a_rough_clock_is_rounded_up_to_what_an_estimate_can_say() -> None:
    clocks = {
        0.2: "0:01",
        40: "0:40",
        61: "1:10",
        599: "10:00",
        601: "11:00",
        7201: "2:01:00",
    }
    assert {x: format_rough_clock(x) for x in clocks} == clocks


def test_a_bar_grows_by_half_columns() -> None:
    bars = {0: "────", 0.124: "────", 0.125: "╸───", 0.5: "━━──", 0.99: "━━━╸", 1: "━━━━"}
    assert {share: join_words(draw_bar(share, 4, "")) for share in bars} == bars


# ---- the closing line ----


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        (
            SweepSummary(
                ok=70, failed=2, skipped=3, failures=[("a", "oom", ""), ("b", "diverged", "")]
            ),
            "72 runs: 70 ok, 2 failed (1 diverged, 1 oom), 3 cells skipped; 0:41",
        ),
        (SweepSummary(ok=1), "1 run: 1 ok; 0:41"),
        (SweepSummary(skipped=1), "0 runs: 1 cell skipped; 0:41"),
        (SweepSummary(), "0 runs: nothing to do; 0:41"),
        (
            SweepSummary(ok=30, left=42, cached=12, interrupted=True),
            "72 runs (12 done before): 30 ok, 42 left; 0:41; "
            "interrupted; run the same command again to continue",
        ),
        (
            SweepSummary(
                failed=3, failures=[("a", "plugin", ""), ("b", "timeout", ""), ("c", "timeout", "")]
            ),
            "3 runs: 0 ok, 3 failed (2 timeout, 1 plugin); 0:41",
        ),
    ],
)
def test_the_closing_line_counts_outcomes_and_reasons(summary: SweepSummary, line: str) -> None:
    assert format_closing_line(summary, 41.3) == line
