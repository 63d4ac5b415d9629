"""What a sweep would train and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from qbench.terminal.tables import _columns
from qbench.util import text
from qbench.util.text import count

if TYPE_CHECKING:
    from qbench.sweeps.status import RunStatus


# ---- a plan ----

MEANINGS = {
    "new": "never tried",
    "failed": "tried, and will be again",
    "running": "being trained at this moment",
    "lost": "begun and never finished: goes on from its last checkpoint",
    "stale": "finished, by other code than this: kept as it is",
    "cached": "finished",
    "skipped": "cells that their method or task has no rule for",
    "waiting": "chosen when their trials are done",
    "untuned": "cells of which every trial failed, so there is nothing to choose",
}
SWEEP = "qbench sweep {file}"
FIXES = {
    "new": SWEEP,
    "failed": SWEEP,
    "lost": SWEEP,
    "waiting": SWEEP,
    "stale": "qbench reproduce KEY says whether it still comes out",
}
"""What to do about each."""
STYLES = {
    "failed": "red",
    "lost": "yellow",
    "stale": "yellow",
    "skipped": "dim",
    "waiting": "dim",
    "untuned": "red",
}


def show_plan(lines: Sequence[RunStatus], console: Console | None = None, file: str = "") -> None:
    """What a sweep would train and why: a line for each run that is not simply there, and how many there are of each state, and what to do."""
    console = console or Console()
    told = [(_state(line), line) for line in lines]
    listed = [(state, line) for state, line in told if state != "cached"]
    if listed:
        table = _columns("state", "run", "why")
        for state, line in listed:
            table.add_row(
                Text(state, style=STYLES.get(state, "")),
                Text(text.plain(line.title)),
                Text(_why(state, line), style="dim"),
            )
        console.print(table)
        console.print()
    counts = Counter[str]()
    for state, line in told:
        counts[state] += line.runs
    diverged = sum(line.run_state.diverged for state, line in told if state == "cached")
    table = _columns("state", "runs", "", "to go on")
    for state in filter(counts.get, MEANINGS):
        more = f", {diverged} of them diverged" if state == "cached" and diverged else ""
        fix = FIXES.get(state, "").format(file=text.plain(file)).rstrip()
        table.add_row(
            Text(state, style=STYLES.get(state, "")),
            str(counts[state]),
            Text(MEANINGS[state] + more, style="dim"),
            Text(fix),
        )
    console.print(table if counts else Text("Nothing is asked for."))
    if todo := Counter(task for line in lines for task in line.unanswered):
        each = ", ".join(
            f"{text.plain(task)} of {count(n, 'finished run')}" for task, n in todo.items()
        )
        console.print(Text(f"Still to be asked downstream: {each}"))


def _state(line: RunStatus) -> str:
    return (
        "stale"
        if (line.stale or line.edited) and line.run_state.state == "cached"
        else line.run_state.state
    )


def _why(state: str, line: RunStatus) -> str:
    was = line.run_state
    made = (
        [f"{' and '.join(line.edited)} edited under the same version: raise version"]
        if line.edited
        else []
    )
    made += [f"made by {line.stale}"] if line.stale else []
    words = (
        [f"{', '.join(made)}, key {(line.key or '')[:12]}"]
        if state == "stale"
        else [f"there is one of {line.older_version}"]
        if line.older_version
        else []
    )
    return text.plain(": ".join(filter(None, (*words, was.reason, was.message))))
