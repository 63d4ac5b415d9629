"""What a clock says, in numbers that were measured."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.hardware import quartiles


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12))
def test_quartiles_lie_in_order_within_what_was_measured(times: list[float]) -> None:
    """Of two times that are far apart, extrapolated quartiles would be negative, and the run's bundle refused."""
    low, middle, high = quartiles(times)
    slack = 1e-12 * max(times)
    assert min(times) - slack <= low <= middle <= high <= max(times) + slack


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's settings")
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """A tensor of a megabyte, made and dropped again and again, is faulted in once and not each time."""
    code = (
        "import resource, torch; from qbench.hardware import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(50): kept = [torch.ones(300_000) for _ in range(8)]; del kept\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(); keep_freed_memory(); faults(); print(first, faults())"
    )
    first, then = map(int, subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert then * 10 < first, (first, then)
