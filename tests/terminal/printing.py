"""Print to a string, as a pipe would receive it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

from rich.console import Console


def print_to_text(show: Callable[..., None], *what: Any, width: int = 100, **options: Any) -> str:
    """Return what `show` prints, without the blanks at the ends of lines."""
    out = io.StringIO()
    show(*what, Console(file=out, width=width), **options)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())
