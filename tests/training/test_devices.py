"""Statistics of measured step times."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qbench.training.devices import quartiles


@given(st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12))
def test_quartiles_are_in_order_and_within_the_measured_times(times: list[float]) -> None:
    """Of two times that are far apart, extrapolated quartiles would be negative, and the run's bundle refused."""
    low, middle, high = quartiles(times)
    slack = 1e-12 * max(times)
    assert min(times) - slack <= low <= middle <= high <= max(times) + slack
