"""Downstream scores on boards: in the run folders, the store, runs.csv and every table."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from jsonschema import Draft7Validator
from rich.console import Console

import qbench
from qbench.boards.board import Board, DownstreamTask, Section
from qbench.boards.board_text import list_downstream_lines
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.downstream.evaluate import evaluate_run
from qbench.engines.local import LocalEngine
from qbench.errors import QbenchError
from qbench.execution.assignment import Execution
from qbench.publish.site import read_site_schema as site_schema
from qbench.runs.attempts import NEW_ANSWERS_FOLDER, Attempt, mark_new_answers
from qbench.stats import intervals
from qbench.store import file_rows, schema
from qbench.store.consistency import check_store, rebuild_store
from qbench.store.database import Store
from qbench.store.lock import acquire_lock, release_lock
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import list_plugin_modules, parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.downstream_questions import ask_finished_runs
from qbench.sweeps.status import read_sweep_status
from qbench.terminal.board import show_board
from qbench.terminal.plan import show_plan
from tests import browser, synthetic_sites
from tests.run_folders import fake_board_members, make_attempt, make_run_config
from tests.synthetic_runs import DEFAULTS, make_failed_run, make_frame, make_runs

A, B = "a" * 64, "b" * 64


def make_answer_fields(value: float | None, sha: str = A, **more: Any) -> dict[str, Any]:
    """Return what a row stores of one task."""
    base = {
        "sha256": sha,
        "items": 200,
        "metric": "acc",
        "value": value,
        "stderr": 0.01,
        "better": "higher",
        "chance": 0.5,
        "ceiling": 1.0,
    }
    return base | more


def add_answers(
    rows: list[dict[str, Any]], values: list[float | None], sha: str = A, task: str = "recall"
) -> list[dict[str, Any]]:
    return [
        row | {"downstream": json.dumps({task: make_answer_fields(value, sha)})}
        for row, value in zip(rows, values, strict=True)
    ]


def write_answers(
    attempt: Attempt, tasks: Mapping[str, Mapping[str, Any]], artefact: str = "a" * 64
) -> None:
    """Write downstream.json as `evaluate_run` does."""
    entries = {
        name: {
            **one,
            "metrics": {one["metric"]: {k: one[k] for k in ("value", "stderr", "better")}},
            "asked_as": [name],
        }
        for name, one in tasks.items()
    }
    attempt.write(
        "downstream", {"downstream_version": 1, "artefact_sha256": artefact, "tasks": entries}
    )


def build_small_board(*parts: list[dict[str, Any]]) -> Board:
    return build_board(make_frame(*parts), defaults=DEFAULTS)


def list_scores(section: Section) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(line.row.entrant, line.format): line.scores for line in list_downstream_lines(section)}


# ---- the arithmetic ----


def test_a_cell_is_the_mean_over_its_seeds_with_its_t_interval() -> None:
    values = [0.8, 0.82, 0.75]
    (section,) = build_small_board(
        add_answers(make_runs("fp", None, [0.1] * 3), [0.9] * 3),
        add_answers(make_runs("ste", "int4", [0.2, 0.21, 0.19]), values),
    ).sections
    (exam,) = section.downstream
    assert exam == DownstreamTask(f"recall acc {A}", "recall", A, "acc", "higher", 200, 0.5, 1.0)
    grade = next(row for row in section.rows if row.entrant == "ste").cells[0].downstream[exam.id]
    assert grade.score == intervals.mean_interval(values) and grade.seeds == 3
    assert list_scores(section) == {
        ("fp", "fp32"): ("0.900 ± 0.000",),
        ("ste", "int4"): ("0.790 ± 0.090",),
    }


def test_another_definition_under_the_same_name_is_another_column() -> None:
    ste = make_runs("ste", "int4", [0.2, 0.21, 0.19])
    (section,) = build_small_board(
        add_answers(ste[:2], [0.8, 0.82]),
        add_answers(ste[2:], [0.1], B),
        add_answers(make_runs("fp", None, [0.1]), [0.9], B),
    ).sections
    assert [(exam.task, exam.sha256) for exam in section.downstream] == [
        ("recall", A),
        ("recall", B),
    ]
    assert list_scores(section)["ste", "int4"] == (
        "0.810 ± 0.127 (2 of 3 seeds)",
        "0.100 (1 of 3 seeds)",
    )
    assert list_scores(section)["fp", "fp32"] == ("not asked", "0.900")


def test_starts_and_recipes_are_sections_of_their_own() -> None:
    scratch, later = (
        add_answers(make_runs("ste", "int4", [0.2, 0.3], start=start), [v, v])
        for start, v in (("scratch", 0.6), ("fp:0.5", 0.9))
    )
    longer = add_answers(
        make_runs("ste", "int4", [0.2, 0.3], recipe='{"steps": 600}', steps=600), [0.7, 0.7]
    )
    found = {
        section.setting: list_scores(section)["ste", "int4"]
        for section in build_small_board(scratch, later, longer).sections
    }
    assert (
        sorted(word for (word,) in found.values())
        == ["0.600 ± 0.000", "0.700 ± 0.000", "0.900 ± 0.000"]
        and len(found) == 3
    )


def test_a_failed_cell_keeps_its_line_and_its_reason() -> None:
    lost = [make_failed_run("lotion", "int4", seed) for seed in range(2)]
    (section,) = build_small_board(
        add_answers(make_runs("ste", "int4", [0.2, 0.3]), [0.6, None]),
        lost,
        make_runs("pege", "int4", [0.2, 0.2]),
    ).sections
    assert list_scores(section)["lotion", "int4"] == ("diverged",) and list_scores(section)[
        "pege", "int4"
    ] == ("not asked",)
    assert list_scores(section)["ste", "int4"] == ("0.600 (1 of 2 seeds)",)


def test_answers_of_a_run_without_a_score_do_not_count() -> None:
    (section,) = build_small_board(
        add_answers(make_runs("ste", "int4", [0.2, None]), [0.6, 0.9])
    ).sections
    assert list_scores(section)["ste", "int4"] == ("0.600 (1 of 2 seeds)",)


def test_answers_are_those_of_the_learning_rate_that_is_shown() -> None:
    slow, fast = (
        make_runs("ste", "int4", [score] * 2, lr=lr) for score, lr in ((0.5, 0.001), (0.2, 0.01))
    )
    (section,) = build_small_board(
        add_answers(slow, [0.1, 0.1]), add_answers(fast, [0.9, 0.9])
    ).sections
    assert list_scores(section)["ste", "int4"] == ("0.900 ± 0.000",)


def test_a_retired_version_keeps_its_answers() -> None:
    new = add_answers(
        [{**row, "method_version": 2} for row in make_runs("ste", "int4", [0.2, 0.3])], [0.6, 0.6]
    )
    old = add_answers(
        [{**row, "retired": "wrong"} for row in make_runs("ste", "int4", [0.4, 0.4])], [0.4, 0.4], B
    )
    (section,) = build_small_board(
        make_runs("fp", None, [0.1, 0.1]), make_runs("rtn", "int4", [0.5, 0.5]), new, old
    ).sections
    assert [exam.sha256 for exam in section.downstream] == [A, B]
    assert list_scores(section)["ste, version 1, retired", "int4"] == ("not asked", "0.400 ± 0.000")
    assert list_scores(section)["ste", "int4"] == ("0.600 ± 0.000", "not asked")


# ---- runs.csv ----


def test_a_board_with_many_answers_is_built_again_from_runs_csv() -> None:
    many = json.dumps(
        {f"task {n}, of many": make_answer_fields(n / 300, f"{n:064x}") for n in range(300)}
    )
    rows = make_frame(
        add_answers(make_runs("fp", None, [0.1, 0.2]), [1 / 3, 0.1 + 0.2]),
        [row | {"downstream": many} for row in make_runs("ste", "int4", [0.2, 0.3])],
    )
    board, text = build_board(rows, defaults=DEFAULTS), runs_csv(rows)
    again = read_runs_csv(io.StringIO(text))
    assert build_board(again, defaults=DEFAULTS) == board and runs_csv(again) == text
    assert len(board.sections[0].downstream) == 301 and len(many) > 60_000


def test_an_older_runs_csv_is_read_without_answers() -> None:
    rows = make_frame(make_runs("fp", None, [0.1, 0.2]), make_runs("ste", "int4", [0.2, 0.3]))
    assert "downstream" not in rows
    board = build_board(read_runs_csv(io.StringIO(runs_csv(rows))), defaults=DEFAULTS)
    assert (
        board.sections[0].downstream == ()
        and "Downstream" not in to_markdown(board)
        and "downstream" not in to_csv(board)
    )


@pytest.mark.parametrize("word", ["no JSON", "[]", '{"recall": 3}', '{"recall": {"value": 0.5}}'])
def test_a_column_without_answers_is_a_one_line_error(word: str) -> None:
    with pytest.raises(QbenchError, match=r"^the column downstream holds no answers: "):
        build_small_board([row | {"downstream": word} for row in make_runs("ste", "int4", [0.2])])


# ---- the store ----


@pytest.fixture
def filled_store(tmp_path: Path) -> Path:
    """Return a results folder with two runs of a board; the first has answers."""
    attempts = [make_attempt(tmp_path, make_run_config(seed), score=0.1) for seed in range(2)]
    write_answers(attempts[0], {"recall": make_answer_fields(0.6)})
    with Store(tmp_path) as opened:
        assert not opened.ingest_attempts(attempts)
        opened.save_board(fake_board_members("b", [(make_run_config(), None)], 2))
        opened.write_snapshot()
    return tmp_path


def get_attempt(results: Path, seed: int) -> Attempt:
    key = make_run_config(seed).key
    return Attempt(results / "runs" / key[:2] / key / "1")


def read_shown_scores(results: Path) -> list[tuple[str, ...]]:
    return list(list_scores(qbench.results(results).board("b").sections[0]).values())


def test_answers_are_ingested_with_their_runs(filled_store: Path) -> None:
    (row,) = qbench.results(filled_store).downstream.to_dict("records")
    assert row == {
        "key": make_run_config().key,
        "attempt": 1,
        "task": "recall",
        **make_answer_fields(0.6),
    }
    assert (
        read_shown_scores(filled_store) == [("0.600 (1 of 2 seeds)",)]
        and check_store(filled_store).agrees
    )


def test_later_answers_are_on_the_board_when_it_is_read_again(filled_store: Path) -> None:
    write_answers(
        get_attempt(filled_store, 1),
        {"recall": make_answer_fields(0.8), "nesting": make_answer_fields(0.5, B)},
    )
    mark_new_answers(get_attempt(filled_store, 1))
    assert read_shown_scores(filled_store) == [("0.500 (1 of 2 seeds)", "0.700 ± 1.271")]
    assert not list((filled_store / NEW_ANSWERS_FOLDER).iterdir())
    write_answers(get_attempt(filled_store, 1), {"recall": make_answer_fields(0.6)})
    mark_new_answers(get_attempt(filled_store, 1))
    assert (
        read_shown_scores(filled_store) == [("0.600 ± 0.000",)] and check_store(filled_store).agrees
    )


def test_while_the_store_is_locked_the_board_is_unchanged_and_the_writer_ingests_answers(
    filled_store: Path,
) -> None:
    write_answers(get_attempt(filled_store, 1), {"recall": make_answer_fields(0.6)})
    lock = acquire_lock(filled_store)
    mark_new_answers(get_attempt(filled_store, 1))
    assert read_shown_scores(filled_store) == [("0.600 (1 of 2 seeds)",)]
    release_lock(lock)
    with Store(filled_store) as opened:
        write_answers(get_attempt(filled_store, 1), {"recall": make_answer_fields(0.7)})
        mark_new_answers(get_attempt(filled_store, 1))
        opened.write_snapshot()
    assert read_shown_scores(filled_store) == [("0.650 ± 0.635",)]


def test_unannounced_answers_are_found_by_the_check_and_ingested_by_a_rebuild(
    filled_store: Path,
) -> None:
    write_answers(get_attempt(filled_store, 1), {"recall": make_answer_fields(0.6)})
    report = check_store(filled_store)
    assert report.different == [f"{make_run_config(1).key}/1"] and not report.agrees
    rebuild_store(filled_store)
    assert check_store(filled_store).agrees and read_shown_scores(filled_store) == [
        ("0.600 ± 0.000",)
    ]


def test_answers_of_another_artefact_are_ignored(filled_store: Path) -> None:
    write_answers(
        get_attempt(filled_store, 0), {"recall": make_answer_fields(0.6)}, artefact="f" * 64
    )
    mark_new_answers(get_attempt(filled_store, 0))
    assert read_shown_scores(filled_store) == [] and check_store(filled_store).agrees


def test_an_older_store_ingests_answers_when_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = [make_attempt(tmp_path, make_run_config(seed), score=0.1) for seed in range(2)]
    with monkeypatch.context() as before:
        before.setattr(
            schema, "MIGRATIONS", schema.MIGRATIONS[: schema.FIRST_VERSION_WITH_ANSWERS - 1]
        )
        before.setattr(Store, "refresh_answers", lambda self: None)
        before.setattr(
            file_rows,
            "RUN_COLUMNS",
            tuple(column for column in file_rows.RUN_COLUMNS if column.name != "company"),
        )  # it came after answers
        with Store(tmp_path) as opened:
            opened.ingest_attempts(attempts)
            opened.save_board(fake_board_members("b", [(make_run_config(), None)], 2))
            opened.write_snapshot()
    write_answers(attempts[1], {"recall": make_answer_fields(0.8)})
    with Store(tmp_path) as opened:
        opened.write_snapshot()
    assert (
        read_shown_scores(tmp_path) == [("0.800 (1 of 2 seeds)",)] and check_store(tmp_path).agrees
    )


# ---- what is printed ----


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Return the runs of a small board with answers to two tasks."""
    found = synthetic_sites.make_ranked_runs(seeds=3, methods=("rtn", "ste"), tasks=("grammar",))
    recall = [
        json.dumps(
            {"recall": make_answer_fields(0.5 + n / 100), "<i>nesting": make_answer_fields(0.4, B)}
        )
        for n in range(len(found))
    ]
    return found.assign(downstream=recall)


