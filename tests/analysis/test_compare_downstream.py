"""Comparing two entrants downstream, from run folders like those that training writes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import qbench
from qbench.analysis.compare_downstream import (
    DownstreamDifference,
    format_downstream_difference,
)
from qbench.errors import UsageError
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig
from qbench.stats.comparisons import adjust_by_holm, mcnemar_test, paired_test
from qbench.store.database import Store
from tests.run_folders import fake_board_members, make_attempt, make_run_config

DEFINITION, OTHER_DEFINITION = "a" * 64, "b" * 64


class AnsweredRuns:
    """A results folder whose runs have answered downstream tasks."""

    def __init__(self, results: Path) -> None:
        self.results = results
        self.attempts: dict[str, Attempt] = {}
        self.cells: dict[str, RunConfig] = {}
        self.seeds = 1

    def answer(
        self,
        method: str,
        seed: int,
        correct: Sequence[bool],
        task: str = "recall",
        sha: str = DEFINITION,
        fmt: str | None = "int4",
        **options: Any,
    ) -> AnsweredRuns:
        """Write the answers of a run to a task; the run is created if there is none."""
        config = make_run_config(seed, method, fmt, **options)
        config = dataclasses.replace(config, method_params={})
        if config.key not in self.attempts:
            self.attempts[config.key] = make_attempt(self.results, config, score=0.1)
        cell = dataclasses.replace(config, seed=0)
        self.cells[cell.key], self.seeds = cell, max(self.seeds, seed + 1)
        attempt = self.attempts[config.key]
        file = f"downstream/{task}.jsonl"
        (attempt.folder / "downstream").mkdir(exist_ok=True)
        lines = [json.dumps({"item": n, "right": float(c)}) + "\n" for n, c in enumerate(correct)]
        (attempt.folder / file).write_text("".join(lines))
        accuracy = {"value": float(np.mean(correct)), "stderr": 0.0, "better": "higher"}
        entry = {
            "sha256": sha,
            "items": len(correct),
            "chance": 0.5,
            "ceiling": 1.0,
            "metric": "acc",
            "metrics": {"acc": accuracy},
            "file": file,
        }
        tasks = (attempt.read("downstream") or {"tasks": {}})["tasks"] | {task: entry}
        attempt.write(
            "downstream", {"downstream_version": 1, "artefact_sha256": "a" * 64, "tasks": tasks}
        )
        return self

    def compare(self, a: str, b: str) -> list[DownstreamDifference]:
        cells = [(config, None) for config in self.cells.values()]
        members = fake_board_members("b", cells, self.seeds)
        with Store(self.results) as store:
            assert not store.ingest_attempts(self.attempts.values())
            store.save_board(members)
            store.write_snapshot()
        return qbench.results(self.results).compare_downstream(a, b)


@pytest.fixture
def runs(tmp_path: Path) -> AnsweredRuns:
    return AnsweredRuns(tmp_path)


def draw_answers(share: float, seed: int) -> list[bool]:
    """Return random answers to 200 items, of which this share is expected to be correct."""
    return (np.random.default_rng(seed).random(200) < share).tolist()


def test_seeds_are_paired_for_the_difference_and_items_for_mcnemars_test(
    runs: AnsweredRuns,
) -> None:
    shares = {"recall": (0.9, 0.7), "nesting": (0.6, 0.6)}
    tests = {}
    for task, shares_of_task in shares.items():
        first, second = (
            [draw_answers(share, 10 * seed + side) for seed in range(3)]
            for side, share in enumerate(shares_of_task)
        )
        for method, answers in (("lsq", first), ("ste", second)):
            for seed, correct in enumerate(answers):
                runs.answer(method, seed, correct, task)
        tests[task] = mcnemar_test(np.concatenate(first), np.concatenate(second))
    nesting, recall = runs.compare("lsq", "ste")
    assert (nesting.task, recall.task, recall.seeds) == ("nesting", "recall", 3)
    assert (recall.only_a, recall.only_b) == (tests["recall"].first, tests["recall"].second)
    # Holm's correction is over both tasks.
    adjusted = adjust_by_holm([tests["recall"].p, tests["nesting"].p])
    assert [recall.p_items, nesting.p_items] == adjusted
    assert recall.p_items is not None and nesting.p_items is not None
    assert recall.p_items < 0.001 < nesting.p_items
    first_scores, second_scores = (
        {seed: float(np.mean(draw_answers(share, 10 * seed + side))) for seed in range(3)}
        for side, share in enumerate(shares["recall"])
    )
    assert recall.difference == paired_test(first_scores, second_scores).difference


def test_a_difference_is_printed_by_seed_and_by_item(runs: AnsweredRuns) -> None:
    for seed in range(2):
        runs.answer("lsq", seed, [True, True, False])
        runs.answer("ste", seed, [False, False, True])
    (recall,) = runs.compare("lsq", "ste")
    printed = format_downstream_difference(recall, "lsq", "ste")
    assert printed.startswith("digits/xs: recall (acc); int4\n  by seed: +0.333")
    assert "by item: 4 correct only for lsq, 2 correct only for ste, p = " in printed


def test_two_definitions_under_one_name_are_never_compared(runs: AnsweredRuns) -> None:
    runs.answer("lsq", 0, [True, False]).answer("ste", 0, [True, True], sha=OTHER_DEFINITION)
    assert runs.compare("lsq", "ste") == []


def test_runs_from_different_starts_are_compared_separately(runs: AnsweredRuns) -> None:
    for start, correct in (("scratch", [True, True]), ("fp:0.5", [False, False])):
        for seed in range(2):
            runs.answer("lsq", seed, correct, start=start)
            runs.answer("ste", seed, [True, False], start=start)
    assert sorted(
        (d.setting.partition(",")[0], d.difference.value, d.only_a, d.only_b)
        for d in runs.compare("lsq", "ste")
    ) == [("start fp:0.5", -0.5, 0, 2), ("start scratch", 0.5, 2, 0)]


def test_full_precision_is_compared_with_every_format(runs: AnsweredRuns) -> None:
    runs.answer("fp", 0, [True, True], fmt=None)
    for fmt in ("int2", "int4"):
        runs.answer("lsq", 0, [True, False], fmt=fmt)
    (difference,) = runs.compare("fp", "lsq")
    assert difference.formats == ("int2", "int4")
    assert (difference.only_a, difference.only_b, difference.seeds) == (2, 0, 1)


def test_answers_whose_items_are_gone_are_compared_by_seed_alone(runs: AnsweredRuns) -> None:
    for seed in range(2):
        runs.answer("lsq", seed, [True, True]).answer("ste", seed, [True, False])
    next(iter(runs.attempts.values())).folder.joinpath("downstream", "recall.jsonl").unlink()
    (difference,) = runs.compare("lsq", "ste")
    assert difference.p_items is None and difference.difference.value == 0.5
    assert "by item" not in format_downstream_difference(difference, "lsq", "ste")


def test_items_of_another_definition_are_not_counted(runs: AnsweredRuns) -> None:
    runs.answer("lsq", 0, [True, True]).answer("ste", 0, [True, False])
    assert runs.compare("lsq", "ste")[0].only_a == 1
    # The answers are replaced after the board was indexed.
    runs.answer("lsq", 0, [False, True], sha=OTHER_DEFINITION)
    (difference,) = qbench.results(runs.results).compare_downstream("lsq", "ste")
    assert difference.p_items is None and difference.difference.value == 0.5


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("lsq", "lqs", "unknown entrant 'lqs'; did you mean lsq"),
        ("lsq", "lsq", "compared with itself"),
    ],
)
def test_a_wrong_label_is_an_error_of_one_line(
    runs: AnsweredRuns, a: str, b: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        runs.answer("lsq", 0, [True]).compare(a, b)
