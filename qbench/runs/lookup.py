"""Find a run by the beginning of its key; read it whole."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import UsageError
from qbench.runs.attempts import _KEY, attempts

if TYPE_CHECKING:
    from qbench.runs.attempts import Attempt


_BEGINNING = re.compile(r"[0-9a-f]{2,32}")
LEAST, MOST_NAMED = 6, 8
"""Letters of a key that name a run; runs that an error lists."""


def only(results: Path, beginning: str) -> str:
    """The key of the one run whose key begins so."""
    found = _beginning(results, beginning)
    if not LEAST <= len(beginning) <= 32 or not _BEGINNING.fullmatch(beginning):
        few = "begins the keys of runs, but" if found else "is no run's key:"
        raise UsageError(
            f"{beginning!r} {few} it takes at least {LEAST} of a key's 32 letters, which are 0-9 and a-f, to name one"
        )
    if not found:
        raise UsageError(
            f"no run's key begins with {beginning!r}; `qbench show BOARD --runs` lists the runs of a board with their keys"
        )
    if len(found) > 1:
        more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
        raise UsageError(
            f"{beginning!r} begins {len(found)} keys, write more of it: {', '.join(found[:MOST_NAMED])}{more}"
        )
    return found[0]


def may_begin(results: Path, word: str) -> bool:
    """Whether a word is meant to be a run's key or the beginning of one: it is as long, or there is a run that it begins."""
    return bool(_BEGINNING.fullmatch(word)) and (
        len(word) >= LEAST or bool(_beginning(results, word))
    )


def _beginning(results: Path, word: str) -> list[str]:
    """The keys that begin so."""
    if not re.fullmatch("[0-9a-f]{1,32}", word):
        return []
    return sorted(
        d.name for d in (results / "runs").glob(f"{word[:2]}*/{word}*") if _KEY.fullmatch(d.name)
    )


def latest(results: Path, beginning: str) -> dict[str, Any]:
    """The files of the latest attempt at a run, which is named by its key or the beginning of it; of merged ones, the first that came."""
    tried = attempts(results, only(results, beginning))
    own = [attempt for attempt in tried if not attempt.merged]
    attempt = own[-1] if own else tried[0]
    lines = attempt.curve.read_text(encoding="utf-8").splitlines() if attempt.curve.exists() else []
    files = {name: attempt.read(name) for name in ("spec", "env", "result", "trust")}
    return {
        "key": attempt.key,
        "attempt": attempt.number,
        "attempts": [_in_short(one) for one in tried],
        "folder": str(attempt.folder),
        **files,
        "curve": [json.loads(line) for line in lines],
    }


def _in_short(attempt: Attempt) -> dict[str, Any]:
    result, trust = attempt.read("result") or {}, attempt.read("trust") or {}
    score = (result.get("scores") or {}).get("packed")
    return {
        "attempt": attempt.number,
        "state": result.get("state"),
        "packed": score,
        "trust": trust.get("level"),
    }