def test_markdown_csv_and_json_contain_the_scores(rows: pd.DataFrame) -> None:
    board = synthetic_sites.build_board_and_summary(rows)[0]
    page = to_markdown(board)
    assert (
        "| method | format | &lt;i\\>nesting<br>acc, higher is better<br>200 items, chance 0.5, ceiling 1<br>definition bbbbbbbb |"
        in page
    )
    assert (
        "| fp | fp32 | 0.400 ± 0.000 | 0.510 ± 0.025 |" in page
        and "which its hash identifies" in page
    )
    cells = pd.read_csv(io.StringIO(to_csv(board)))
    column = f"downstream recall acc {A[:16]}"
    assert list(cells[f"{column} mean"]) == pytest.approx([0.51, 0.54, 0.57, 0.60, 0.63]) and set(
        cells[f"{column} seeds"]
    ) == {3}
    assert list(map(str, cells))[-8:] == [
        f"{name} {word}"
        for name in (f"downstream <i>nesting acc {B[:16]}", column)
        for word in ("mean", "low", "high", "seeds")
    ]
    cell = board.to_json()["sections"][0]["rows"][0]["cells"][0]
    assert cell["downstream"][f"recall acc {A}"]["seeds"] == 3


def test_a_narrow_terminal_shows_every_task_in_pieces(rows: pd.DataFrame) -> None:
    for width in (50, 200):
        console = Console(width=width, file=io.StringIO())
        show_board(synthetic_sites.build_board_and_summary(rows)[0], console)
        printed = console.file.getvalue()  # type: ignore[attr-defined]
        after = printed.partition("Downstream scores of the packed artefacts:")[2]
        assert (
            after.count("method") == (2 if width == 50 else 1) + after.count("method's")
            and "0.630 ± 0.025" in after
        )
        assert max(map(len, printed.splitlines())) <= width


