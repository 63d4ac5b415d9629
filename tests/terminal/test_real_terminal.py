"""A progress display in a real terminal, which is restored however the process ends."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.terminal.printing import HIDE_CURSOR, SHOW_CURSOR

PROGRAM = """
import sys, time
from qbench.terminal.progress import ProgressReporter
from qbench.sweeps.listener import SweepSummary
progress = ProgressReporter()
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
progress.stop(SweepSummary(ok=1, left=1, interrupted=True))
"""


def run_in_terminal(how: str, folder: Path) -> tuple[str, str, int]:
    """Run `PROGRAM` with stderr in a terminal.

    Return what the terminal received, what stdout received, and the exit code.
    """
    master, slave = pty.openpty()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR")
    } | {"TERM": "xterm-256color"}
    with open(folder / "out", "wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, how], stdin=slave, stdout=out, stderr=slave, env=env
        )
    os.close(slave)
    received = b""
    while select.select([master], [], [], 10)[0]:
        try:
            chunk = os.read(master, 65536)
        except OSError:  # on Linux this means that the last writer is gone
            break
        if not chunk:
            break
        received += chunk
    os.close(master)
    return received.decode(), (folder / "out").read_text(), child.wait(10)


@pytest.mark.parametrize(("how", "code"), [("stop", 0), ("warn", 0), ("raise", 1), ("exit", 4)])
def test_the_terminal_is_restored_however_the_process_ends(
    how: str, code: int, tmp_path: Path
) -> None:
    shown, results, ended = run_in_terminal(how, tmp_path)
    assert ended == code
    assert results == "a result\n", "stdout is for results alone"
    assert HIDE_CURSOR in shown and shown.rindex(SHOW_CURSOR) > shown.rindex(HIDE_CURSOR)
    assert "ste int2 digits/xs seed 1" in shown and "0.2500" in shown
    after = shown[shown.rindex(SHOW_CURSOR) :]
    assert "\x1b[2K" in after and "ste int2" not in after, "the live region is wiped away"
    closing_line = "1 left; 0:00; interrupted; run the same command again to continue"
    assert (closing_line in after) is (how in ("stop", "warn"))
    assert ("boom" in shown) is (how == "raise")
    if how == "warn":
        assert re.search(r"\x1b\[2Ka library warns\r\n.*0/2", shown, re.DOTALL), (
            "the warning takes the place of the live region, which moves down"
        )
