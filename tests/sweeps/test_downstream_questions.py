"""Downstream questions of a sweep: finished runs are asked once, and never trained again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qbench.downstream.quiz_definition import hash_json
from qbench.engines.local import LocalEngine
from qbench.errors import UsageError
from qbench.execution.assignment import Execution
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import list_plugin_modules, parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.downstream_questions import (
    QuestionSummary,
    ask_finished_runs,
    check_downstream_names,
    find_unanswered,
    load_quizzes,
    make_failure_error,
    questions_for_run,
    quiz_hashes,
)
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import read_sweep_status

FILE = """
board = "asked"
methods = ["fp", "rtn"]
formats = ["int4"]
recipe = {{ steps = 3 }}
tasks = ["grammar", "digits"]
[downstream]
tasks = {names}
"""


def make_config(*names: str, more: str = "") -> SweepConfig:
    return parse_sweep(FILE.format(names=json.dumps(names)) + more, "asked.toml")


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(1, "cpu", list_plugin_modules(make_config("grammar_recall")))
    engine.start()
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, engine: LocalEngine) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    assert run_sweep(make_config("grammar_recall"), folder, engine).code == 0
    return folder


def read_answered_tasks(results: Path) -> dict[str, list[str]]:
    return {
        str(path.parent): list(json.loads(path.read_text())["tasks"])
        for path in results.rglob("downstream.json")
    }


def ask(sweep: SweepConfig, results: Path, engine: LocalEngine) -> QuestionSummary:
    """Ask the finished runs on the CPU."""
    return ask_finished_runs(sweep, results, engine, Execution(device="cpu"))


@pytest.mark.slow
def test_finished_runs_are_asked_once_and_not_trained_again(
    results: Path, engine: LocalEngine
) -> None:
    before = {path: path.read_bytes() for path in results.rglob("result.json")}
    one = make_config("grammar_recall")
    assert vars(ask(one, results, engine)) == {"asked": 2, "failures": []}
    assert list(read_answered_tasks(results).values()) == [["grammar_recall"]] * 2, (
        "only the language models are asked"
    )
    assert ask(one, results, engine).asked == 0
    two = make_config("grammar_recall", "grammar_nesting")
    assert {pending.names for pending in find_unanswered(two, results)} == {("grammar_nesting",)}
    assert ask(two, results, engine).asked == 2
    answered = list(read_answered_tasks(results).values())
    assert answered == [["grammar_nesting", "grammar_recall"]] * 2
    assert {path: path.read_bytes() for path in results.rglob("result.json")} == before


@pytest.mark.slow
def test_only_answers_to_an_old_definition_are_asked_again(
    results: Path, engine: LocalEngine
) -> None:
    sweep_file = make_config("grammar_recall")
    ask(sweep_file, results, engine)
    assert not list(find_unanswered(sweep_file, results))
    files = sorted(results.rglob("downstream.json"))
    before = [file.read_bytes() for file in files]
    old = json.loads(before[0])
    recall = old["tasks"]["grammar_recall"]
    files[0].write_text(
        json.dumps(
            {
                **old,
                "tasks": {
                    **old["tasks"],
                    "grammar_recall": {**recall, "sha256": "0" * 64, "version": 0},
                },
            }
        )
    )
    (pending,) = find_unanswered(sweep_file, results)
    assert (pending.attempt.folder, pending.names) == (files[0].parent, ("grammar_recall",))
    assert {line.unanswered for line in read_sweep_status(sweep_file, results)} == {
        (),
        ("grammar_recall",),
    }
    assert vars(ask(sweep_file, results, engine)) == {
        "asked": 1,
        "failures": [],
    }
    assert [file.read_bytes() for file in files] == before and not list(
        find_unanswered(sweep_file, results)
    )


def test_quiz_hashes_agree_with_those_that_lm_eval_tasks_get() -> None:
    from qbench.downstream import lm_eval_tasks

    for run in make_plan(make_config()).runs.values():
        current_hash = quiz_hashes(run.config)
        quizzes = load_quizzes(run.config.task, run.config.task_params)
        loaded = lm_eval_tasks.load_tasks(list(quizzes), quizzes)
        assert [current_hash(task.name) for task in loaded] == [task.sha256 for task in loaded]
        for task in loaded:
            items = [dict(doc) for doc in task.task.eval_docs]
            assert task.sha256 == hash_json([task.name, quizzes[task.name].version, items])
        assert current_hash("lambada") is None


@pytest.mark.slow
def test_an_unanswerable_question_is_reported_and_fails_no_run(
    results: Path, engine: LocalEngine, tmp_path: Path
) -> None:
    (tmp_path / "odd.yaml").write_text(
        "task: odd\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
    )
    found = ask(make_config(str(tmp_path / "odd.yaml")), results, engine)
    assert found.asked == 2 and len(found.failures) == 2
    title, message = found.failures[0]
    assert title == "fp grammar/xs seed 0" and message.startswith(
        f"{tmp_path / 'odd.yaml'}: QbenchError: downstream task"
    )
    assert str(make_failure_error(found.failures)).endswith(
        "(and 1 more run); the scores stand, and the next sweep asks again"
    )
    assert {json.loads(path.read_text())["state"] for path in results.rglob("result.json")} == {
        "ok"
    }


def test_downstream_questions_change_no_key() -> None:
    assert list(make_plan(make_config()).runs) == list(
        make_plan(make_config("grammar_recall")).runs
    )


def test_questions_of_a_task_table_replace_those_of_the_sweep() -> None:
    own = '[[task]]\nname = "grammar"\nrecipe = { steps = 4 }\ndownstream = ["grammar_nesting"]\n'
    file = make_config("grammar_recall", more=own).text.replace(
        'tasks = ["grammar", "digits"]', 'tasks = ["digits"]'
    )
    chosen = parse_sweep(file, "asked.toml")
    configs = {run.config.task: run.config for run in make_plan(chosen).runs.values()}
    assert questions_for_run(chosen, configs["grammar"]) == ("grammar_nesting",)
    assert questions_for_run(chosen, configs["digits"]) == ()


def test_tables_of_one_task_must_ask_the_same_questions() -> None:
    """A run does not know its table, so two tables with different lists are refused."""
    tables = "".join(
        f'[[task]]\nname = "grammar"\nsizes = ["{size}"]\ndownstream = [{asked}]\n'
        for size, asked in (("xs", '"grammar_recall"'), ("s", ""))
    )
    file = FILE.split("[downstream]")[0].format().replace('tasks = ["grammar", "digits"]\n', "")
    with pytest.raises(
        UsageError,
        match=r"\[\[task\]\] 1: downstream: all tables of the task grammar must ask the same qu",
    ):
        check_downstream_names(parse_sweep(file + tables, "asked.toml"))
    check_downstream_names(
        parse_sweep(file + tables.replace("[]", '["grammar_recall"]'), "asked.toml")
    )


@pytest.mark.parametrize(
    ("task", "more", "line"),
    [
        (
            "digits",
            '[downstream]\ntasks = ["arc_easy"]',
            r"asked.toml: \[downstream\]: no task here has downstream questions: digits trains no",
        ),
        (
            "grammar",
            '[[task]]\nname = "digits"\ndownstream = ["arc_esy"]',
            r"\[\[task\]\] 1: the task digits has no downstream questions",
        ),
    ],
)
def test_a_task_without_a_language_model_has_no_questions(task: str, more: str, line: str) -> None:
    file = FILE.split("tasks =")[0].format() + f'tasks = ["{task}"]\n{more}\n'
    with pytest.raises(UsageError, match=line) as error:
        check_downstream_names(parse_sweep(file, "asked.toml"))
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            'tasks = ["grammar_nestin"]',
            r"asked.toml: \[downstream\]: unknown downstream task 'grammar_nestin';"
            r" did you mean grammar_nesting",
        ),
        (
            'task = ["grammar_nesting"]',
            r'asked.toml: \[downstream\]: write tasks = \["name"\] in it, and nothing else',
        ),
        ("tasks = 3", r"asked.toml: \[downstream\]: tasks: "),
    ],
)
def test_errors_in_the_file_are_one_line(text: str, line: str) -> None:
    with pytest.raises(UsageError, match=line):
        check_downstream_names(
            parse_sweep(
                FILE.split("[downstream]")[0].format() + f"[downstream]\n{text}\n", "asked.toml"
            )
        )
