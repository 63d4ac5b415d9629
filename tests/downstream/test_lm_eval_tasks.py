"""Downstream tasks: the items of qbench's own quizzes, and how tasks are found and hashed."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch
from qbench_tasks import grammar_items
from qbench_tasks.cloze import cut_passages, make_cloze_questions
from qbench_tasks.grammar_rules import ID, next_logprobs
from qbench_tasks.text import Text

from qbench.api.language_model import Question, Quiz
from qbench.downstream.lm_eval_evaluation import evaluate_task
from qbench.downstream.lm_eval_tasks import load_tasks
from qbench.errors import QbenchError
from tests.downstream.quiz_models import QUIZZES, own_dataset_cache, write_task_file

__all__ = ["own_dataset_cache"]


# ---- the quizzes of the task `grammar` ----

FIRST_DIGITS = ["2d0555de6c4f", "f0b2e9ab1d75", "0f34e6c53896"]
"""Of the quizzes' hashes. A changed item changes what is compared: raise the quiz's version."""


@pytest.mark.parametrize("name", QUIZZES)
def test_the_grammar_allows_only_the_right_answer(name: str) -> None:
    questions = QUIZZES[name].make()
    contexts = {question.context for question in questions if isinstance(question, Question)}
    assert len(questions) == grammar_items.QUESTIONS == len(contexts)
    for question in questions:
        assert isinstance(question, Question)
        words = question.context.split()
        log_probs = next_logprobs([ID["<doc>"], *(ID[word] for word in words)])
        allowed = [math.isfinite(log_probs[ID[choice]]) for choice in question.choices]
        assert allowed == [n == question.right for n in range(len(question.choices))]
        assert len(words) < grammar_items.CONTEXT
        assert len(question.choices) == round(1 / (QUIZZES[name].chance or 0))


def test_the_quizzes_are_the_same_in_every_process() -> None:
    assert [load_tasks([name], QUIZZES)[0].sha256[:12] for name in QUIZZES] == FIRST_DIGITS


# ---- hashes and errors ----


def test_the_hash_depends_on_documents_and_definition_but_not_on_the_path(tmp_path: Path) -> None:
    def hash_of(path: Path) -> str:
        return load_tasks([str(path)], {})[0].sha256

    first = hash_of(write_task_file(tmp_path / "a"))
    assert hash_of(write_task_file(tmp_path / "b")) == first
    assert hash_of(write_task_file(tmp_path / "c", ("gatta", "orsi", "cervi"))) != first
    path = write_task_file(tmp_path / "d")
    path.write_text(path.read_text().replace("lupi", "orsi"))
    assert hash_of(path) != first


def test_a_quiz_with_too_little_text_is_an_error_of_one_line() -> None:
    quiz = Quiz("The last word of a passage", lambda: make_cloze_questions(["just two"], 10))
    with pytest.raises(
        QbenchError,
        match="downstream task own_cloze: its text is too short to make a single item of",
    ):
        load_tasks(["own_cloze"], {"own_cloze": quiz})


# ---- quizzes about any text ----


def test_cloze_choices_have_the_length_and_the_frequency_of_the_right_word() -> None:
    words = [
        f"{'abcdefghij'[n % 10]}{'klmnopqr'[n % 8]}y{n % 7}{'x' * (n % 3)}" for n in range(600)
    ]
    texts = [f"passage {n} speaks of {word}" for n, word in enumerate(words)]
    questions = make_cloze_questions(texts, 200)
    assert questions == make_cloze_questions(texts[::-1], 200) and len(questions) == 200
    for question in questions:
        n = int(question.context.split()[1])
        assert question.choices[question.right] == words[n]
        assert question.context == f"passage {n} speaks of"
        assert len(set(question.choices)) == 4
        assert len({len(choice) for choice in question.choices}) == 1
    assert 30 < sum(question.right == 0 for question in questions) < 70
    assert make_cloze_questions(["one", "", "just two"], 10) == []


def test_passages_are_whole_words_and_fit_into_the_context_of_a_byte_model() -> None:
    documents = ["word " * 60 + "end", "ünï " * 100, "x" * 500, "", "a (b) c = d\n word"]
    found = list(cut_passages(documents))
    for passage in found:
        assert any(passage in text for text in documents)
        assert len(passage.encode()) <= 120
        assert re.search(r"\S \w{3,}$", passage)
    assert {passage[:4] for passage in found} == {"word", "ünï "}


@pytest.mark.slow
def test_the_task_text_asks_about_its_own_held_out_documents() -> None:
    task, names = Text(), ["text_cloze", "text_bytes"]
    tasks = load_tasks(names, task.quizzes())
    others = load_tasks(names, Text(vocab=256).quizzes())
    assert [one.sha256 for one in tasks] == [one.sha256 for one in others]
    problem = task.problem("xs", 0, 1, torch.device("cpu"))
    with torch.no_grad():
        problem.model.head.weight.zero_()
    assert problem.tokenizer is not None
    cloze_summary, bytes_summary = (
        evaluate_task(one, problem.model, problem.tokenizer)[0] for one in tasks
    )
    # A model without a preference guesses one of four words, and one of 256 bytes.
    assert cloze_summary["metrics"]["acc"]["value"] == pytest.approx(0.25, abs=0.07)
    assert cloze_summary["cut"] == 0
    assert bytes_summary["metrics"]["bits_per_byte"]["value"] == pytest.approx(8.0)
