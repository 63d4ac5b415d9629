"""Models with known answers, asked by lm-eval itself: the numbers that must come out."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from qbench_tasks import grammar_items
from qbench_tasks.grammar import GrammarTokenizer
from qbench_tasks.grammar_text import generate_windows, render

from qbench.api.language_model import Question, Quiz
from qbench.downstream.lm_eval_evaluation import evaluate_task
from qbench.downstream.lm_eval_tasks import load_tasks
from qbench.errors import QbenchError
from tests.downstream.quiz_models import (
    QUIZZES,
    PerfectModel,
    UniformModel,
    ask_items,
    own_dataset_cache,
    write_task_file,
)

__all__ = ["own_dataset_cache"]


@pytest.mark.parametrize("name", QUIZZES)
def test_a_perfect_model_reaches_the_ceiling_and_a_uniform_one_has_chance(name: str) -> None:
    quiz = Quiz(
        QUIZZES[name].title,
        # A few questions are enough, and the perfect model is slow.
        lambda: grammar_items.make_questions(name.removeprefix("grammar_"), 60),
        chance=QUIZZES[name].chance,
        ceiling=1.0,
    )
    perfect, _ = evaluate_task(
        load_tasks([name], {name: quiz})[0], PerfectModel(), GrammarTokenizer(64)
    )
    assert perfect["metrics"]["acc"]["value"] == quiz.ceiling == 1.0
    uniform, _ = evaluate_task(load_tasks([name], QUIZZES)[0], UniformModel(), GrammarTokenizer(64))
    assert uniform["metrics"]["acc"]["value"] == pytest.approx(quiz.chance, abs=0.06)


def test_bits_per_byte_follow_from_the_chain_rule() -> None:
    tokens, _ = generate_windows(0, 0, 3, 100, "val")
    texts = [render(row[1:]) for row in tokens[:, : 90 + 1]]
    model = PerfectModel()
    summary, lines = ask_items(texts, model)
    nats = []
    for text in texts:
        row = [0, *GrammarTokenizer(64).encode(text)]
        first_logits = model(torch.tensor([row[:64]]))[0].double()
        first = first_logits.log_softmax(-1)[torch.arange(64), torch.tensor(row[1:65])].sum()
        # The last window is as long as the context, too. Its beginning was predicted before.
        last_logits = model(torch.tensor([row[26:90]]))[0, -26:].double()
        last = last_logits.log_softmax(-1)[torch.arange(26), torch.tensor(row[65:])].sum()
        nats.append(float(first + last))
    sizes = [len(text.encode()) for text in texts]
    assert [line["nats"][0] for line in lines] == pytest.approx(nats, rel=1e-6)
    metric = summary["metrics"]["bits_per_byte"]
    assert metric["value"] == pytest.approx(-sum(nats) / sum(sizes) / math.log(2))
    assert metric["better"] == "lower"
    jackknife = [
        sum(nats[:i] + nats[i + 1 :]) / sum(sizes[:i] + sizes[i + 1 :]) / math.log(2)
        for i in range(3)
    ]
    assert metric["stderr"] == pytest.approx(np.std(jackknife) * math.sqrt(2), rel=0.1)


def test_contexts_that_do_not_fit_are_cut_and_counted() -> None:
    long = " ".join(["the", "gatto", "nato", "now"] * 20)
    questions = [Question(context, ("the", "let")) for context in (long, "the gatto nato now")]
    summary, _ = ask_items(questions, UniformModel())
    assert summary["cut"] == 2, "two answers to one question"


def test_a_word_that_the_tokenizer_does_not_know_is_an_error_of_one_line() -> None:
    question = Question("the capital of France is", ("Paris", "London"))
    message = "downstream task mine: the grammar has 95 words, and 'capital' is none of them"
    with pytest.raises(QbenchError, match=f"^{message}$"):
        ask_items([question] * 2, UniformModel())


def test_generated_answers_end_at_a_stop_word(tmp_path: Path) -> None:
    path = write_task_file(tmp_path / "t")
    config = path.read_text().replace("multiple_choice", "generate_until")
    config = config.split("metric_list")[0]
    config = config.replace("the {{noun}} {{prep}} lupi", "let golf five ask golf")
    config = config.replace('"{{right}}"', '"five"')
    lines = [line for line in config.splitlines() if "doc_to_choice" not in line]
    lines += [
        'generation_kwargs: {until: ["the", "let"], max_gen_toks: 6}',
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]",
    ]
    path.write_text("\n".join(lines) + "\n")
    summary, items = evaluate_task(
        load_tasks([str(path)], {})[0], PerfectModel(), GrammarTokenizer(64)
    )
    for item in items:
        assert item["answer"].split()[0] == "five" and "let" not in item["answer"]
    assert summary["metric"] == "exact_match"
