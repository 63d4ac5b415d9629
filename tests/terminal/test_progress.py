"""TODO."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from qbench.sweeps.listener import Listener, SweepSummary
from qbench.terminal.progress import LiveDisplay, ProgressReporter, TolerantStream
from qbench.terminal.progress_lines import (
    StyledLine,
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

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
RUN = "ste int2 digits/xs seed 1"


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def tally(total: int = 10, cached: int = 0) -> SweepTally:
    return SweepTally(total, cached, 0.0)


def step(to: SweepTally, title: str, share: float, now: float) -> None:
    to.take("step", title, {"step": share * 1000, "steps": 1000, "loss": 1.0}, now)


def run(to: SweepTally, title: str, began: float, ended: float, kind: str = "finished") -> None:
    to.take("started", title, {}, began)
    to.take(kind, title, {}, ended)


# ---- the time left ----


def test_no_guess_before_a_run_is_over_or_five_seconds_have_passed() -> None:
    t = tally()
    assert t.left_s(0.0) is None and t.left_s(100.0) is None, (
        "nothing is known of a sweep that has not done anything"
    )
    t.take("started", "a", {}, 0.0)
    step(t, "a", 0.01, 1.0)
    step(t, "a", 0.25, 4.0)
    assert t.left_s(4.9) is None
    assert t.left_s(5.0) == pytest.approx(9.75 * 5.0 / 0.25)
    early = tally()
    run(early, "a", 0.0, 0.5)
    assert early.left_s(0.5) == pytest.approx(9 * 0.5)


def test_the_rate_counts_what_was_done_now_and_not_before() -> None:
    t = tally(total=110, cached=100)
    run(t, "a", 0.0, 20.0)
    run(t, "b", 0.0, 20.0)
    assert t.done == 102
    assert t.left_s(20.0) == pytest.approx(8 * 20 / 2)
    assert t.left_s(30.0) == pytest.approx(8 * 30 / 2)


def test_running_runs_count_with_their_share() -> None:
    t = tally(total=4)
    run(t, "a", 0.0, 10.0)
    for title in "bc":
        t.take("started", title, {}, 10.0)
    step(t, "b", 0.01, 10.1)
    step(t, "b", 0.5, 14.9)
    assert t.left_s(15.0) == pytest.approx((4 - 1.5) * 15 / 1.5)


def test_a_slow_run_at_the_end_is_not_averaged_away() -> None:
    t = tally(total=101)
    for i in range(100):
        run(t, str(i), 0.0, 10.0)
    t.take("started", "slow", {}, 0.0)
    step(t, "slow", 0.05, 2.0)
    step(t, "slow", 0.10, 12.0)
    assert t.left_s(12.0) == pytest.approx(0.9 * 10 / 0.05), (
        "by its own speed since its first report"
    )
    assert t.left_s(20.0) == pytest.approx(0.9 * 10 / 0.05 - 8), (
        "and the clock runs on between reports"
    )
    assert t.left_s(1000.0) == pytest.approx(0.9 * 1000 / 100.1)


def test_a_resumed_run_brings_no_work_of_another_day() -> None:
    t = tally(total=10)
    t.take("started", "a", {}, 0.0)
    step(t, "a", 0.9, 1.0)
    assert t.left_s(6.0) is None
    step(t, "a", 0.95, 6.0)
    assert t.left_s(6.0) == pytest.approx((10 - 0.95) * 6 / 0.05)
    t.take("finished", "a", {}, 10.0)
    assert t.left_s(10.0) == pytest.approx(9 * 10 / 0.1)


def test_runs_that_fall_over_at_once_do_not_make_the_sweep_look_fast() -> None:
    t = tally(total=100)
    run(t, "good", 0.0, 10.0)
    before = t.left_s(10.0)
    for i in range(9):
        run(t, f"bad {i}", 10.0, 10.0, "failed")
    t.take("failed", "never started", {}, 10.0)
    assert (t.finished, t.failed, t.done) == (1, 10, 11)
    assert before == pytest.approx(99 * 10) and t.left_s(10.0) == pytest.approx(89 * 10)
    t.take("started", "halfway", {}, 10.0)
    step(t, "halfway", 0.01, 10.1)
    step(t, "halfway", 0.5, 15.0)
    t.take("failed", "halfway", {}, 15.0)
    assert t.left_s(15.0) == pytest.approx(88 * 15 / 1.5)


@pytest.mark.parametrize("kind", ["retry", "lost"])
def test_a_run_that_is_not_over_is_neither_done_nor_running(kind: str) -> None:
    t = tally()
    run(t, "a", 0.0, 4.0, kind)
    assert not t.running and t.done == 0
    step(t, "a", 0.5, 5.0)
    assert t.left_s(9.0) is None, "a late report of a worker that is gone counts for nothing"


def test_while_draining_only_what_runs_is_waited_for() -> None:
    t = tally(total=1000)
    run(t, "a", 0.0, 10.0)
    t.take("started", "b", {}, 10.0)
    t.take("draining", "", {"running": 1}, 10.0)
    assert t.left_s(10.0) is None
    step(t, "b", 0.1, 11.0)
    step(t, "b", 0.5, 15.0)
    assert t.left_s(15.0) == pytest.approx(5.0)


def guesses(lengths: list[float], workers: int) -> list[tuple[float | None, float, float]]:
    """At the end of each run: the guess, the time that was really left, and what the slowest running run still took."""
    t, now, busy, queue, found = (
        tally(total=len(lengths)),
        0.0,
        dict[str, tuple[float, float]](),
        list(enumerate(lengths)),
        [],
    )
    while queue or busy:
        while queue and len(busy) < workers:
            run, length = queue.pop(0)
            busy[f"{run}"] = (now, length)
            t.take("started", f"{run}", {}, now)
            step(t, f"{run}", 0.0, now)
        now = min(sum(times) for times in busy.values())
        for title, (began, length) in list(busy.items()):
            step(t, title, (now - began) / length, now)
            if began + length <= now:
                del busy[title]
                t.take("finished", title, {}, now)
        found.append(
            (
                now,
                t.left_s(now),
                max((began + length - now for began, length in busy.values()), default=0.0),
            )
        )
    return [(guess, now - at, longest) for at, guess, longest in found]


def test_the_guess_is_right_for_runs_that_are_alike() -> None:
    for guess, truth, _ in guesses([10.0] * 24, workers=4):
        assert guess == pytest.approx(truth)


def test_the_guess_is_near_for_runs_that_differ_a_hundredfold() -> None:
    """Between a quarter and three quarters of 200 runs in a random order: not far off in any sweep, and right on average."""
    ratios = []
    for seed in range(8):
        drawn = random.Random(seed)
        found = guesses([10.0 * 100 ** drawn.random() for _ in range(200)], workers=4)
        assert all(guess is not None and guess >= longest - 1e-6 for guess, _, longest in found)
        ratios += [guess / truth for guess, truth, _ in found[50:150] if guess is not None]
    assert min(ratios) > 0.5 and max(ratios) < 1.5
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.05)


# ---- plain lines ----


def plainly(board: str = "quick") -> tuple[ProgressReporter, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return ProgressReporter("plain", out, board=board, clock=clock), out, clock


def test_plain_lines_word_for_word() -> None:
    progress, out, clock = plainly()
    progress.start(4, 1)
    for i in range(3):
        progress.event("started", f"run {i}", key="k", attempt=1)
    clock.now += 9.9
    progress.event("step", "run 0", step=1, steps=100, loss=2.0)
    assert out.getvalue() == "quick: 4 runs, 1 done before\n"
    clock.now += 10.1
    progress.event("step", "run 0", step=50, steps=100, loss=1.0)
    clock.now += 5
    progress.event("finished", "run 0", reason=None, message=None)
    progress.event("retry", "run 1", reason="lost", message="the worker was killed by SIGKILL")
    progress.event("failed", "run 1", reason="oom", message="no room")
    clock.now += 4
    progress.event("finished", "run 2", reason=None, message=None)
    progress.stop(SweepSummary(ok=3, failed=1, cached=1, failures=[("run 1", "oom", "no room")]))
    assert out.getvalue().splitlines() == [
        "quick: 4 runs, 1 done before",
        "[ 1/4] 25 %  0 failed  elapsed 0:20  left about 1:40",
        "retry   run 1: lost: the worker was killed by SIGKILL",
        "failed  run 1: oom: no room",
        "[ 4/4] 100 %  1 failed  elapsed 0:29",
        "4 runs (1 done before): 3 ok, 1 failed (1 oom); 0:29",
    ]


def test_plain_lines_come_every_ten_seconds_however_many_steps() -> None:
    progress, out, clock = plainly("")
    progress.start(2, 0)
    progress.event("started", "a")
    for _ in range(3500):
        clock.now += 0.01
        progress.event("step", "a", step=1, steps=100, loss=1.0)
    assert [line.split("  ")[2] for line in out.getvalue().splitlines()[1:]] == [
        "elapsed 0:10",
        "elapsed 0:20",
        "elapsed 0:30",
    ]
    assert out.getvalue().startswith("2 runs, 0 done before\n")


def test_nothing_to_do_is_two_lines() -> None:
    progress, out, _ = plainly()
    progress.start(4, 4)
    progress.event("draining", "", running=0)
    progress.stop(SweepSummary(ok=4, cached=4))
    assert out.getvalue() == "quick: 4 runs, 4 done before\n4 runs (4 done before): 4 ok; 0:00\n"


def test_draining_says_what_is_waited_for() -> None:
    progress, out, clock = plainly()
    progress.start(9, 0)
    progress.event("started", "a")
    progress.event("started", "b")
    progress.event("draining", "", running=2)
    clock.now += 11
    progress.event("step", "a", step=1, steps=9, loss=1.0)
    progress.event("lost", "a", reason="interrupted")
    assert out.getvalue().splitlines()[1:] == [
        "finishing the 2 running runs; Ctrl-C again stops now",
        "[ 0/9] 0 %  0 failed  elapsed 0:11  finishing",
    ]
    progress, out, _ = plainly()
    progress.start(9, 0)
    progress.event("draining", "", running=0)
    assert len(out.getvalue().splitlines()) == 1, (
        "with nothing running there is nothing to wait for"
    )


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_text_of_others_carries_no_codes_and_no_markup(mode: Any) -> None:
    out = io.StringIO()
    progress = ProgressReporter(mode, out, board="b\x1b[2J")
    progress.start(2, 0)
    progress.event("started", "evil\x1b[2J\x1b]0;title\x07 [red]x[/red] :boom:")
    if isinstance(progress.display, LiveDisplay):
        progress.display.region.refresh()
    progress.event(
        "failed",
        "evil\x1b[2J\x1b]0;title\x07 [red]x[/red] :boom:",
        reason="data\r",
        message="one\ntwo\x07 [bold]\x9b2J",
    )
    progress.stop(SweepSummary(failed=1, left=1, failures=[("evil", "da\x1b[2Jta", "")]))
    got = out.getvalue()
    assert "evil [red]x[/red] :boom:: data: one two [bold]" in re.sub(r"\x1b\[[0-9;]*m", "", got)
    assert "[2J" not in got and "]0;" not in got and "\x07" not in got and "\x9b" not in got
    if mode == "plain":
        assert all(c.isprintable() or c == "\n" for c in got)


# ---- the choice of a display ----


@pytest.mark.parametrize(
    ("stream", "term", "live"), [(Terminal, "xterm", True), (Terminal, "dumb", False), (io.StringIO, "xterm", False)]
)  # fmt: skip
def test_auto_is_live_on_a_terminal_only(
    stream: type[io.StringIO], term: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    out = stream()
    progress = ProgressReporter("auto", out)
    progress.start(1, 0)
    progress.event("started", RUN)
    progress.event("finished", RUN, reason=None, message=None)
    progress.stop(SweepSummary(ok=1))
    assert (HIDE in out.getvalue()) is live and ("\x1b" in out.getvalue()) is live
    assert ("1 run, 0 done before" in out.getvalue()) is not live
    assert "1 run: 1 ok; 0:00" in out.getvalue()


def test_quiet_says_nothing() -> None:
    out = Terminal()
    progress: Listener = ProgressReporter("quiet", out)
    progress.start(2, 0)
    for kind in ("started", "step", "retry", "started", "draining", "failed", "lost"):
        progress.event(kind, RUN, step=1, steps=2, loss=1.0, reason="oom", message="no room")
    progress.stop(SweepSummary(failed=1, left=1, interrupted=True))
    assert out.getvalue() == ""


def test_only_a_live_display_loads_rich() -> None:
    code = "import sys; from qbench.terminal.progress import ProgressReporter; Progress(sys.argv[1]); print(sorted({'rich', 'torch', 'pandas'} & set(sys.modules)))"
    loaded = [
        subprocess.run(
            [sys.executable, "-c", code, mode], capture_output=True, text=True, check=True
        )
        for mode in ("plain", "live")
    ]
    assert [run.stdout for run in loaded] == ["[]\n", "['rich']\n"]


class Gone(io.StringIO):
    """A pipe whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("mode", ["plain", "live"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_stream_that_is_gone_does_not_stop_a_sweep(mode: Any, closed: bool) -> None:
    out = io.StringIO() if closed else Gone()
    progress = ProgressReporter(mode, out)
    if closed:
        out.close()
    progress.start(2, 0)
    progress.event("started", RUN)
    progress.event("failed", RUN, reason="oom", message="no room")
    progress.stop(SweepSummary(failed=1, left=1))
    assert progress.tally.failed == 1


# ---- the live display ----


def live(width: int, height: int) -> tuple[ProgressReporter, LiveDisplay, Clock]:
    clock = Clock()
    progress = ProgressReporter("live", io.StringIO(), clock=clock)
    display = progress.display
    assert isinstance(display, LiveDisplay)
    display.console.size = (width, height)
    return progress, display, clock


def words(line: StyledLine) -> str:
    return "".join(part for part, _ in line)


def screen(display: LiveDisplay, clock: Clock) -> list[str]:
    return [words(line) for line in display.lines(clock(), *display.console.size)]


def a_sweep(progress: ProgressReporter, clock: Clock, workers: int = 2) -> None:
    progress.tally = SweepTally(72, 12, clock())
    display = progress.display
    assert isinstance(display, LiveDisplay)
    display.tally = progress.tally
    progress.event("started", "fp digits/xs seed 0")
    clock.now += 20
    progress.event("finished", "fp digits/xs seed 0", reason=None, message=None)
    for i in range(workers):
        progress.event("started", f"ste int2 digits/xs seed {i}")
    clock.now += 20
    progress.event("step", "ste int2 digits/xs seed 0", step=1, steps=100, loss=2.302585)
    clock.now += 1
    progress.event("step", "ste int2 digits/xs seed 0", step=50, steps=100, loss=0.5)


def test_the_screen_of_a_wide_terminal() -> None:
    progress, display, clock = live(100, 30)
    a_sweep(progress, clock)
    assert screen(display, clock) == [
        "━━━━━─────────────────────────  13/72  2 running  12 done before  0:41  about 27:00 left",
        "  ste int2 digits/xs seed 0  ━━━━━─────  0.5000  0:21",
        "  ste int2 digits/xs seed 1  ──────────          0:21",
    ]


def test_the_screen_of_a_narrow_terminal() -> None:
    progress, display, clock = live(40, 15)
    a_sweep(progress, clock)
    progress.event("failed", "another", reason="oom")
    assert screen(display, clock) == [
        "14/72  1 failed  0:41  ~27:00 left",
        "ste int2 digit… seed 0 ━━╸── 0.5000 0:21",
        "ste int2 digit… seed 1 ─────        0:21",
    ]


@pytest.mark.parametrize(
    ("height", "shown"), [(30, 27), (67, 64), (66, 64), (65, 62), (4, 1), (3, 0)]
)
def test_as_many_runs_as_fit_and_how_many_more(height: int, shown: int) -> None:
    progress, display, clock = live(100, height)
    a_sweep(progress, clock, workers=64)
    lines = screen(display, clock)
    assert len(lines) <= height - 1
    assert [line for line in lines if "ste int2" in line] == lines[1 : 1 + shown]
    assert lines[1 + shown :] == ([f"… and {64 - shown} more"] if shown < 64 else [])


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
    t = SweepTally(
        total,
        min(done, total) // 2,
        0.0,
        finished=min(done, total) // 3,
        failed=min(done, total) // 7,
        work=0.5,
    )
    assert cell_len(words(format_overall_line(t, elapsed, width))) <= max(width, len(f"{t.done}/{total}"))
    row = (fit_title(title, 60).rstrip(), format_loss(loss), format_clock(elapsed))
    line = format_run_line(row, share, (60, 11, 9), width)
    assert cell_len(words(line)) <= max(width, 30), "below that the terminal cuts it"


@pytest.mark.parametrize(
    ("title", "width", "shown"),
    [
        (RUN, 30, RUN + "     "),
        (RUN, 25, RUN),
        (RUN, 20, "ste int2 dig… seed 1"),
        (RUN, 10, "ste int2… "),
        ("数字数字数字 seed 12", 17, "数字数字… seed 12"),
        ("endless" * 9, 10, "endlessen…"),
    ],
)
def test_a_title_that_is_too_long_keeps_its_seed(title: str, width: int, shown: str) -> None:
    assert fit_title(title, width) == shown
    assert cell_len(shown) == width


def test_numbers_in_words() -> None:
    assert [format_loss(x) for x in (2.302585, 0.5, 12345.6, 1234.5, 1.23456e-5, float("nan"), None, "?")] == [
        "2.303", "0.5000", "1.235e+04", "1234", "1.235e-05", "nan", "", ""
    ]  # fmt: skip
    assert [format_clock(x) for x in (0, 41.9, 59.99, 60, 3900)] == [
        "0:00",
        "0:41",
        "0:59",
        "1:00",
        "1:05:00",
    ]
    assert [format_rough_clock(x) for x in (0.2, 40, 61, 599, 601, 7201)] == [
        "0:01",
        "0:40",
        "1:10",
        "10:00",
        "11:00",
        "2:01:00",
    ]
    assert [words(draw_bar(x, 4, "")) for x in (0, 0.124, 0.125, 0.5, 0.99, 1)] == [
        "────",
        "────",
        "╸───",
        "━━──",
        "━━━╸",
        "━━━━",
    ]


def test_a_flood_of_steps_costs_next_to_nothing() -> None:
    out = io.StringIO()
    progress = ProgressReporter("live", out)
    progress.start(64, 0)
    titles = [f"run {i}" for i in range(64)]
    for title in titles:
        progress.event("started", title)
    began, used, events = time.monotonic(), time.process_time(), 0
    while time.monotonic() - began < 1.0:
        for title in titles:
            progress.event("step", title, step=events, steps=10**9, loss=1.0)
        events += 64
    seconds, used = time.monotonic() - began, time.process_time() - used
    progress.stop(SweepSummary(left=64))
    assert out.getvalue().count("64 running") <= 8 * seconds + 4, (
        "the first, the last and eight a second"
    )
    assert out.getvalue().count("64 running") >= 4
    assert used / events < 50e-6


def test_lines_stay_above_the_live_region() -> None:
    out = io.StringIO()
    progress = ProgressReporter("live", out)
    progress.start(2, 0)
    progress.event("started", RUN)
    progress.event("failed", RUN, reason="oom", message="no room " * 20)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert f"failed  {RUN}: oom: {('no room ' * 20).strip()}\n" in printed, (
        "one line, which the terminal may wrap"
    )
    assert printed.index("failed ") < printed.rindex("0/2")
    progress.stop(SweepSummary(failed=1, left=1))


def test_the_echo_of_an_interrupt_has_room_behind_every_line() -> None:
    progress, display, clock = live(40, 15)
    a_sweep(progress, clock, workers=64)
    lines = display.render().plain.split("\n")
    assert len(lines) == 14 and max(map(cell_len, lines)) == 38


# ---- in a real terminal ----

SHOW_OFF = """
import sys, time
from qbench.terminal.progress import ProgressReporter
from qbench.sweeps.coordinator import Summary
progress = Progress()
progress.start(2, 0)
progress.event("started", "ste int2 digits/xs seed 1", key="k", attempt=1)
progress.event("step", "ste int2 digits/xs seed 1", step=1, steps=2, loss=0.25)
time.sleep(0.3)
print("a result")
if sys.argv[1] == "warn":
    print("a library warns", file=sys.stderr)
if sys.argv[1] == "raise":
    raise RuntimeError("boom")
if sys.argv[1] == "exit":
    raise SystemExit(4)
progress.stop(Summary(ok=1, left=1, interrupted=True))
"""


def in_a_terminal(how: str, folder: Path) -> tuple[str, str, int]:
    """What a terminal got from a process whose stderr it is, what its stdout got, and its exit code."""
    master, slave = pty.openpty()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR")
    } | {"TERM": "xterm-256color"}
    with open(folder / "out", "wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", SHOW_OFF, how], stdin=slave, stdout=out, stderr=slave, env=env
        )
    os.close(slave)
    got = b""
    while select.select([master], [], [], 10)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # how Linux says that the last writer is gone
            break
        if not chunk:
            break
        got += chunk
    os.close(master)
    return got.decode(), (folder / "out").read_text(), child.wait(10)


