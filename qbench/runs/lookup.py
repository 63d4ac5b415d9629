"""Find a run by its key, or by the first letters of it, and read its files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qbench.errors import UsageError
from qbench.runs.attempts import KEY_PATTERN, list_attempts

if TYPE_CHECKING:
    from qbench.runs.attempts import Attempt


_PREFIX_PATTERN = re.compile(r"[0-9a-f]{2,32}")
MIN_PREFIX_LENGTH = 6
"""How many letters of a key are needed to name a run."""
MAX_KEYS_LISTED = 8
"""How many keys an error message lists."""


def find_key(results: Path, prefix: str) -> str:
    """Return the key of the only run whose key begins with `prefix`."""
    found = _list_keys_with_prefix(results, prefix)
    if not MIN_PREFIX_LENGTH <= len(prefix) <= 32 or not _PREFIX_PATTERN.fullmatch(prefix):
        what = "is too short for a run's key:" if found else "is not a run's key:"
        raise UsageError(
            f"{prefix!r} {what} write at least {MIN_PREFIX_LENGTH} of its 32 letters (0-9 and a-f)"
        )
    if not found:
        raise UsageError(
            f"no run's key begins with {prefix!r}; "
            "`qbench show BOARD --runs` lists the runs of a board with their keys"
        )
    if len(found) > 1:
        rest = len(found) - MAX_KEYS_LISTED
        more = f" and {rest} more" if rest > 0 else ""
        raise UsageError(
            f"{len(found)} keys begin with {prefix!r}; "
            f"write more letters: {', '.join(found[:MAX_KEYS_LISTED])}{more}"
        )
    return found[0]


def looks_like_key(results: Path, word: str) -> bool:
    """Return whether a word is meant as a run's key or the beginning of one.

    That is the case if it is long enough to name a run, or if an existing key begins with it.
    """
    if not _PREFIX_PATTERN.fullmatch(word):
        return False
    return len(word) >= MIN_PREFIX_LENGTH or bool(_list_keys_with_prefix(results, word))


def read_latest_attempt(results: Path, prefix: str) -> dict[str, Any]:
    """Return the files of the latest attempt at the run that `prefix` names.

    The latest attempt that was trained here comes before any merged one; if there are only merged
    attempts, it is the first of them.
    """
    attempts = list_attempts(results, find_key(results, prefix))
    own = [attempt for attempt in attempts if not attempt.merged]
    attempt = own[-1] if own else attempts[0]
    lines = attempt.curve.read_text(encoding="utf-8").splitlines() if attempt.curve.exists() else []
    files = {name: attempt.read(name) for name in ("spec", "env", "result", "trust")}
    return {
        "key": attempt.key,
        "attempt": attempt.number,
        "attempts": [_summarize_attempt(one) for one in attempts],
        "folder": str(attempt.folder),
        **files,
        "curve": [json.loads(line) for line in lines],
    }


def _list_keys_with_prefix(results: Path, word: str) -> list[str]:
    """Return the keys of all runs that begin with `word`."""
    # The check also keeps wildcards and `..` out of the glob pattern below.
    if not re.fullmatch("[0-9a-f]{1,32}", word):
        return []
    folders = (results / "runs").glob(f"{word[:2]}*/{word}*")
    return sorted(folder.name for folder in folders if KEY_PATTERN.fullmatch(folder.name))


def _summarize_attempt(attempt: Attempt) -> dict[str, Any]:
    result, trust = attempt.read("result") or {}, attempt.read("trust") or {}
    return {
        "attempt": attempt.number,
        "state": result.get("state"),
        "packed": (result.get("scores") or {}).get("packed"),
        "trust": trust.get("level"),
    }
