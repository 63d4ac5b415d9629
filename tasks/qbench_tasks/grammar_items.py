"""What the models of the task `grammar` are asked after training.

    grammar_agreement    a verb that agrees with its subject, or one that agrees with the last noun
    grammar_nesting      the bracket that closes the innermost one, or one of the last seen type
    grammar_recall       the value that a key got further up, or any of the seven other values

The right answers follow from the rules, so a perfect model has them all. Every item is one where
the nearest cue misleads (`make_minimal_pairs`), and the wrong answers are always impossible: the
grammar gives them the probability 0 and, in recall, gives the right one 1. The items come from a
stream of windows that no split uses, and fit into the smallest model's context. A hash decides
where the right answer stands, so a model that finds all answers alike scores as well as guessing.
"""

from __future__ import annotations

import hashlib
from functools import partial

from qbench.api import Question, Quiz
from qbench_tasks import grammar_text as text
from qbench_tasks.grammar_rules import VALUE, VOCAB

QUESTIONS = 400
CONTEXT = 64
TITLES = {
    "agreement": "Agreement of verbs with far subjects",
    "nesting": "Closing the right bracket",
    "recall": "Recall of a value by its key",
}


def make_quizzes() -> dict[str, Quiz]:
    """Return the quizzes of the task by name."""
    chances = {"agreement": 1 / 2, "nesting": 1 / 2, "recall": 1 / len(VALUE)}
    return {
        f"grammar_{kind}": Quiz(
            title, partial(make_questions, kind), chance=chances[kind], ceiling=1.0
        )
        for kind, title in TITLES.items()
    }


def make_questions(kind: str, count: int = QUESTIONS) -> list[Question]:
    """Return the first `count` questions of a kind that differ from each other."""
    questions: dict[str, Question] = {}
    for pair in text.make_minimal_pairs(0, 2 * count, kind, CONTEXT):
        context = text.render(pair.good_tokens[1:-1])
        wrong = [pair.bad]
        if kind == "recall":
            wrong = [VOCAB[value] for value in VALUE if VOCAB[value] != pair.good]
        questions.setdefault(context, shuffle_choices(context, pair.good, wrong))
    assert len(questions) >= count, f"{len(questions)} different questions about {kind}"
    return list(questions.values())[:count]


def shuffle_choices(context: str, right: str, wrong: list[str]) -> Question:
    """Return a question whose choices stand in the order of their hashes."""
    choices = sorted(
        [right, *wrong], key=lambda choice: hashlib.sha256(f"{context} {choice}".encode()).digest()
    )
    return Question(context, tuple(choices), choices.index(right))