@pytest.mark.parametrize(("how", "code"), [("stop", 0), ("warn", 0), ("raise", 1), ("exit", 4)])
def test_the_terminal_is_left_as_it_was(how: str, code: int, tmp_path: Path) -> None:
    shown, results, ended = in_a_terminal(how, tmp_path)
    assert ended == code
    assert results == "a result\n", "stdout is for results alone"
    assert HIDE in shown and shown.rindex(SHOW) > shown.rindex(HIDE)
    assert "ste int2 digits/xs seed 1" in shown and "0.2500" in shown
    after = shown[shown.rindex(SHOW) :]
    assert "\x1b[2K" in after and "ste int2" not in after, "the live region is wiped away"
    assert ("1 left; 0:00; interrupted; the same command goes on" in after) is (
        how in ("stop", "warn")
    )
    assert ("boom" in shown) is (how == "raise")
    if how == "warn":
        assert re.search(r"\x1b\[2Ka library warns\r\n.*0/2", shown, re.DOTALL), (
            "in the place of the live region, which moves down"
        )


# ---- the closing line ----


@pytest.mark.parametrize(
    ("summary", "line"),
    [
        (
            SweepSummary(ok=70, failed=2, skipped=3, failures=[("a", "oom", ""), ("b", "diverged", "")]),
            "72 runs: 70 ok, 2 failed (1 diverged, 1 oom), 3 cells skipped; 0:41",
        ),
        (SweepSummary(ok=1), "1 run: 1 ok; 0:41"),
        (SweepSummary(skipped=1), "0 runs: 1 cell skipped; 0:41"),
        (SweepSummary(), "0 runs: nothing to do; 0:41"),
        (SweepSummary(ok=30, left=42, cached=12, interrupted=True), "72 runs (12 done before): 30 ok, 42 left; 0:41; interrupted; the same command goes on"),
        (
            SweepSummary(failed=3, failures=[("a", "plugin", ""), ("b", "timeout", ""), ("c", "timeout", "")]),
            "3 runs: 0 ok, 3 failed (2 timeout, 1 plugin); 0:41",
        ),
    ],
)  # fmt: skip
def test_the_closing_line(summary: SweepSummary, line: str) -> None:
    assert format_closing_line(summary, 41.3) == line


def test_a_stream_without_an_encoding_is_a_stream() -> None:
    class Bare:
        text = ""

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None: ...

        def isatty(self) -> bool:
            raise ValueError("I/O operation on closed file")

    bare = Bare()
    out = TolerantStream(bare)  # type: ignore[arg-type]
    assert out.write("x") == 1 and bare.text == "x" and not out.isatty() and out.encoding == "utf-8"
