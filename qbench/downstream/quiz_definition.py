"""What a quiz asks, as rows of plain data and as a hash. Neither needs lm-eval, which loads slowly.

Answers belong to a hash. A quiz that was changed has another hash under the same name, and is asked
again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.api.language_model import Quiz

__all__ = ["hash_json", "hash_quiz", "make_quiz_rows"]


Row = dict[str, Any]


def make_quiz_rows(name: str, quiz: Quiz) -> list[Row]:
    """Return the items of a quiz, each with the fields that the lm-eval task refers to."""
    if not (items := quiz.make()):
        raise QbenchError(f"downstream task {name}: its text is too short to make a single item of")
    # lm-eval wants a field for the context, even where there is none. A text has an empty one.
    return [
        {"nothing": "", "text": item} if isinstance(item, str) else dict(vars(item))
        for item in items
    ]


def hash_quiz(name: str, quiz: Quiz, items: list[Row]) -> str:
    """Return the hash of a quiz's definition."""
    return hash_json([name, quiz.version, items])


def hash_json(data: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Return the hash of plain data. `default` converts values that JSON does not know."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, default=default)
    return hashlib.sha256(text.encode()).hexdigest()
