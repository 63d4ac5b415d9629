"""Two entrants of a board held against each other downstream, from run folders that are written here as `train` and `evaluate` write them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qbench
from qbench.analysis.compare_downstream import DownstreamDifference, format_downstream_difference
from qbench.errors import UsageError
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig
from qbench.stats.comparisons import adjust_by_holm, mcnemar_test, paired_test
from qbench.store.database import Store
from tests.run_folders import fake_board_members, make_attempt, make_run_config

A, B = "a" * 64, "b" * 64
Right = Sequence[bool]


class Desk:
    """A results folder in which entrants are asked."""

    def __init__(self, results: Path) -> None:
        self.results, self.attempts = results, dict[str, Attempt]()
        self.cells: dict[str, RunConfig] = {}
        self.seeds = 1

    def paper(
        self,
        method: str,
        seed: int,
        right: Right,
        task: str = "recall",
        sha: str = A,
        fmt: str | None = "int4",
        **more: Any,
    ) -> Desk:
        spec = dataclasses.replace(make_run_config(seed, method, fmt, **more), method_params={})
        attempt = self.attempts.get(spec.key) or self.attempts.setdefault(
            spec.key, make_attempt(self.results, spec, score=0.1)
        )
        cell = dataclasses.replace(spec, seed=0)
        self.cells[cell.key], self.seeds = cell, max(self.seeds, seed + 1)
        (attempt.folder / "downstream").mkdir(exist_ok=True)
        lines = [{"item": n, "right": float(r)} for n, r in enumerate(right)]
        (attempt.folder / "downstream" / f"{task}.jsonl").write_text(
            "".join(json.dumps(line) + "\n" for line in lines)
        )
        metrics = {"acc": {"value": float(np.mean(right)), "stderr": 0.0, "better": "higher"}}
        entry = {
            "sha256": sha,
            "items": len(right),
            "chance": 0.5,
            "ceiling": 1.0,
            "metric": "acc",
            "metrics": metrics,
        }
        tasks = (attempt.read("downstream") or {"tasks": {}})["tasks"] | {
            task: entry | {"file": f"downstream/{task}.jsonl"}
        }
        attempt.write(
            "downstream", {"downstream_version": 1, "artefact_sha256": "a" * 64, "tasks": tasks}
        )
        return self

    def compare(self, a: str, b: str) -> list[DownstreamDifference]:
        members = fake_board_members("b", [(spec, None) for spec in self.cells.values()], self.seeds)
        with Store(self.results) as opened:
            assert not opened.ingest_attempts(self.attempts.values())
            opened.save_board(members)
            opened.write_snapshot()
        return qbench.results(self.results).compare_downstream(a, b)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def answers(share: float, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(200) < share).tolist()


def test_items_are_paired_and_corrected_over_tasks_and_seeds_are_the_unit_of_the_difference(
    desk: Desk,
) -> None:
    p = []
    for task, shares in (("recall", (0.9, 0.7)), ("nesting", (0.6, 0.6))):
        mine, theirs = (
            [answers(share, 10 * seed + side) for seed in range(3)]
            for side, share in enumerate(shares)
        )
        for name, each in (("lsq", mine), ("ste", theirs)):
            for seed, right in enumerate(each):
                desk.paper(name, seed, right, task)
        p.append(mcnemar_test(np.concatenate(mine), np.concatenate(theirs)))
    nesting, recall = desk.compare("lsq", "ste")
    assert (recall.only_a, recall.only_b) == (p[0].first, p[0].second) and (
        nesting.task,
        recall.seeds,
    ) == ("nesting", 3)
    assert [recall.p_items, nesting.p_items] == adjust_by_holm(
        [test.p for test in p]
    ) and recall.p_items < 0.001 < (nesting.p_items or 0)  # type: ignore[operator]
    by_seed = [
        {seed: float(np.mean(answers(share, 10 * seed + side))) for seed in range(3)}
        for side, share in enumerate((0.9, 0.7))
    ]
    assert recall.difference == paired_test(*by_seed).difference
    words = format_downstream_difference(recall, "lsq", "ste")
    assert words.startswith("digits/xs: recall (acc); int4\n")
    assert (
        f"by item {recall.only_a} that only lsq has right, {recall.only_b} that only ste" in words
    )


def test_two_definitions_under_one_name_are_never_compared(desk: Desk) -> None:
    assert (
        desk.paper("lsq", 0, [True, False])
        .paper("ste", 0, [True, True], sha=B)
        .compare("lsq", "ste")
        == []
    )


def test_runs_from_another_start_are_another_comparison(desk: Desk) -> None:
    for start, mine in (("scratch", [True, True]), ("fp:0.5", [False, False])):
        for seed in range(2):
            desk.paper("lsq", seed, mine, start=start).paper(
                "ste", seed, [True, False], start=start
            )
    found = desk.compare("lsq", "ste")
    assert sorted(
        (d.setting.partition(",")[0], d.difference.value, d.only_a, d.only_b) for d in found
    ) == [
        ("start fp:0.5", -0.5, 0, 2),
        ("start scratch", 0.5, 2, 0),
    ]


def test_full_precision_goes_with_every_format(desk: Desk) -> None:
    desk.paper("fp", 0, [True, True], fmt=None)
    for fmt in ("int2", "int4"):
        desk.paper("lsq", 0, [True, False], fmt=fmt)
    (found,) = desk.compare("fp", "lsq")
    assert found.formats == ("int2", "int4") and (found.only_a, found.only_b, found.seeds) == (
        2,
        0,
        1,
    )


def test_answers_whose_items_are_gone_are_compared_by_seed_alone(desk: Desk) -> None:
    for seed in range(2):
        desk.paper("lsq", seed, [True, True]).paper("ste", seed, [True, False])
    next(iter(desk.attempts.values())).folder.joinpath("downstream", "recall.jsonl").unlink()
    (found,) = desk.compare("lsq", "ste")
    assert (
        found.p_items is None
        and found.difference.value == 0.5
        and "by item" not in format_downstream_difference(found, "lsq", "ste")
    )


def test_items_that_are_another_definitions_by_now_are_not_counted(desk: Desk) -> None:
    desk.paper("lsq", 0, [True, True]).paper("ste", 0, [True, False])
    assert desk.compare("lsq", "ste")[0].only_a == 1
    desk.paper("lsq", 0, [False, True], sha=B)
    (found,) = qbench.results(desk.results).compare_downstream("lsq", "ste")
    assert found.p_items is None and found.difference.value == 0.5


@pytest.mark.parametrize(
    ("a", "b", "line"),
    [
        ("lsq", "lqs", "unknown entrant 'lqs'; did you mean lsq"),
        ("lsq", "lsq", "compared with itself"),
    ],
)
def test_wrong_names_are_one_line(desk: Desk, a: str, b: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        desk.paper("lsq", 0, [True]).compare(a, b)
