"""What a quiz asks, as rows of plain data and as a hash: known without lm-eval, which takes seconds to load.

Answers belong to a hash. A quiz that asks something else than it did is another one under the same name, and is asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from qbench.errors import QbenchError

if TYPE_CHECKING:
    from qbench.api.language_model import Quiz

__all__ = ["digest", "rows", "sha256"]


Row = dict[str, Any]


def rows(name: str, quiz: Quiz) -> list[Row]:
    """The items, each with the fields that lm-eval is told of."""
    if not (items := quiz.make()):
        raise QbenchError(f"downstream task {name}: its text is too short to make a single item of")
    return [
        {"nothing": "", "text": item} if isinstance(item, str) else dict(vars(item))
        for item in items
    ]


def sha256(name: str, quiz: Quiz, items: list[Row]) -> str:
    return digest([name, quiz.version, items])


def digest(data: Any, default: Callable[[Any], Any] | None = None) -> str:
    """Of plain data, or of what `default` makes plain."""
    return hashlib.sha256(
        json.dumps(data, sort_keys=True, ensure_ascii=False, default=default).encode()
    ).hexdigest()
