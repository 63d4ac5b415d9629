"""What a board's runs did downstream, from files that are written here as `evaluate` writes them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from qbench import stats
from qbench.errors import UsageError
from qbench.marks import Paper, compare, difference_in_words, in_words, tables


def paper(
    folder: Path, entrant: str, seed: int, right: Sequence[bool], task: str = "recall", sha: str = "a1b2c3d4", form: str = "int4"
) -> Paper:
    home = folder / f"{entrant}-{form}-{seed}-{task}-{sha}"
    (home / "downstream").mkdir(parents=True)
    lines = [{"item": n, "right": float(r)} for n, r in enumerate(right)]
    (home / "downstream" / f"{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"acc": {"value": float(np.mean(right)), "stderr": 0.0, "better": "higher"}}
    bounds = {"chance": 0.5, "ceiling": 1.0, "items": len(right), "metric": "acc"}
    return Paper(
        "grammar/xs", entrant, form, seed, home, task, {"sha256": sha, "file": f"downstream/{task}.jsonl", "metrics": metrics, **bounds}
    )


def answers(share: float, seed: int) -> list[bool]:
    return (np.random.default_rng(seed).random(200) < share).tolist()


def test_a_cell_is_the_mean_over_seeds_with_its_interval(tmp_path: Path) -> None:
    found = [paper(tmp_path, "lsq", seed, answers(0.8, seed)) for seed in range(4)]
    table = tables(found)[0]
    assert table.columns[0].name == "recall" and [row[:2] for row in table.rows] == [("lsq", "int4")]
    assert table.rows[0][2][0].score == stats.mean_interval([float(np.mean(answers(0.8, seed))) for seed in range(4)])
    assert "200 items, chance 0.5, ceiling 1" in in_words(table)


def test_two_definitions_under_one_name_are_two_columns_and_never_compared(tmp_path: Path) -> None:
    found = [paper(tmp_path, "lsq", 0, [True, False]), paper(tmp_path, "ste", 0, [True, True], sha="ffff0000")]
    assert [column.name for column in tables(found)[0].columns] == ["recall a1b2c3", "recall ffff00"]
    assert [[grade.seeds for grade in row[2]] for row in tables(found)[0].rows] == [[1, 0], [0, 1]]
    assert compare(found, "lsq", "ste") == []


def test_items_are_paired_and_corrected_over_tasks_and_seeds_are_the_unit_of_the_difference(tmp_path: Path) -> None:
    found, p = [], []
    for task, shares in (("recall", (0.9, 0.7)), ("nesting", (0.6, 0.6))):
        mine, theirs = ([answers(share, 10 * seed + side) for seed in range(3)] for side, share in enumerate(shares))
        found += [
            paper(tmp_path, name, seed, right, task) for name, each in (("a", mine), ("b", theirs)) for seed, right in enumerate(each)
        ]
        p.append(stats.mcnemar(np.concatenate(mine), np.concatenate(theirs)))
    nesting, recall = compare(found, "a", "b")
    assert (recall.only_a, recall.only_b) == (p[0].first, p[0].second) and (nesting.task, recall.seeds) == ("nesting", 3)
    assert [recall.p_items, nesting.p_items] == stats.holm([test.p for test in p]) and recall.p_items < 0.001 < (nesting.p_items or 0)  # type: ignore[operator]
    by_seed = [{seed: float(np.mean(answers(share, 10 * seed + side))) for seed in range(3)} for side, share in enumerate((0.9, 0.7))]
    assert recall.difference == stats.paired_test(*by_seed).difference
    words = difference_in_words(recall, "a", "b")
    assert "grammar/xs: recall; int4" in words and f"by item {recall.only_a} that only a has right, {recall.only_b} that only b" in words


def test_full_precision_goes_with_every_format(tmp_path: Path) -> None:
    found = [
        paper(tmp_path, "fp", 0, [True, True], form="fp32"),
        *(paper(tmp_path, "lsq", 0, [True, False], form=f) for f in ("int2", "int4")),
    ]
    assert compare(found, "fp", "lsq")[0].formats == ("int2", "int4")


@pytest.mark.parametrize(
    ("a", "b", "line"), [("lsq", "lqs", "unknown entrant 'lqs'; did you mean lsq"), ("lsq", "lsq", "compared with itself")]
)
def test_wrong_names_are_one_line(tmp_path: Path, a: str, b: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        compare([paper(tmp_path, "lsq", 0, [True])], a, b)
