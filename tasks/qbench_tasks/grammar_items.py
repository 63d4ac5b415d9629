"""What the models of the task `grammar` are asked after training. The right answers follow from the rules, so a perfect model has them all.

    grammar_agreement    a verb that agrees with its subject, or the one that agrees with the last noun          2 choices
    grammar_nesting      the bracket that closes the innermost one, or the type of the bracket seen last         2 choices
    grammar_recall       the value of a key that was set further up, or any other value                          8 choices

Every item is one where the nearest cue misleads (`minimal_pairs`), and in all of them the wrong answers are impossible: the grammar gives
them the probability 0 and, in recall, gives the right one 1. They come from a stream of windows that no split knows, and fit into the
smallest model's context. Where the right answer stands is a hash, so that a model that finds all answers alike gets what guessing gets.
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
    chances = {"agreement": 1 / 2, "nesting": 1 / 2, "recall": 1 / len(VALUE)}
    return {
        f"grammar_{kind}": Quiz(title, partial(make_questions, kind), chance=chances[kind], ceiling=1.0)
        for kind, title in TITLES.items()
    }


def make_questions(kind: str, count: int = QUESTIONS) -> list[Question]:
    """The first `count` different ones."""
    found: dict[str, Question] = {}
    for pair in text.make_minimal_pairs(0, 2 * count, kind, CONTEXT):
        context = text.render(pair.good_tokens[1:-1])
        wrong = (
            [VOCAB[value] for value in VALUE if VOCAB[value] != pair.good]
            if kind == "recall"
            else [pair.bad]
        )
        found.setdefault(context, shuffle_choices(context, pair.good, wrong))
    assert len(found) >= count, f"{len(found)} different questions about {kind}"
    return list(found.values())[:count]


def shuffle_choices(context: str, right: str, wrong: list[str]) -> Question:
    """The right answer among the wrong ones, in an order that nobody chose."""
    choices = sorted(
        [right, *wrong], key=lambda choice: hashlib.sha256(f"{context} {choice}".encode()).digest()
    )
    return Question(context, tuple(choices), choices.index(right))
