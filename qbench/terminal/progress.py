"""How a sweep goes, on stderr: a live display in a terminal, plain lines in a file, or nothing.

Events can come by the thousand a second, and the coordinator has better things to do than to draw. So an event only changes
numbers in a `Tally`, and the display reads them when it is due: eight times a second in a terminal, every ten seconds in a log.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from qbench.terminal.progress_lines import (
    closing,
    minutes,
    overall_line,
    progress_line,
    run_line,
    significant,
)
from qbench.terminal.progress_tally import Tally
from qbench.util.text import count, plain

if TYPE_CHECKING:
    from rich.text import Text

    from qbench.sweeps.listener import SweepSummary
    from qbench.terminal.progress_lines import Line

__all__ = ["Progress"]


Mode = Literal["auto", "live", "plain", "quiet"]

REFRESHES_PER_S = 8
LINE_EVERY_S = 10.0


class Progress:
    """What a sweep tells how it goes (`qbench.sweep.Listener`)."""

    def __init__(
        self,
        mode: Mode = "auto",
        stream: TextIO | None = None,
        *,
        board: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        out = Stream(stream or sys.stderr)
        if mode == "auto":
            mode = (
                "live"
                if out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
                else "plain"
            )
        self.clock, self.board = clock, plain(board)
        self.tally = Tally(0, 0, clock())
        self.display: Display = (
            Live(out, clock) if mode == "live" else Lines(out) if mode == "plain" else Nothing()
        )

    def start(self, total: int, cached: int) -> None:
        self.tally = Tally(total, cached, self.clock())
        self.display.start(
            self.tally,
            f"{self.board + ': ' if self.board else ''}{count(total, 'run')}, {cached} done before",
        )

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        now = self.clock()
        self.tally.take(kind, run_label, details, now)
        if kind in ("failed", "retry"):
            what = (run_label, details.get("reason"), details.get("message"))
            self.display.say(f"{kind:<6}  " + ": ".join(plain(part) for part in what if part))
        elif kind == "draining" and self.tally.running:
            self.display.say(
                f"finishing the {count(len(self.tally.running), 'running run')}; Ctrl-C again stops now"
            )
        self.display.tick(self.tally, now)

    def stop(self, summary: SweepSummary) -> None:
        self.display.close()
        self.display.say(closing(summary, self.clock() - self.tally.began))


# ---- where it is shown ----


class Display(Protocol):
    def start(self, tally: Tally, line: str) -> None: ...
    def tick(self, tally: Tally, now: float) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Nothing:
    def start(self, tally: Tally, line: str) -> None: ...
    def tick(self, tally: Tally, now: float) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class Lines:
    """For a log: a line at times."""

    def __init__(self, out: Stream) -> None:
        self.out, self.last, self.done = out, 0.0, 0

    def start(self, tally: Tally, line: str) -> None:
        self.last, self.done = tally.began, tally.done
        self.say(line)

    def tick(self, tally: Tally, now: float) -> None:
        complete = tally.done == tally.total > self.done
        if complete or now - self.last >= LINE_EVERY_S:
            self.last, self.done = now, tally.done
            self.say(progress_line(tally, now))

    def say(self, line: str) -> None:
        self.out.write(line + "\n")
        self.out.flush()

    def close(self) -> None: ...


class Live:
    """For a terminal: lines that are drawn again and again at the bottom, and others that stay above them."""

    def __init__(self, out: Stream, clock: Callable[[], float]) -> None:
        from rich.console import Console
        from rich.live import Live as Region

        self.clock, self.tally = clock, Tally(0, 0, clock())
        self.widths: tuple[int, ...] = (0, 6, 4)
        self.console = Console(file=out, force_terminal=True)  # type: ignore[arg-type]
        self.region = Region(
            console=self.console,
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=out.stream is sys.stderr,
            vertical_overflow="crop",
        )

    def start(self, tally: Tally, line: str) -> None:
        self.tally = tally
        # Should nobody call `close`, the terminal still gets its cursor back.
        atexit.register(self.close)
        self.region.start(refresh=True)

    def tick(self, tally: Tally, now: float) -> None: ...

    def say(self, line: str) -> None:
        from rich.text import Text

        shown = Text(line)
        word = line.split(" ", 1)[0]
        shown.stylize(
            {"failed": "bold red", "retry": "yellow", "finishing": "bold"}.get(word, ""),
            0,
            len(word),
        )
        self.console.print(shown, soft_wrap=True)

    def close(self) -> None:
        self.region.stop()
        atexit.unregister(self.close)

    def render(self) -> Text:
        from rich.text import Text

        # The terminal echoes a Ctrl-C as ^C behind the last line; were there no room for it, everything would be a line off.
        lines = self.lines(self.clock(), self.console.width - len("^C"), self.console.height)
        parts = [part for line in lines for part in (*line, ("\n", ""))]
        return Text.assemble(*parts[:-1], no_wrap=True, overflow="crop")

    def lines(self, now: float, width: int, height: int) -> list[Line]:
        """Called by the refreshing thread while events come in: the copy of the runs is made in one go, the rest are numbers."""
        from rich.cells import cell_len

        running = list(self.tally.running.values())
        fits = max(1, height - 2)
        shown = running if len(running) <= fits else running[: fits - 1]
        rows = [
            (plain(going.title), significant(going.loss), minutes(now - going.began))
            for going in shown
        ]
        # Columns only grow, so that lines do not jump.
        columns = zip(self.widths, *rows, strict=True)
        self.widths = tuple(
            max(w, *map(cell_len, column)) if column else w for w, *column in columns
        )
        lines = [overall_line(self.tally, now, width)]
        lines += [
            run_line(row, going.share, self.widths, width)
            for row, going in zip(rows, shown, strict=True)
        ]
        if len(shown) < len(running):
            lines.append([(f"… and {len(running) - len(shown)} more", "dim")])
        return lines


class Stream:
    """A stream whose end is no reason to stop a sweep: a closed terminal or a pipe that nobody reads."""

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
