"""A bundle that is not believed. What it says of itself reaches a terminal only as plain text."""

from __future__ import annotations

from qbench.errors import QbenchError
from qbench.text import plain


class Refused(QbenchError):
    """Not a bundle, or not one whose parts agree. One line, free of whatever was in it."""

    code = 5

    def __init__(self, message: str) -> None:
        super().__init__(plain(message, 400))
