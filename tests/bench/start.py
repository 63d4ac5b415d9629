"""How soon the command line answers.

Each command runs as a whole process. The commands take turns, and the median is reported.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from qbench.store.database import Store
from tests.run_folders import fake_board_members, make_attempt, make_run_config

ROUNDS = 15


def table() -> Iterator[str]:
    """Yield the lines of the report."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder)
        for seed in range(3):
            make_attempt(results, make_run_config(seed))
        with Store(results) as store:
            store.save_board(fake_board_members("b", [(make_run_config(), None)], 3))
            store.write_snapshot()
        commands = {
            'python -c "import click"': ("-c", "import click"),
            "qbench --help": ("-m", "qbench", "--help"),
            "qbench show (3 runs)": ("-m", "qbench", "show", "--results", folder),
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(ROUNDS):
            for name, words in commands.items():
                began = time.perf_counter()
                subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
                times[name].append(time.perf_counter() - began)
    click = statistics.median(times['python -c "import click"'])
    targets = {"qbench --help": f"{2e3 * click + 50:.0f} ms (twice click + 50 ms)"}
    yield "| command | median | target |"
    yield "|---|---:|---:|"
    for name, spent in times.items():
        yield f"| `{name}` | {1e3 * statistics.median(spent):.0f} ms | {targets.get(name, '')} |"
