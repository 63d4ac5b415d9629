"""Artefacts of finished runs, asked downstream tasks: what is asked, and what is kept."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from qbench_tasks.grammar_rules import ID

from qbench.api.language_model import Question
from qbench.artefact.export_folder import export_run
from qbench.cli.options import cli
from qbench.downstream import lm_eval_tasks
from qbench.downstream.evaluate import evaluate_folder, evaluate_run
from qbench.errors import QbenchError, UsageError
from qbench.runs.attempts import Attempt
from qbench.runs.downstream_answers import list_unanswered_tasks, read_answers, read_item_results
from tests.downstream.quiz_models import QUIZZES, own_dataset_cache, write_task_file
from tests.language_runs import LanguageRuns, language_runs, load_problem

__all__ = ["language_runs", "own_dataset_cache"]


def read_lines(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return the items that a folder keeps of a downstream task."""
    text = (folder / "downstream" / f"{task}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---- the numbers ----


def test_the_metric_is_the_mean_of_the_kept_items(language_runs: LanguageRuns) -> None:
    runs = language_runs
    answers = evaluate_run(runs.results, runs.int4, ["grammar_recall"], "cpu", force=True)
    entry, folder = answers["tasks"]["grammar_recall"], runs.folder(runs.int4)
    lines = [json.loads(line) for line in (folder / entry["file"]).read_text().splitlines()]
    right = read_item_results(folder, entry)
    assert right is not None and len(right) == entry["items"] == 400
    metric = entry["metrics"]["acc"]
    assert metric["value"] == np.mean(right)
    assert math.isclose(metric["stderr"], np.std(right, ddof=1) / 20)
    assert right == [int(np.argmax(line["nats"])) == line["target"] for line in lines]


def test_the_artefact_is_asked_and_not_the_trained_network(language_runs: LanguageRuns) -> None:
    runs = language_runs
    evaluate_run(runs.results, runs.int4, ["grammar_nesting"], "cpu", force=True)
    question = QUIZZES["grammar_nesting"].make()[3]
    assert isinstance(question, Question)
    kept = read_lines(runs.folder(runs.int4), "grammar_nesting")[3]
    tokens = torch.tensor([[0, *(ID[word] for word in question.context.split())]])
    for key, agrees in ((runs.int4, True), (runs.fp, False)):
        with torch.no_grad():
            log_probs = torch.log_softmax(load_problem(runs, key).model(tokens)[0, -1], -1)
        nats = [float(log_probs[ID[choice]]) for choice in question.choices]
        assert np.allclose(nats, kept["nats"], atol=1e-5) == agrees


def test_an_exported_folder_answers_as_its_run_does(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    pytest.importorskip(
        "transformers",
        reason="Hugging Face's transformers are not installed: pip install 'qbench[hf]'",
    )
    runs, names = language_runs, ["grammar_agreement", "grammar_recall"]
    export_run(runs.results, runs.int4, "hf", tmp_path / "hf")
    of_folder = evaluate_folder(tmp_path / "hf", names, "cpu")["tasks"]
    of_run = evaluate_run(runs.results, runs.int4, names, "cpu")["tasks"]
    for name in names:
        assert of_folder[name]["sha256"] == of_run[name]["sha256"]
        nats_of_folder, nats_of_run = (
            [line["nats"] for line in read_lines(folder, name)]
            for folder in (tmp_path / "hf", runs.folder(runs.int4))
        )
        assert np.allclose(nats_of_folder, nats_of_run, atol=3e-5)


# ---- names ----


def test_a_task_file_is_found_by_its_path_or_by_its_folder(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    runs, file = language_runs, write_task_file(tmp_path / "mine")

    def ask(path: Path, force: bool = False) -> dict[str, Any]:
        answers = evaluate_run(runs.results, runs.fp, [str(path)], "cpu", force=force)
        return answers["tasks"]["pets"]  # type: ignore[no-any-return]

    by_path, by_folder = ask(file), ask(tmp_path / "mine", force=True)
    assert (by_path["items"], by_path["version"]) == (3, 3)
    assert list(by_path["metrics"]) == ["acc", "acc_norm"]
    assert {**by_folder, "asked_as": by_path["asked_as"]} == by_path
    attempt = Attempt(runs.folder(runs.fp))
    names = [str(file), "pets", "grammar_recall"]
    assert list_unanswered_tasks(attempt, names) == ["grammar_recall"]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (["grammar_recal"], "unknown downstream task 'grammar_recal'; did you mean grammar_recall"),
        (["no/such.yaml"], "no/such.yaml: no such task file or folder"),
        (
            [],
            "no downstream task is named;"
            " here are grammar_agreement, grammar_nesting, grammar_recall",
        ),
    ],
)
def test_a_wrong_name_is_an_error_of_one_line_before_anything_is_written(
    language_runs: LanguageRuns, names: list[str], line: str
) -> None:
    runs = language_runs
    before = sorted(runs.folder(runs.fp).rglob("*"))
    with pytest.raises(UsageError, match=line) as error:
        asked = ["grammar_nesting", *names] if names else []
        evaluate_run(runs.results, runs.fp, asked, "cpu", force=True)
    assert "\n" not in str(error.value)
    assert sorted(runs.folder(runs.fp).rglob("*")) == before


@pytest.mark.slow
def test_a_missing_network_is_an_error_of_one_line_and_names_of_the_hub_are_known(
    language_runs: LanguageRuns, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = language_runs
    message = "unknown downstream task 'arc_eazy'; did you mean arc_easy"
    with pytest.raises(UsageError, match=message):
        evaluate_run(runs.results, runs.fp, ["arc_eazy"], "cpu")
    monkeypatch.setattr(lm_eval_tasks.datasets.config, "HF_HUB_OFFLINE", True)
    message = (
        "downstream task arc_easy: its data is not on this machine, and the hub cannot be reached"
    )
    with pytest.raises(QbenchError, match=f"^{message}"):
        evaluate_run(runs.results, runs.fp, ["arc_easy"], "cpu")


def test_a_missing_artefact_or_another_one_is_an_error_of_one_line(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    shutil.copytree(language_runs.results, tmp_path / "r")
    runs = dataclasses.replace(language_runs, results=tmp_path / "r")
    weights = runs.folder(runs.fp) / "export" / "weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(QbenchError, match="is not the artefact that was scored"):
        evaluate_run(runs.results, runs.fp, ["grammar_recall"], "cpu")
    shutil.rmtree(weights.parent)
    with pytest.raises(QbenchError, match="its artefact is gone"):
        evaluate_run(runs.results, runs.fp, ["grammar_recall"], "cpu")
    with pytest.raises(UsageError, match="task digits trains no language model"):
        evaluate_run(runs.results, runs.digits, ["grammar_recall"], "cpu")


# ---- what is kept ----


def test_tasks_asked_alone_or_together_write_the_same_bytes(language_runs: LanguageRuns) -> None:
    runs, folder = language_runs, language_runs.folder(language_runs.int4_int8)
    evaluate_run(runs.results, runs.int4_int8, list(QUIZZES), "cpu", force=True)
    first = read_files(folder)
    # The present number of threads must not matter: the one of the training is used.
    torch.set_num_threads(2)
    try:
        for name in reversed(list(QUIZZES)):
            evaluate_run(runs.results, runs.int4_int8, [name], "cpu", force=True)
    finally:
        torch.set_num_threads(1)
    assert read_files(folder) == first
    assert {"downstream.json", "downstream/grammar_recall.jsonl"} < set(first)
    entries = json.loads(first["downstream.json"])["tasks"].values()
    assert {entry["threads"] for entry in entries} == {1}


def test_a_task_is_asked_again_only_if_it_or_the_artefact_has_changed(
    language_runs: LanguageRuns, tmp_path: Path
) -> None:
    runs, folder = language_runs, language_runs.folder(language_runs.fp)
    path = write_task_file(tmp_path / "t")
    reports: list[str] = []

    def ask_again() -> None:
        evaluate_run(runs.results, runs.fp, [str(path)], "cpu", report=reports.append)

    ask_again()
    ask_again()
    write_task_file(tmp_path / "t", ("gatti", "orsi"))
    ask_again()
    assert reports[-2:] == ["pets: answered before", "pets: 2 items"]
    answers = json.loads((folder / "downstream.json").read_text())
    answers["artefact_sha256"] = "of another"
    (folder / "downstream.json").write_text(json.dumps(answers))
    assert read_answers(Attempt(folder)) == {}
    assert list_unanswered_tasks(Attempt(folder), ["pets"]) == ["pets"]
    ask_again()
    assert reports[-1] == "pets: 2 items"


def test_the_command_prints_a_table_and_draws_no_random_numbers(
    language_runs: LanguageRuns,
) -> None:
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]
    arguments = ["eval", language_runs.int4[:10], "--tasks", "grammar_recall"]
    arguments += ["--results", str(language_runs.results), "--device", "cpu", "--force"]
    done = CliRunner().invoke(cli, arguments, standalone_mode=False)
    assert done.exception is None and done.stderr == "grammar_recall: 400 items\n"
    assert any(
        line.split()[:2] == ["grammar_recall", "acc"] and line.endswith("0.125   1        400")
        for line in done.stdout.splitlines()
    )
    assert random.getstate() == python_state
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]
    assert torch.equal(torch_state, torch.get_rng_state())
