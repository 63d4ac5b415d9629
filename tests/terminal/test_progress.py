"""The displays of a sweep's progress: live in a terminal, lines in a log, or nothing."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.cells import cell_len

from qbench.sweeps.listener import Listener, SweepSummary
from qbench.terminal.progress import LiveDisplay, ProgressReporter, TolerantStream
from qbench.terminal.progress_tally import SweepTally
from tests.terminal.printing import HIDE_CURSOR, TITLE, join_words


class Clock:
    """A clock that only moves when a test sets it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# ---- plain lines ----


def make_plain_reporter(board: str = "quick") -> tuple[ProgressReporter, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return ProgressReporter("plain", out, board=board, clock=clock), out, clock


def test_plain_lines_of_a_sweep() -> None:
    progress, out, clock = make_plain_reporter()
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
    progress, out, clock = make_plain_reporter("")
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


def test_a_sweep_with_nothing_to_do_prints_two_lines() -> None:
    progress, out, _ = make_plain_reporter()
    progress.start(4, 4)
    progress.event("draining", "", running=0)
    progress.stop(SweepSummary(ok=4, cached=4))
    assert out.getvalue() == "quick: 4 runs, 4 done before\n4 runs (4 done before): 4 ok; 0:00\n"


def test_a_draining_sweep_says_what_it_waits_for() -> None:
    progress, out, clock = make_plain_reporter()
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
    progress, out, _ = make_plain_reporter()
    progress.start(9, 0)
    progress.event("draining", "", running=0)
    assert len(out.getvalue().splitlines()) == 1, (
        "with nothing running there is nothing to wait for"
    )


@pytest.mark.parametrize("mode", ["plain", "live"])
def test_hostile_text_is_printed_without_codes_and_markup(mode: Any) -> None:
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
    received = out.getvalue()
    without_styles = re.sub(r"\x1b\[[0-9;]*m", "", received)
    assert "evil [red]x[/red] :boom:: data: one two [bold]" in without_styles
    for code in ("[2J", "]0;", "\x07", "\x9b"):
        assert code not in received
    if mode == "plain":
        assert all(c.isprintable() or c == "\n" for c in received)


# ---- the choice of a display ----


@pytest.mark.parametrize(
    ("stream", "term", "live"),
    [(Terminal, "xterm", True), (Terminal, "dumb", False), (io.StringIO, "xterm", False)],
)
def test_auto_is_live_only_in_a_terminal(
    stream: type[io.StringIO], term: str, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    out = stream()
    progress = ProgressReporter("auto", out)
    progress.start(1, 0)
    progress.event("started", TITLE)
    progress.event("finished", TITLE, reason=None, message=None)
    progress.stop(SweepSummary(ok=1))
    assert (HIDE_CURSOR in out.getvalue()) is live and ("\x1b" in out.getvalue()) is live
    assert ("1 run, 0 done before" in out.getvalue()) is not live
    assert "1 run: 1 ok; 0:00" in out.getvalue()


def test_quiet_prints_nothing() -> None:
    out = Terminal()
    progress: Listener = ProgressReporter("quiet", out)
    progress.start(2, 0)
    for kind in ("started", "step", "retry", "started", "draining", "failed", "lost"):
        progress.event(kind, TITLE, step=1, steps=2, loss=1.0, reason="oom", message="no room")
    progress.stop(SweepSummary(failed=1, left=1, interrupted=True))
    assert out.getvalue() == ""


def test_only_a_live_display_loads_rich() -> None:
    code = (
        "import sys; from qbench.terminal.progress import ProgressReporter; "
        "ProgressReporter(sys.argv[1]); "
        "print(sorted({'rich', 'torch', 'pandas'} & set(sys.modules)))"
    )
    loaded = [
        subprocess.run(
            [sys.executable, "-c", code, mode], capture_output=True, text=True, check=True
        )
        for mode in ("plain", "live")
    ]
    assert [run.stdout for run in loaded] == ["[]\n", "['rich']\n"]


class ClosedPipe(io.StringIO):
    """A pipe whose reader has closed it."""

    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise BrokenPipeError


@pytest.mark.parametrize("mode", ["plain", "live"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_stream_does_not_stop_a_sweep(mode: Any, closed: bool) -> None:
    out = io.StringIO() if closed else ClosedPipe()
    progress = ProgressReporter(mode, out)
    if closed:
        out.close()
    progress.start(2, 0)
    progress.event("started", TITLE)
    progress.event("failed", TITLE, reason="oom", message="no room")
    progress.stop(SweepSummary(failed=1, left=1))
    assert progress.tally.failed == 1


# ---- the live display ----


def make_live_reporter(width: int, height: int) -> tuple[ProgressReporter, LiveDisplay, Clock]:
    clock = Clock()
    progress = ProgressReporter("live", io.StringIO(), clock=clock)
    display = progress.display
    assert isinstance(display, LiveDisplay)
    display.console.size = (width, height)
    return progress, display, clock


def read_screen(display: LiveDisplay, clock: Clock) -> list[str]:
    return [join_words(line) for line in display.format_lines(clock(), *display.console.size)]


def start_sweep(progress: ProgressReporter, clock: Clock, workers: int = 2) -> None:
    """Report 72 runs, of which 13 are done and `workers` are running, after 41 seconds."""
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
    progress, display, clock = make_live_reporter(100, 30)
    start_sweep(progress, clock)
    assert read_screen(display, clock) == [
        "━━━━━─────────────────────────  13/72  2 running  12 done before  0:41  about 27:00 left",
        "  ste int2 digits/xs seed 0  ━━━━━─────  0.5000  0:21",
        "  ste int2 digits/xs seed 1  ──────────          0:21",
    ]


def test_the_screen_of_a_narrow_terminal() -> None:
    progress, display, clock = make_live_reporter(40, 15)
    start_sweep(progress, clock)
    progress.event("failed", "another", reason="oom")
    assert read_screen(display, clock) == [
        "14/72  1 failed  0:41  ~27:00 left",
        "ste int2 digit… seed 0 ━━╸── 0.5000 0:21",
        "ste int2 digit… seed 1 ─────        0:21",
    ]


@pytest.mark.parametrize(
    ("height", "shown"), [(30, 27), (67, 64), (66, 64), (65, 62), (4, 1), (3, 0)]
)
def test_the_screen_shows_the_runs_that_fit_and_counts_the_others(height: int, shown: int) -> None:
    progress, display, clock = make_live_reporter(100, height)
    start_sweep(progress, clock, workers=64)
    lines = read_screen(display, clock)
    assert len(lines) <= height - 1
    assert [line for line in lines if "ste int2" in line] == lines[1 : 1 + shown]
    assert lines[1 + shown :] == ([f"… and {64 - shown} more"] if shown < 64 else [])


def test_thousands_of_steps_a_second_cost_little_time() -> None:
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


def test_printed_lines_stay_above_the_live_region() -> None:
    out = io.StringIO()
    progress = ProgressReporter("live", out)
    progress.start(2, 0)
    progress.event("started", TITLE)
    progress.event("failed", TITLE, reason="oom", message="no room " * 20)
    printed = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    assert f"failed  {TITLE}: oom: {('no room ' * 20).strip()}\n" in printed, (
        "one line, which the terminal may wrap"
    )
    assert printed.index("failed ") < printed.rindex("0/2")
    progress.stop(SweepSummary(failed=1, left=1))


def test_every_line_leaves_room_for_the_echo_of_ctrl_c() -> None:
    progress, display, clock = make_live_reporter(40, 15)
    start_sweep(progress, clock, workers=64)
    lines = display.render().plain.split("\n")
    assert len(lines) == 14 and max(map(cell_len, lines)) == 38


# ---- streams ----


def test_a_stream_without_an_encoding_is_accepted() -> None:
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
    assert out.write("x") == 1 and bare.text == "x"
    assert not out.isatty() and out.encoding == "utf-8"
