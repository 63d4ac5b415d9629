"""Print what a sweep would train, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qbench.terminal.tables import make_plain_table
from qbench.util import text

if TYPE_CHECKING:
    from qbench.sweeps.status import RunStatus


STATE_MEANINGS = {
    "new": "never attempted",
    "failed": "attempted; will be retried",
    "running": "in training now",
    "lost": "interrupted; continues from its checkpoint",
    "stale": "finished under other code; kept as it is",
    "cached": "finished",
    "skipped": "cells that their method or task does not support",
    "waiting": "chosen when their trials are done",
    "untuned": "cells whose trials all failed: nothing to choose from",
}
"""What each state means, in the order of the table."""
SWEEP_COMMAND = "qbench sweep {file}"
NEXT_STEPS = {
    "new": SWEEP_COMMAND,
    "failed": SWEEP_COMMAND,
    "lost": SWEEP_COMMAND,
    "waiting": SWEEP_COMMAND,
    "stale": "qbench reproduce KEY checks whether it still holds",
}
"""What to do about runs in a state."""
STATE_STYLES = {
    "failed": "red",
    "lost": "yellow",
    "stale": "yellow",
    "skipped": "dim",
    "waiting": "dim",
    "untuned": "red",
}


def show_plan(lines: Sequence[RunStatus], console: Console | None = None, file: str = "") -> None:
    """Print a line for each run that is not simply finished, and a table of the states.

    The table says how many runs are in each state and what to do about them. `file` is the sweep
    file that its commands name.
    """
    console = console or Console()
    states = [(_state_to_show(line), line) for line in lines]
    unfinished = [(state, line) for state, line in states if state != "cached"]
    if unfinished:
        console.print(_make_run_table(unfinished))
        console.print()
    console.print(_make_state_table(states, file) if states else Text("The sweep has no runs."))
    if unanswered := Counter(task for line in lines for task in line.unanswered):
        tasks = ", ".join(
            f"{text.clean_line(task)} for {text.format_count(n, 'finished run')}"
            for task, n in unanswered.items()
        )
        console.print(Text(f"Downstream tasks to be evaluated: {tasks}"))


def _state_to_show(line: RunStatus) -> str:
    """Return the state of a run; a finished run is stale if its code has changed since."""
    state = line.run_state.state
    return "stale" if state == "cached" and (line.stale or line.edited) else state


def _make_run_table(states: Sequence[tuple[str, RunStatus]]) -> Table:
    table = make_plain_table("state", "run", "why")
    for state, line in states:
        table.add_row(
            Text(state, style=STATE_STYLES.get(state, "")),
            Text(text.clean_line(line.title)),
            Text(_explain_state(state, line), style="dim"),
        )
    return table


def _explain_state(state: str, line: RunStatus) -> str:
    reasons = []
    if state == "stale":
        code = []
        if line.edited:
            names = " and ".join(line.edited)
            code.append(f"{names} edited under the same version: raise version")
        if line.stale:
            code.append(f"trained by other code ({line.stale})")
        reasons.append(f"{', '.join(code)}, key {(line.key or '')[:12]}")
    elif line.older_version:
        reasons.append(f"there is a run of {line.older_version}")
    reasons += [line.run_state.reason or "", line.run_state.message or ""]
    return text.clean_line(": ".join(filter(None, reasons)))


def _make_state_table(states: Sequence[tuple[str, RunStatus]], file: str) -> Table:
    counts = Counter[str]()
    for state, line in states:
        counts[state] += line.runs
    diverged = sum(line.run_state.diverged for state, line in states if state == "cached")
    table = make_plain_table("state", "runs", "", "next step")
    for state in filter(counts.get, STATE_MEANINGS):
        meaning = STATE_MEANINGS[state]
        if state == "cached" and diverged:
            meaning += f"; {diverged} of them diverged"
        table.add_row(
            Text(state, style=STATE_STYLES.get(state, "")),
            str(counts[state]),
            Text(meaning, style="dim"),
            Text(NEXT_STEPS.get(state, "").format(file=text.clean_line(file)).rstrip()),
        )
    return table
