"""Report on stderr how a sweep goes: a live display in a terminal, lines in a log, or nothing.

Thousands of events can arrive in a second, and the coordinator must not spend its time on drawing.
So an event only changes numbers in a `SweepTally`. The display reads them when it is due: eight
times a second in a terminal, every ten seconds in a log.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from qbench.terminal.progress_lines import (
    StyledLine,
    format_clock,
    format_closing_line,
    format_loss,
    format_overall_line,
    format_progress_line,
    format_run_line,
)
from qbench.terminal.progress_tally import SweepTally
from qbench.util.text import clean_line, format_count

if TYPE_CHECKING:
    from rich.text import Text

    from qbench.sweeps.listener import SweepSummary

__all__ = ["ProgressReporter"]


Mode = Literal["auto", "live", "plain", "quiet"]

REFRESHES_PER_S = 8
LINE_EVERY_S = 10.0


class ProgressReporter:
    """Receives the events of a sweep (`sweeps.listener.Listener`) and displays them."""

    def __init__(
        self,
        mode: Mode = "auto",
        stream: TextIO | None = None,
        *,
        board: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        out = TolerantStream(stream or sys.stderr)
        self.clock, self.board = clock, clean_line(board)
        self.tally = SweepTally(0, 0, clock())
        self.display = _make_display(mode, out, clock)

    def start(self, total: int, cached: int) -> None:
        self.tally = SweepTally(total, cached, self.clock())
        prefix = f"{self.board}: " if self.board else ""
        line = f"{prefix}{format_count(total, 'run')}, {cached} done before"
        self.display.start(self.tally, line)

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        now = self.clock()
        self.tally.record_event(kind, run_label, details, now)
        if kind in ("failed", "retry"):
            parts = (run_label, details.get("reason"), details.get("message"))
            words = ": ".join(clean_line(part) for part in parts if part)
            self.display.print_line(f"{kind:<6}  {words}")
        elif kind == "draining" and self.tally.running:
            runs = format_count(len(self.tally.running), "running run")
            self.display.print_line(f"finishing the {runs}; Ctrl-C again stops now")
        self.display.update(self.tally, now)

    def stop(self, summary: SweepSummary) -> None:
        self.display.close()
        self.display.print_line(format_closing_line(summary, self.clock() - self.tally.began))


# ---- displays ----


class Display(Protocol):
    """Where progress is shown."""

    def start(self, tally: SweepTally, line: str) -> None: ...
    def update(self, tally: SweepTally, now: float) -> None: ...
    def print_line(self, line: str) -> None: ...
    def close(self) -> None: ...


def _make_display(mode: Mode, out: TolerantStream, clock: Callable[[], float]) -> Display:
    if mode == "auto":
        can_move_cursor = os.environ.get("TERM") not in ("dumb", "unknown")
        mode = "live" if out.isatty() and can_move_cursor else "plain"
    if mode == "live":
        return LiveDisplay(out, clock)
    return LineDisplay(out) if mode == "plain" else NoDisplay()


class NoDisplay:
    """Shows nothing."""

    def start(self, tally: SweepTally, line: str) -> None: ...
    def update(self, tally: SweepTally, now: float) -> None: ...
    def print_line(self, line: str) -> None: ...
    def close(self) -> None: ...


class LineDisplay:
    """Writes a line every `LINE_EVERY_S` seconds, for a log."""

    def __init__(self, out: TolerantStream) -> None:
        self.out, self.last, self.done = out, 0.0, 0

    def start(self, tally: SweepTally, line: str) -> None:
        self.last, self.done = tally.began, tally.done
        self.print_line(line)

    def update(self, tally: SweepTally, now: float) -> None:
        # The line that says 100 % is always written, but only once.
        complete = tally.done == tally.total > self.done
        if complete or now - self.last >= LINE_EVERY_S:
            self.last, self.done = now, tally.done
            self.print_line(format_progress_line(tally, now))

    def print_line(self, line: str) -> None:
        self.out.write(line + "\n")
        self.out.flush()

    def close(self) -> None: ...


class LiveDisplay:
    """Redraws lines at the bottom of a terminal; printed lines scroll away above them."""

    def __init__(self, out: TolerantStream, clock: Callable[[], float]) -> None:
        # rich is imported only here, so that logs do without it.
        from rich.console import Console
        from rich.live import Live

        self.clock, self.tally = clock, SweepTally(0, 0, clock())
        self.widths: tuple[int, ...] = (0, 6, 4)
        """The widths of title, loss and time."""
        self.console = Console(file=out, force_terminal=True)  # type: ignore[arg-type]
        self.region = Live(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            # stdout is for results alone. A warning that a library writes to stderr would
            # destroy the drawing, so it is printed above it.
            redirect_stdout=False,
            redirect_stderr=out.stream is sys.stderr,
            vertical_overflow="crop",
        )

    def start(self, tally: SweepTally, line: str) -> None:
        self.tally = tally
        # Without this the cursor stays hidden if an exception ends the process before `close`.
        atexit.register(self.close)
        self.region.start(refresh=True)

    def update(self, tally: SweepTally, now: float) -> None:
        """Do nothing: a thread of rich redraws at its own rate."""

    def print_line(self, line: str) -> None:
        from rich.text import Text

        shown = Text(line)
        word = line.split(" ", 1)[0]
        styles = {"failed": "bold red", "retry": "yellow", "finishing": "bold"}
        shown.stylize(styles.get(word, ""), 0, len(word))
        # The terminal wraps the line, so that it can be copied as one.
        self.console.print(shown, soft_wrap=True)

    def close(self) -> None:
        self.region.stop()
        atexit.unregister(self.close)

    def render(self) -> Text:
        """Return what the display shows now, for rich."""
        from rich.text import Text

        # The terminal echoes Ctrl-C as ^C behind the last line. Without room for it, the line
        # would wrap, and every redraw after that would be one line too low.
        width = self.console.width - len("^C")
        lines = self.format_lines(self.clock(), width, self.console.height)
        parts = [part for line in lines for part in (*line, ("\n", ""))]
        return Text.assemble(*parts[:-1], no_wrap=True, overflow="crop")

    def format_lines(self, now: float, width: int, height: int) -> list[StyledLine]:
        """Return a line for the sweep and one for each running run, as far as they fit."""
        from rich.cells import cell_len

        # rich calls this from its own thread while events come in. The dictionary is copied in
        # one operation, which no other thread can interrupt. Everything else is single numbers.
        running = list(self.tally.running.values())
        room = max(1, height - 2)
        shown = running if len(running) <= room else running[: room - 1]
        rows = [
            (clean_line(run.title), format_loss(run.loss), format_clock(now - run.began))
            for run in shown
        ]
        # Columns only grow, so that the lines do not jump from one drawing to the next.
        columns = zip(self.widths, *rows, strict=True)
        self.widths = tuple(
            max(w, *map(cell_len, column)) if column else w for w, *column in columns
        )
        lines = [format_overall_line(self.tally, now, width)]
        for row, run in zip(rows, shown, strict=True):
            lines.append(format_run_line(row, run.share, self.widths, width))
        if len(shown) < len(running):
            lines.append([(f"… and {len(running) - len(shown)} more", "dim")])
        return lines


class TolerantStream:
    """A stream that ignores errors.

    A closed terminal, or a pipe that nobody reads any more, is no reason to stop a sweep.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except (OSError, ValueError):
            return

    def isatty(self) -> bool:
        try:
            return self.stream.isatty()
        except (OSError, ValueError):
            return False
