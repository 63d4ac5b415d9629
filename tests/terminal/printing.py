"""Helpers that turn what is printed into plain strings."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console

from qbench.terminal.progress_lines import StyledLine

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
TITLE = "ste int2 digits/xs seed 1"
"""The title of a run."""


def print_to_text(show: Callable[..., None], *what: Any, width: int = 100, **options: Any) -> str:
    """Return what `show` prints to a pipe, without the blanks at the ends of lines."""
    out = io.StringIO()
    show(*what, Console(file=out, width=width), **options)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def join_words(line: StyledLine) -> str:
    """Return a line without its styles."""
    return "".join(words for words, _ in line)