def test_a_site_has_the_table_in_its_data_and_on_its_page(rows: pd.DataFrame) -> None:
    files = synthetic_sites.make_site_files(rows)
    doc = json.loads(files["board.json"])
    Draft7Validator(json.loads(site_schema())).validate(doc)
    assert [exam["task"] for exam in doc["sections"][0]["downstream"]] == ["<i>nesting", "recall"]
    assert doc["sections"][0]["rows"][0]["cells"][0]["downstream"][f"recall acc {A}"] == {
        "score": {"value": 0.51, "low": pytest.approx(0.485158623), "high": pytest.approx(0.534841377)}, "seeds": 3,
    }  # fmt: skip
    page = files["index.html"].decode()
    table = page[page.index('<table class="downstream">') :].partition("</table>")[0]
    assert "&lt;i&gt;nesting" in table and "<i>nesting" not in page and "0.510 ± 0.025" in table
    assert files == synthetic_sites.make_site_files(rows.sample(frac=1, random_state=0)), (
        "the same to the byte in any order"
    )
    assert (
        '<table class="downstream">'
        not in synthetic_sites.make_site_files(rows.drop(columns="downstream"))[
            "index.html"
        ].decode()
    )


def test_the_filters_of_the_page_apply_and_the_table_is_shown_without_scripts(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    browser.require_browser()
    (tmp_path / "index.html").write_bytes(synthetic_sites.make_site_files(rows)["index.html"])
    with browser.start_browser() as started:
        for scripts in (True, False):
            seen = browser.open_page(started, tmp_path / "index.html", java_script_enabled=scripts)
            seen.page.goto((tmp_path / "index.html").as_uri())
            shown = seen.page.locator("table.downstream tbody tr")
            assert [shown.nth(i).is_visible() for i in range(shown.count())] == [True] * 5
            if scripts:
                seen.page.locator("#filters .key button", has_text="ste").click()
                seen.page.locator("#filters button", has_text="int2").click()
                assert [
                    shown.nth(i).inner_text().split()[:2]
                    for i in range(5)
                    if shown.nth(i).is_visible()
                ] == [
                    ["fp", "fp32"],
                    ["rtn", "int4"],
                ]
            assert not seen.messages


# ---- real runs ----

FILE = """
board = "asked"
methods = ["fp", "rtn"]
seeds = 2
formats = ["int4"]
recipe = { steps = 3 }
tasks = ["grammar", "digits"]
"""


def make_sweep(*names: str) -> SweepConfig:
    return parse_sweep(f"{FILE}[downstream]\ntasks = {json.dumps(names)}\n", "asked.toml")


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(1, "cpu", list_plugin_modules(make_sweep("grammar_recall")))
    engine.start()
    yield engine
    engine.close()


def read_last_plan_line(results: Path, *names: str) -> str:
    console = Console(width=120, file=io.StringIO())
    show_plan(read_sweep_status(make_sweep(*names), results), console)
    return str(console.file.getvalue()).splitlines()[-1].strip()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_answers_of_finished_runs_are_on_the_board_and_in_runs_csv(
    tmp_path: Path, engine: LocalEngine
) -> None:
    assert run_sweep(make_sweep("grammar_recall"), tmp_path, engine).code == 0
    found = qbench.results(tmp_path)
    assert not any(
        section.downstream for section in found.board().sections
    ) and "downstream" not in found.board_runs("asked")
    assert (
        read_last_plan_line(tmp_path, "grammar_recall")
        == "Downstream tasks to be evaluated: grammar_recall for 4 finished runs"
    )
    assert (
        ask_finished_runs(
            make_sweep("grammar_recall"), tmp_path, engine, Execution(device="cpu")
        ).failures
        == []
    )
    assert "asked" not in read_last_plan_line(tmp_path, "grammar_recall")

    files = {
        path.parent: json.loads(path.read_text())["tasks"]["grammar_recall"]
        for path in tmp_path.rglob("downstream.json")
    }
    seeds = {
        spec["seed"]
        for path in files
        if (spec := json.loads((path / "spec.json").read_text()))["method"] == "rtn"
    }
    values = [
        entry["metrics"]["acc"]["value"]
        for path, entry in files.items()
        if json.loads((path / "spec.json").read_text())["method"] == "rtn"
    ]
    board = found.board()
    digits, grammar = board.sections
    assert digits.downstream == () and [exam.task for exam in grammar.downstream] == [
        "grammar_recall"
    ]
    grade = (
        next(row for row in grammar.rows if row.method == "rtn")
        .cells[0]
        .downstream[grammar.downstream[0].id]
    )
    assert (
        grade.score is not None
        and math.isclose(grade.score.value, sum(values) / 2)
        and grade.seeds == len(seeds) == 2
    )
    assert found.cells()[
        f"downstream grammar_recall acc {grammar.downstream[0].sha256[:16]} seeds"
    ].dropna().tolist() == [2, 2]

    again = read_runs_csv(io.StringIO(runs_csv(found.board_runs("asked"))))
    assert build_board(again, defaults=read_defaults(tmp_path), title="asked") == board

    one = min(path.parent.name for path in files)
    evaluate_run(tmp_path, one, ["grammar_nesting"], "cpu")
    later = qbench.results(tmp_path).board().sections[1]
    assert [exam.task for exam in later.downstream] == ["grammar_nesting", "grammar_recall"]
    assert (
        sum(
            cell.downstream[later.downstream[0].id].seeds
            for row in later.rows
            for cell in row.cells
            if later.downstream[0].id in cell.downstream
        )
        == 1
    )
    assert (
        read_last_plan_line(tmp_path, "grammar_nesting")
        == "Downstream tasks to be evaluated: grammar_nesting for 3 finished runs"
    )
    assert check_store(tmp_path).agrees


def read_defaults(results: Path) -> Any:
    return json.loads(next((results / "boards").glob("*.json")).read_text())["defaults"]
