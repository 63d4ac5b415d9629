"""How a worker ended, in words, and how often its run may be tried."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qbench.execution.assignment import Execution


def describe_ending(details: Mapping[str, Any], execution: Execution) -> tuple[str, str]:
    """Return the reason and the message of a failure for a worker that left no result.

    Args:
        details: The details of the group's `ended` event.
        execution: The execution that the worker was given, for its time limits.
    """
    code = int(details.get("exitcode") or 0)
    # The engine's own reasons come first: a worker that it killed also has the exit code of a
    # signal.
    if details.get("late"):
        return "timeout", f"not finished after {execution.timeout_s:g} s"
    if details.get("hung"):
        return "timeout", f"no sign of life for {execution.silence_s:g} s"
    if details.get("gone"):
        return "signal", str(details["gone"])
    if code < 0:
        has_name = -code in signal.Signals.__members__.values()
        name = signal.Signals(-code).name if has_name else str(-code)
        # The kernel's out-of-memory killer sends SIGKILL and says nothing to the process.
        hint = " (out of memory, perhaps)" if name == "SIGKILL" else ""
        return "signal", f"{details.get('who', 'the worker')} was killed by {name}{hint}"
    message = f"the worker ended with exit code {code} and left no result; see log.txt"
    return "plugin", str(details.get("error") or message)


def max_tries(details: Mapping[str, Any]) -> int:
    """Return how often a sweep tries a run whose worker was ended from outside.

    The loss of a node says nothing against the run, so it may happen more often. There is still a
    limit, because a run may be what brings its nodes down.
    """
    return 10 if details.get("node") else 2
