"""How a worker ended, in words, and whether to try again."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.execution.assignment import Execution


def tries_in_a_sweep(details: Mapping[str, Any]) -> int:
    """How often a run is tried whose worker was ended from outside. That a node was lost says nothing against the run, until it always is."""
    return 10 if details.get("node") else 2


def how_it_ended(details: Mapping[str, Any], execution: Execution) -> tuple[str, str]:
    """Reason and message for a worker that left no result."""
    code = int(details.get("exitcode") or 0)
    if details.get("late"):
        return "timeout", f"not finished after {execution.timeout_s:g} s"
    if details.get("hung"):
        return "timeout", f"no sign of life for {execution.silence_s:g} s"
    if details.get("gone"):
        return "signal", str(details["gone"])
    if code < 0:
        name = (
            signal.Signals(-code).name
            if -code in signal.Signals.__members__.values()
            else str(-code)
        )
        return "signal", f"{details.get('who', 'the worker')} was killed by {name}" + (
            " (out of memory, perhaps)" if name == "SIGKILL" else ""
        )
    return "plugin", str(
        details.get("error")
        or f"the worker ended with exit code {code} and left no result; see log.txt"
    )
