"""Progress as lines of text."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from qbench.util.text import count, plain, seconds

if TYPE_CHECKING:
    from qbench.sweeps.listener import SweepSummary
    from qbench.terminal.progress_tally import Tally


Line = list[tuple[str, str]]
"""Parts of a line with their styles."""


# ---- in words ----


def closing(summary: SweepSummary, elapsed_s: float) -> str:
    """`72 runs: 70 ok, 2 failed (1 diverged, 1 oom), 3 cells skipped; 0:41`."""
    reasons = Counter(plain(reason) for _, reason, _ in summary.failures)
    why = ", ".join(
        f"{n} {reason}"
        for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    )
    runs = summary.ok + summary.failed + summary.left + summary.elsewhere
    parts = [
        f"{summary.ok} ok" if runs else "",
        f"{summary.failed} failed" + (f" ({why})" if why else "") if summary.failed else "",
        f"{summary.left} left" if summary.left else "",
        f"{summary.elsewhere} of other shards" if summary.elsewhere else "",
        f"{count(summary.skipped, 'cell')} skipped" if summary.skipped else "",
    ]
    before = f" ({summary.cached} done before)" if summary.cached else ""
    end = "; interrupted; the same command goes on" if summary.interrupted else ""
    return f"{count(runs, 'run')}{before}: {', '.join(filter(None, parts)) or 'nothing to do'}; {minutes(elapsed_s)}{end}"


def progress_line(tally: Tally, now: float) -> str:
    """`[ 36/72] 50 %  0 failed  elapsed 0:41  left about 0:40`."""
    done = f"[{tally.done:>{len(str(tally.total)) + 1}}/{tally.total}] {100 * tally.done // max(1, tally.total)} %"
    parts = [
        done,
        f"{tally.failed} failed",
        f"elapsed {minutes(now - tally.began)}",
        "finishing" if tally.draining else "",
    ]
    left = None if tally.done == tally.total else tally.left_s(now)
    return "  ".join(filter(None, [*parts, "" if left is None else f"left about {roughly(left)}"]))


def overall_line(tally: Tally, now: float, width: int) -> Line:
    """What does not fit goes, the least important first."""
    left = None if tally.done == tally.total else tally.left_s(now)
    about = (
        ""
        if left is None
        else f"about {roughly(left)} left"
        if width >= 60
        else f"~{roughly(left)} left"
    )
    parts = [
        (0, f"{tally.done}/{tally.total}", "bold"),
        (4, f"{len(tally.running)} running", ""),
        (1, f"{tally.failed} failed" if tally.failed else "", "red"),
        (5, f"{tally.cached} done before" if tally.cached else "", "dim"),
        (2, minutes(now - tally.began), ""),
        (3, "finishing" if tally.draining else "", "yellow"),
        (2, about, ""),
    ]
    parts = [part for part in parts if part[1]]
    # A short bar is worth more than how many run, and less than how long it takes.
    while (
        len(parts) > 1
        and sum(len(part[1]) + 2 for part in parts) + (5 if max(parts)[0] > 2 else -2) > width
    ):
        parts.remove(max(parts))
    room = width - sum(len(part[1]) + 2 for part in parts)
    drawn = (
        bar(tally.done / tally.total if tally.total else 1.0, min(30, room), "green")
        if room >= 5
        else []
    )
    return [
        *drawn,
        *(piece for _, words, style in parts for piece in (("  ", ""), (words, style))),
    ][0 if drawn else 1 :]


def run_line(row: tuple[str, str, str], share: float, widths: tuple[int, ...], width: int) -> Line:
    (title, loss, elapsed), roomy = row, width >= 60
    indent, drawn, gap = ("  ", 10, "  ") if roomy else ("", 5, " ")
    room = max(1, width - len(indent) - drawn - sum(widths[1:]) - 3 * len(gap))
    named = indent + fit(title, min(widths[0], room)) + gap
    return [
        (named, ""),
        *bar(share, drawn, "cyan"),
        (f"{gap}{loss:>{widths[1]}}", ""),
        (f"{gap}{elapsed:>{widths[2]}}", "dim"),
    ]


def bar(share: float, width: int, style: str) -> Line:
    """Thick for what is done, thin for the rest: no colour is needed to tell them apart."""
    halves = math.floor(2 * width * share)
    full = "━" * (halves // 2) + "╸" * (halves % 2)
    return [(full, style), ("─" * (width - len(full)), "dim")]


def fit(title: str, width: int) -> str:
    """In so many columns. What is too long loses its middle: its last two words are the seed, which tells runs apart."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(title) > width:
        seed = " " + " ".join(title.split(" ")[-2:])
        seed = seed if cell_len(seed) <= width // 2 else ""
        title = set_cell_size(title, max(0, width - cell_len(seed) - 1)).rstrip() + "…" + seed
    return set_cell_size(title, width)


def significant(x: Any) -> str:
    """Four digits; nothing for what is no number."""
    return f"{x:#.4g}".rstrip(".") if isinstance(x, (int, float)) else ""


def minutes(x: float) -> str:
    """`0:41`, `1:05:00`."""
    whole = max(0, math.floor(x))
    return f"0:{whole:02}" if whole < 60 else seconds(whole)


def roughly(x: float) -> str:
    """No more precise than a guess can be, and calmer to look at."""
    step = 1 if x < 60 else 10 if x < 600 else 60
    return minutes(step * math.ceil(x / step))
