"""How a sweep goes, on stderr: a live display in a terminal, plain lines in a file, or nothing.

Events can come by the thousand a second, and the coordinator has better things to do than to draw. So an event only changes
numbers in a `Tally`, and the display reads them when it is due: eight times a second in a terminal, every ten seconds in a log.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from qbench.text import count, plain, seconds

if TYPE_CHECKING:
    from rich.text import Text

    from qbench.sweep import Summary

__all__ = ["Progress", "Tally"]

Mode = Literal["auto", "live", "plain", "quiet"]
Line = list[tuple[str, str]]
"""Parts of a line with their styles."""

REFRESHES_PER_S = 8
LINE_EVERY_S = 10.0
PATIENCE_S = 5.0
"""How long to watch before the first guess at the time left, where no run is over sooner."""
RESUMED = 0.1
"""Runs report every hundredth. One whose first report is beyond this share goes on from a checkpoint: that part cost no time now."""


class Progress:
    """What a sweep tells how it goes (`qbench.sweep.Listener`)."""

    def __init__(
        self, mode: Mode = "auto", stream: TextIO | None = None, *, board: str = "", clock: Callable[[], float] = time.monotonic
    ) -> None:
        out = Stream(stream or sys.stderr)
        if mode == "auto":
            mode = "live" if out.isatty() and os.environ.get("TERM") not in ("dumb", "unknown") else "plain"
        self.clock, self.board = clock, plain(board)
        self.tally = Tally(0, 0, clock())
        self.display: Display = Live(out, clock) if mode == "live" else Lines(out) if mode == "plain" else Nothing()

    def start(self, total: int, cached: int) -> None:
        self.tally = Tally(total, cached, self.clock())
        self.display.start(self.tally, f"{self.board + ': ' if self.board else ''}{count(total, 'run')}, {cached} done before")

    def event(self, kind: str, run_label: str, **details: Any) -> None:
        now = self.clock()
        self.tally.take(kind, run_label, details, now)
        if kind in ("failed", "retry"):
            what = (run_label, details.get("reason"), details.get("message"))
            self.display.say(f"{kind:<6}  " + ": ".join(plain(part) for part in what if part))
        elif kind == "draining" and self.tally.running:
            self.display.say(f"finishing the {count(len(self.tally.running), 'running run')}; Ctrl-C again stops now")
        self.display.tick(self.tally, now)

    def stop(self, summary: Summary) -> None:
        self.display.close()
        self.display.say(closing(summary, self.clock() - self.tally.began))


# ---- what is known ----


@dataclass
class Going:
    """A run that is being trained, as its reports tell."""

    title: str
    began: float
    step: float = 0
    steps: float = 0
    loss: float | None = None
    first: tuple[float, float] | None = None
    """When the first report came, and the share of the run that was done then."""
    latest: float = 0.0

    @property
    def share(self) -> float:
        return min(1.0, max(0.0, self.step / self.steps)) if self.steps > 0 else 0.0

    @property
    def gained(self) -> float:
        """The share that was done in this attempt."""
        return self.share - (self.first[1] if self.first and self.first[1] > RESUMED else 0.0)

    def report(self, details: Mapping[str, Any], now: float) -> None:
        self.step, self.steps = details.get("step") or 0, details.get("steps") or 0
        self.loss, self.latest = details.get("loss"), now
        if self.first is None:
            self.first = (now, self.share)

    def left_s(self, now: float) -> float:
        """At its own speed since the first report, which leaves out what loading and compiling took; 0 where that says nothing."""
        if self.first is None or self.share <= self.first[1]:
            return 0.0
        speed = (self.share - self.first[1]) / max(self.latest - self.first[0], 1e-9)
        return max(0.0, (1 - self.share) / speed - (now - self.latest))


@dataclass
class Tally:
    """The state of a sweep, from its events. Times come in from outside.

    The time left is what the work left takes at the rate so far, and at least what the slowest run still needs. Work is counted in
    runs: a finished one is 1, a running one the share that is done, a failed one as far as it came (a method that falls over at once
    says nothing about how fast the others train), one done before is nothing.
    """

    total: int
    cached: int
    began: float
    finished: int = 0
    failed: int = 0
    draining: bool = False
    work: float = 0.0
    """Done in runs that are over."""
    running: dict[str, Going] = field(default_factory=dict)

    @property
    def done(self) -> int:
        return self.cached + self.finished + self.failed

    def take(self, kind: str, title: str, details: Mapping[str, Any], now: float) -> None:
        if kind == "step":
            if (going := self.running.get(title)) is not None:
                going.report(details, now)
        elif kind == "started":
            self.running[title] = Going(title, now)
        elif kind == "draining":
            self.draining = True
        elif kind == "planned":
            self.total, self.cached = details["total"], details["cached"]
        else:
            self.over(kind, self.running.pop(title, None))

    def over(self, kind: str, going: Going | None) -> None:
        """Finished, failed, lost or to be tried again; a run whose base has failed fails without having been started."""
        if kind == "finished":
            self.finished += 1
            self.work += 1 - (going.share - going.gained if going else 0.0)
        elif kind == "failed":
            self.failed += 1
            self.work += going.gained if going else 0.0

    def left_s(self, now: float) -> float | None:
        """None where it is too early to say."""
        running, elapsed = list(self.running.values()), now - self.began
        slowest = max((going.left_s(now) for going in running), default=0.0)
        if self.draining:
            return slowest or None
        work = self.work + sum(going.gained for going in running)
        if work <= 0 or (self.finished + self.failed == 0 and elapsed < PATIENCE_S):
            return None
        left = self.total - self.done - sum(going.share for going in running)
        return max(left * elapsed / work, slowest)


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
        shown.stylize({"failed": "bold red", "retry": "yellow", "finishing": "bold"}.get(word, ""), 0, len(word))
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
        rows = [(plain(going.title), significant(going.loss), minutes(now - going.began)) for going in shown]
        # Columns only grow, so that lines do not jump.
        columns = zip(self.widths, *rows, strict=True)
        self.widths = tuple(max(w, *map(cell_len, column)) if column else w for w, *column in columns)
        lines = [overall_line(self.tally, now, width)]
        lines += [run_line(row, going.share, self.widths, width) for row, going in zip(rows, shown, strict=True)]
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


# ---- in words ----


def closing(summary: Summary, elapsed_s: float) -> str:
    """`72 runs: 70 ok, 2 failed (1 diverged, 1 oom), 3 cells skipped; 0:41`."""
    reasons = Counter(plain(reason) for _, reason, _ in summary.failures)
    why = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items(), key=lambda item: (-item[1], item[0])))
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
    parts = [done, f"{tally.failed} failed", f"elapsed {minutes(now - tally.began)}", "finishing" if tally.draining else ""]
    left = None if tally.done == tally.total else tally.left_s(now)
    return "  ".join(filter(None, [*parts, "" if left is None else f"left about {roughly(left)}"]))


def overall_line(tally: Tally, now: float, width: int) -> Line:
    """What does not fit goes, the least important first."""
    left = None if tally.done == tally.total else tally.left_s(now)
    about = "" if left is None else f"about {roughly(left)} left" if width >= 60 else f"~{roughly(left)} left"
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
    while len(parts) > 1 and sum(len(part[1]) + 2 for part in parts) + (5 if max(parts)[0] > 2 else -2) > width:
        parts.remove(max(parts))
    room = width - sum(len(part[1]) + 2 for part in parts)
    drawn = bar(tally.done / tally.total if tally.total else 1.0, min(30, room), "green") if room >= 5 else []
    return [*drawn, *(piece for _, words, style in parts for piece in (("  ", ""), (words, style)))][0 if drawn else 1 :]


def run_line(row: tuple[str, str, str], share: float, widths: tuple[int, ...], width: int) -> Line:
    (title, loss, elapsed), roomy = row, width >= 60
    indent, drawn, gap = ("  ", 10, "  ") if roomy else ("", 5, " ")
    room = max(1, width - len(indent) - drawn - sum(widths[1:]) - 3 * len(gap))
    named = indent + fit(title, min(widths[0], room)) + gap
    return [(named, ""), *bar(share, drawn, "cyan"), (f"{gap}{loss:>{widths[1]}}", ""), (f"{gap}{elapsed:>{widths[2]}}", "dim")]


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
