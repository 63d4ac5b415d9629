"""The progress of a sweep as lines of text, for the live display and for log files."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from qbench.util.text import clean_line, format_count, format_duration

if TYPE_CHECKING:
    from qbench.sweeps.listener import SweepSummary
    from qbench.terminal.progress_tally import SweepTally


StyledLine = list[tuple[str, str]]
"""The parts of a line, each with its style."""

WIDE_TERMINAL = 60
"""The width from which lines are indented and written in full."""
MIN_BAR_WIDTH, MAX_BAR_WIDTH = 5, 30


# ---- plain lines ----


def format_closing_line(summary: SweepSummary, elapsed_s: float) -> str:
    """Return `72 runs: 70 ok, 2 failed (1 diverged, 1 oom), 3 cells skipped; 0:41`."""
    reasons = Counter(clean_line(reason) for _, reason, _ in summary.failures)
    most_frequent_first = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    why = ", ".join(f"{n} {reason}" for reason, n in most_frequent_first)
    runs = summary.ok + summary.failed + summary.left + summary.elsewhere
    parts = []
    if runs:
        parts.append(f"{summary.ok} ok")
    if summary.failed:
        parts.append(f"{summary.failed} failed" + (f" ({why})" if why else ""))
    if summary.left:
        parts.append(f"{summary.left} left")
    if summary.elsewhere:
        parts.append(f"{summary.elsewhere} of other shards")
    if summary.skipped:
        parts.append(f"{format_count(summary.skipped, 'cell')} skipped")
    before = f" ({summary.cached} done before)" if summary.cached else ""
    counts = ", ".join(parts) or "nothing to do"
    end = "; interrupted; run the same command again to continue" if summary.interrupted else ""
    return f"{format_count(runs, 'run')}{before}: {counts}; {format_clock(elapsed_s)}{end}"


def format_progress_line(tally: SweepTally, now: float) -> str:
    """Return `[ 36/72] 50 %  0 failed  elapsed 0:41  left about 0:40`."""
    done = f"{tally.done:>{len(str(tally.total)) + 1}}/{tally.total}"
    parts = [
        f"[{done}] {100 * tally.done // max(1, tally.total)} %",
        f"{tally.failed} failed",
        f"elapsed {format_clock(now - tally.began)}",
    ]
    if tally.draining:
        parts.append("finishing")
    if (left := _remaining_s(tally, now)) is not None:
        parts.append(f"left about {format_rough_clock(left)}")
    return "  ".join(parts)


def _remaining_s(tally: SweepTally, now: float) -> float | None:
    return None if tally.done == tally.total else tally.estimate_remaining_s(now)


# ---- lines of the live display ----


def format_overall_line(tally: SweepTally, now: float, width: int) -> StyledLine:
    """Return a bar and the numbers of the whole sweep; the least important are left out first."""
    about = ""
    if (left := _remaining_s(tally, now)) is not None:
        clock = format_rough_clock(left)
        about = f"about {clock} left" if width >= WIDE_TERMINAL else f"~{clock} left"
    # Each part has a priority, of which 0 is the most important.
    parts = [
        (0, f"{tally.done}/{tally.total}", "bold"),
        (4, f"{len(tally.running)} running", ""),
        (1, f"{tally.failed} failed" if tally.failed else "", "red"),
        (5, f"{tally.cached} done before" if tally.cached else "", "dim"),
        (2, format_clock(now - tally.began), ""),
        (3, "finishing" if tally.draining else "", "yellow"),
        (2, about, ""),
    ]
    parts = [part for part in parts if part[1]]
    # A short bar is more useful than the parts of priority 4 and 5, so those must leave room for
    # it. The others only need to fit without one: the first part then has no blanks before it.
    while len(parts) > 1:
        bar_width = MIN_BAR_WIDTH if max(parts)[0] > 2 else -2
        if _total_width(parts) + bar_width <= width:
            break
        parts.remove(max(parts))
    room = width - _total_width(parts)
    line: StyledLine = []
    if room >= MIN_BAR_WIDTH:
        share = tally.done / tally.total if tally.total else 1.0
        line += draw_bar(share, min(MAX_BAR_WIDTH, room), "green")
    for _, words, style in parts:
        if line:
            line.append(("  ", ""))
        line.append((words, style))
    return line


def _total_width(parts: list[tuple[int, str, str]]) -> int:
    """Return the width of the parts with two blanks before each."""
    return sum(len(words) + 2 for _, words, _ in parts)


def format_run_line(
    row: tuple[str, str, str], share: float, widths: tuple[int, ...], width: int
) -> StyledLine:
    """Return the title, bar, loss and time of a run, in columns of the given widths."""
    title, loss, elapsed = row
    indent, bar_width, gap = ("  ", 10, "  ") if width >= WIDE_TERMINAL else ("", 5, " ")
    # The title takes what the other columns leave.
    room = max(1, width - len(indent) - bar_width - sum(widths[1:]) - 3 * len(gap))
    return [
        (indent + fit_title(title, min(widths[0], room)) + gap, ""),
        *draw_bar(share, bar_width, "cyan"),
        (f"{gap}{loss:>{widths[1]}}", ""),
        (f"{gap}{elapsed:>{widths[2]}}", "dim"),
    ]


def draw_bar(share: float, width: int, style: str) -> StyledLine:
    """Return a bar that is thick for what is done and thin for the rest.

    The two differ without colour as well. Half a column is the smallest step.
    """
    halves = math.floor(2 * width * share)
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return [(full, style), ("─" * (width - len(full)), "dim")]


def fit_title(title: str, width: int) -> str:
    """Return a title that takes exactly this many columns of the terminal.

    A title that is too long loses its middle. Its last two words are kept if there is room for
    them, because they are the seed, which distinguishes the runs of one cell.
    """
    from rich.cells import cell_len, set_cell_size

    if cell_len(title) > width:
        seed = " " + " ".join(title.split(" ")[-2:])
        seed = seed if cell_len(seed) <= width // 2 else ""
        beginning = set_cell_size(title, max(0, width - cell_len(seed) - 1)).rstrip()
        title = f"{beginning}…{seed}"
    return set_cell_size(title, width)


# ---- numbers ----


def format_loss(x: Any) -> str:
    """Return a number with four significant digits, and an empty text for anything else."""
    return f"{x:#.4g}".rstrip(".") if isinstance(x, (int, float)) else ""


def format_clock(seconds: float) -> str:
    """Return `0:41` or `1:05:00`, rounded down as on a clock."""
    whole = max(0, math.floor(seconds))
    return f"0:{whole:02}" if whole < 60 else format_duration(whole)


def format_rough_clock(seconds: float) -> str:
    """Return a clock that is no more precise than an estimate can be, and changes less often."""
    step = 1 if seconds < 60 else 10 if seconds < 600 else 60
    return format_clock(step * math.ceil(seconds / step))
