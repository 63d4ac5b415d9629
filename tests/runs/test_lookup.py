"""How a run is named: by its key, or by enough of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qbench.errors import UsageError
from qbench.runs.lookup import LEAST, MOST_NAMED, may_begin, only
from tests.made_runs import config, make


def test_the_beginning_of_a_key_says_what_it_lacks(tmp_path: Path) -> None:
    home = make(tmp_path, config()).folder.parent
    key = home.name
    for end in range(MOST_NAMED):
        shutil.copytree(home, home.with_name(f"{key[:8]}{end:024x}"))
    with pytest.raises(
        UsageError, match=f"'{key[:5]}' begins the keys of runs, but it takes at least {LEAST}"
    ):
        only(tmp_path, key[:5])
    with pytest.raises(
        UsageError, match=f"'{key[:8]}' begins 9 keys, write more of it: {key[:8]}.* and 1 more"
    ):
        only(tmp_path, key[:8])
    with pytest.raises(UsageError, match="no run's key begins with 'ffffff0'"):
        only(tmp_path, "ffffff0")
    assert only(tmp_path, key) == only(tmp_path, key[:20]) == key


@pytest.mark.parametrize(
    "word", ["", "*", "abcdef*", "..", "ab/../cd", "ABCDEF", "zzzzzzzz", "0" * 33]
)
def test_what_is_no_key_names_no_run(tmp_path: Path, word: str) -> None:
    make(tmp_path, config())
    with pytest.raises(
        UsageError, match="is no run's key: it takes at least 6 of a key's 32 letters"
    ):
        only(tmp_path, word)
    assert not may_begin(tmp_path, word)


def test_a_word_is_meant_as_a_key_if_it_is_long_enough_or_begins_one(tmp_path: Path) -> None:
    key = make(tmp_path, config()).key
    other = "ff" if key[:2] != "ff" else "00"
    assert (
        may_begin(tmp_path, key[:2])
        and may_begin(tmp_path, "abcdef")
        and not may_begin(tmp_path, other)
    )
