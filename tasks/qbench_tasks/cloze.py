"""Quizzes for any language model of text, about documents that it was not trained on.

    …_cloze    which word ends this passage?                      4 choices
    …_bytes    how many bits does a byte of these documents take?

The wrong words end other passages, so all choices come with the frequency that last words have, and
all are as many bytes long as the right one. A model that only knows which words are common or short
therefore gains nothing over chance. No model can have all answers right, because often several
words are possible.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from qbench.api import Question, Quiz

CHOICES, QUESTIONS = 4, 400
# The longest passage in bytes: even a model of bytes sees at least 128.
PASSAGE_BYTES = 120
# So many passages are searched for questions and wrong words.
PASSAGES = 20_000
# How many documents are read out, and how many characters of each.
DOCUMENTS, DOCUMENT_CHARACTERS = 64, 4096
ENDS_IN_A_WORD = re.compile(r"(.*\S) (\w{3,})", re.DOTALL)


def make_quizzes(task: str, documents: Callable[[], Iterable[str]]) -> dict[str, Quiz]:
    """Return a task's quizzes by name.

    Args:
        task: The task's name, with which the quizzes' names begin.
        documents: Returns the held-out documents, in the same order at every call.
    """
    return {
        f"{task}_cloze": Quiz(
            "The last word of a passage",
            lambda: make_cloze_questions(list(islice(cut_passages(documents()), PASSAGES))),
            chance=1 / CHOICES,
        ),
        f"{task}_bytes": Quiz(
            "Held-out documents, each by itself",
            lambda: [text[:DOCUMENT_CHARACTERS] for text in islice(documents(), DOCUMENTS)],
        ),
    }


def cut_passages(documents: Iterable[str]) -> Iterator[str]:
    """Yield consecutive pieces of documents, each as long as allowed.

    A piece ends with a whole word that has a blank before it and after it.
    """
    for text in documents:
        first = 0
        while piece := _first_bytes(text[first : first + PASSAGE_BYTES + 1], PASSAGE_BYTES + 1):
            is_last = first + len(piece) == len(text) and len(piece.encode()) <= PASSAGE_BYTES
            end = len(piece) if is_last else piece.rfind(" ")
            if end > 0 and ENDS_IN_A_WORD.fullmatch(piece[:end]):
                yield piece[:end]
            first += max(end, 1) + 1


def _first_bytes(text: str, count: int) -> str:
    """Return the whole characters among the first `count` bytes of a text."""
    return text.encode()[:count].decode(errors="ignore")


def make_cloze_questions(
    passages: Sequence[str], count: int = QUESTIONS, choices: int = CHOICES
) -> list[Question]:
    """Return questions about passages in random order.

    A passage is left out if too few other last words are as long as its own.
    """
    mixed = sorted(passages, key=lambda passage: hash_to_number(f"order {passage}"))
    parts = [match.groups() for passage in mixed if (match := ENDS_IN_A_WORD.fullmatch(passage))]
    words_by_size: dict[int, list[str]] = defaultdict(list)
    for _, word in parts:
        words_by_size[len(word.encode())].append(word)
    questions: dict[str, Question] = {}
    for context, word in parts:
        pool = words_by_size[len(word.encode())]
        others = list(draw_wrong_words(f"{context} {word}", word, pool, choices - 1))
        if len(others) == choices - 1 and len(questions) < count:
            answers = sorted(
                [word, *others], key=lambda answer: hash_to_number(f"choice {context} {answer}")
            )
            questions.setdefault(context, Question(context, tuple(answers), answers.index(word)))
    return list(questions.values())


def draw_wrong_words(passage: str, word: str, pool: Sequence[str], count: int) -> Iterator[str]:
    """Yield up to `count` different words of the pool other than `word`.

    They are drawn by a hash of the passage, each as often as it stands in the pool.
    """
    drawn = {word}
    for attempt in range(20 * count):
        other = pool[hash_to_number(f"{attempt} {passage}") % len(pool)]
        if other not in drawn and len(drawn) <= count:
            drawn.add(other)
            yield other


def hash_to_number(text: str) -> int:
    """Return a 64-bit number that only depends on the text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
