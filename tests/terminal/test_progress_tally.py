"""The estimate of the time that a sweep will still take."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

from qbench.terminal.progress_tally import SweepTally


def make_tally(total: int = 10, cached: int = 0) -> SweepTally:
    return SweepTally(total, cached, 0.0)


def report_step(tally: SweepTally, title: str, share: float, now: float) -> None:
    details = {"step": share * 1000, "steps": 1000, "loss": 1.0}
    tally.record_event("step", title, details, now)


def record_run(
    tally: SweepTally, title: str, began: float, ended: float, kind: str = "finished"
) -> None:
    tally.record_event("started", title, {}, began)
    tally.record_event(kind, title, {}, ended)


def test_no_estimate_before_a_run_has_ended_or_five_seconds_have_passed() -> None:
    tally = make_tally()
    assert tally.estimate_remaining_s(0.0) is None
    assert tally.estimate_remaining_s(100.0) is None, "nothing has been done yet"
    tally.record_event("started", "a", {}, 0.0)
    report_step(tally, "a", 0.01, 1.0)
    report_step(tally, "a", 0.25, 4.0)
    assert tally.estimate_remaining_s(4.9) is None
    assert tally.estimate_remaining_s(5.0) == pytest.approx(9.75 * 5.0 / 0.25)
    early = make_tally()
    record_run(early, "a", 0.0, 0.5)
    assert early.estimate_remaining_s(0.5) == pytest.approx(9 * 0.5)


def test_runs_done_before_the_sweep_do_not_count_for_the_rate() -> None:
    tally = make_tally(total=110, cached=100)
    record_run(tally, "a", 0.0, 20.0)
    record_run(tally, "b", 0.0, 20.0)
    assert tally.done == 102
    assert tally.estimate_remaining_s(20.0) == pytest.approx(8 * 20 / 2)
    assert tally.estimate_remaining_s(30.0) == pytest.approx(8 * 30 / 2)


def test_running_runs_count_with_their_share() -> None:
    tally = make_tally(total=4)
    record_run(tally, "a", 0.0, 10.0)
    for title in "bc":
        tally.record_event("started", title, {}, 10.0)
    report_step(tally, "b", 0.01, 10.1)
    report_step(tally, "b", 0.5, 14.9)
    assert tally.estimate_remaining_s(15.0) == pytest.approx((4 - 1.5) * 15 / 1.5)


def test_a_slow_run_at_the_end_is_not_averaged_away() -> None:
    tally = make_tally(total=101)
    for i in range(100):
        record_run(tally, str(i), 0.0, 10.0)
    tally.record_event("started", "slow", {}, 0.0)
    report_step(tally, "slow", 0.05, 2.0)
    report_step(tally, "slow", 0.10, 12.0)
    # At its own speed since its first report; the clock runs on between reports.
    assert tally.estimate_remaining_s(12.0) == pytest.approx(0.9 * 10 / 0.05)
    assert tally.estimate_remaining_s(20.0) == pytest.approx(0.9 * 10 / 0.05 - 8)
    assert tally.estimate_remaining_s(1000.0) == pytest.approx(0.9 * 1000 / 100.1)


def test_the_steps_before_a_checkpoint_do_not_count_for_the_rate() -> None:
    tally = make_tally(total=10)
    tally.record_event("started", "a", {}, 0.0)
    report_step(tally, "a", 0.9, 1.0)
    assert tally.estimate_remaining_s(6.0) is None
    report_step(tally, "a", 0.95, 6.0)
    assert tally.estimate_remaining_s(6.0) == pytest.approx((10 - 0.95) * 6 / 0.05)
    tally.record_event("finished", "a", {}, 10.0)
    assert tally.estimate_remaining_s(10.0) == pytest.approx(9 * 10 / 0.1)


def test_runs_that_fail_at_once_do_not_make_the_sweep_look_fast() -> None:
    tally = make_tally(total=100)
    record_run(tally, "good", 0.0, 10.0)
    before = tally.estimate_remaining_s(10.0)
    for i in range(9):
        record_run(tally, f"bad {i}", 10.0, 10.0, "failed")
    tally.record_event("failed", "never started", {}, 10.0)
    assert (tally.finished, tally.failed, tally.done) == (1, 10, 11)
    assert before == pytest.approx(99 * 10)
    assert tally.estimate_remaining_s(10.0) == pytest.approx(89 * 10)
    tally.record_event("started", "halfway", {}, 10.0)
    report_step(tally, "halfway", 0.01, 10.1)
    report_step(tally, "halfway", 0.5, 15.0)
    tally.record_event("failed", "halfway", {}, 15.0)
    assert tally.estimate_remaining_s(15.0) == pytest.approx(88 * 15 / 1.5)


@pytest.mark.parametrize("kind", ["retry", "lost"])
def test_a_run_that_is_lost_or_retried_is_neither_done_nor_running(kind: str) -> None:
    tally = make_tally()
    record_run(tally, "a", 0.0, 4.0, kind)
    assert not tally.running and tally.done == 0
    # A late report of a worker that is gone counts for nothing.
    report_step(tally, "a", 0.5, 5.0)
    assert tally.estimate_remaining_s(9.0) is None


def test_a_draining_sweep_waits_only_for_what_is_running() -> None:
    tally = make_tally(total=1000)
    record_run(tally, "a", 0.0, 10.0)
    tally.record_event("started", "b", {}, 10.0)
    tally.record_event("draining", "", {"running": 1}, 10.0)
    assert tally.estimate_remaining_s(10.0) is None
    report_step(tally, "b", 0.1, 11.0)
    report_step(tally, "b", 0.5, 15.0)
    assert tally.estimate_remaining_s(15.0) == pytest.approx(5.0)


# ---- simulated sweeps ----


class Observation(NamedTuple):
    """What the tally said at the end of a run, and what was true."""

    estimate: float | None
    truth: float
    """The time that was really left."""
    slowest: float
    """The time that the slowest running run still took."""


def simulate_sweep(lengths: list[float], workers: int) -> list[Observation]:
    """Run a sweep of runs of these lengths, and return an observation at the end of each run."""
    tally, now = make_tally(total=len(lengths)), 0.0
    queue = [(str(i), length) for i, length in enumerate(lengths)]
    busy: dict[str, tuple[float, float]] = {}
    observed = []
    while queue or busy:
        while queue and len(busy) < workers:
            title, length = queue.pop(0)
            busy[title] = (now, length)
            tally.record_event("started", title, {}, now)
            report_step(tally, title, 0.0, now)
        now = min(began + length for began, length in busy.values())
        for title, (began, length) in list(busy.items()):
            report_step(tally, title, (now - began) / length, now)
            if began + length <= now:
                del busy[title]
                tally.record_event("finished", title, {}, now)
        slowest = max((began + length - now for began, length in busy.values()), default=0.0)
        observed.append((now, tally.estimate_remaining_s(now), slowest))
    return [Observation(estimate, now - at, slowest) for at, estimate, slowest in observed]


def test_the_estimate_is_right_for_runs_that_are_alike() -> None:
    for observation in simulate_sweep([10.0] * 24, workers=4):
        assert observation.estimate == pytest.approx(observation.truth)


def test_the_estimate_is_near_for_runs_that_differ_a_hundredfold() -> None:
    """200 runs in a random order, observed between a quarter and three quarters of them.

    The estimate is not far off in any sweep, and right on average.
    """
    ratios = []
    for seed in range(8):
        generator = random.Random(seed)
        lengths = [10.0 * 100 ** generator.random() for _ in range(200)]
        observations = simulate_sweep(lengths, workers=4)
        for observation in observations:
            assert observation.estimate is not None
            assert observation.estimate >= observation.slowest - 1e-6
        ratios += [o.estimate / o.truth for o in observations[50:150] if o.estimate is not None]
    assert min(ratios) > 0.5 and max(ratios) < 1.5
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.05)
