"""What any language model of text can be asked about documents that it was not trained on.

    …_cloze    which word ends this passage?                      4 choices
    …_bytes    how many bits does a byte of these documents take?

The wrong words end other passages, so all choices come with the frequency that last words have, and all are as many bytes long as the right
one: a model that knows nothing of the passage, only which words are common or short, gains nothing over chance. Nobody has them all right:
often several words could stand there.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from qbench.api import Question, Quiz

CHOICES, QUESTIONS = 4, 400
PASSAGE_BYTES = 120
"""Bytes of a passage: a model of bytes sees at least 128."""
PASSAGES = 20_000
"""So many are looked at for questions and wrong words."""
DOCUMENTS, DOCUMENT_CHARACTERS = 64, 4096
"""How many documents are read out, and how many characters of each."""
ENDS_IN_A_WORD = re.compile(r"(.*\S) (\w{3,})", re.DOTALL)


def make_quizzes(task: str, documents: Callable[[], Iterable[str]]) -> dict[str, Quiz]:
    """Of held-out documents, which come in the same order at every call."""
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
    """Pieces of documents, end to end, each as long as may be and ending with a whole word that a blank stands before and behind."""
    for text in documents:
        first = 0
        while (
            piece := text[first : first + PASSAGE_BYTES + 1]
            .encode()[: PASSAGE_BYTES + 1]
            .decode(errors="ignore")
        ):
            last = first + len(piece) == len(text) and len(piece.encode()) <= PASSAGE_BYTES
            end = len(piece) if last else piece.rfind(" ")
            if end > 0 and ENDS_IN_A_WORD.fullmatch(piece[:end]):
                yield piece[:end]
            first += max(end, 1) + 1


def make_cloze_questions(found: Sequence[str], count: int = QUESTIONS, choices: int = CHOICES) -> list[Question]:
    """Questions about passages from all over: about those with a last word that enough others are as long as."""
    mixed = sorted(found, key=lambda passage: hash_to_number(f"order {passage}"))
    parted = [match.groups() for passage in mixed if (match := ENDS_IN_A_WORD.fullmatch(passage))]
    ends: dict[int, list[str]] = defaultdict(list)
    for _, word in parted:
        ends[len(word.encode())].append(word)
    questions: dict[str, Question] = {}
    for context, word in parted:
        others = list(draw_wrong_words(f"{context} {word}", word, ends[len(word.encode())], choices - 1))
        if len(others) == choices - 1 and len(questions) < count:
            answers = sorted(
                [word, *others], key=lambda answer: hash_to_number(f"choice {context} {answer}")
            )
            questions.setdefault(context, Question(context, tuple(answers), answers.index(word)))
    return list(questions.values())


def draw_wrong_words(passage: str, word: str, pool: Sequence[str], count: int) -> Iterator[str]:
    """Different words of the pool other than `word`, drawn by a hash of the passage, each as often as it stands there."""
    seen = {word}
    for turn in range(20 * count):
        other = pool[hash_to_number(f"{turn} {passage}") % len(pool)]
        if other not in seen and len(seen) <= count:
            seen.add(other)
            yield other


def hash_to_number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")
