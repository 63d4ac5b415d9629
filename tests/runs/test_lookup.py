"""Runs are named by their key, or by enough of it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from qbench.errors import UsageError
from qbench.runs.lookup import MAX_KEYS_LISTED, MIN_PREFIX_LENGTH, find_key, looks_like_key
from tests.run_folders import make_attempt, make_run_config


def test_an_error_says_what_is_wrong_with_a_prefix(tmp_path: Path) -> None:
    folder = make_attempt(tmp_path, make_run_config()).folder.parent
    key = folder.name
    for end in range(MAX_KEYS_LISTED):
        shutil.copytree(folder, folder.with_name(f"{key[:8]}{end:024x}"))
    with pytest.raises(
        UsageError,
        match=f"'{key[:5]}' is too short for a run's key: write at least {MIN_PREFIX_LENGTH}",
    ):
        find_key(tmp_path, key[:5])
    with pytest.raises(
        UsageError,
        match=f"9 keys begin with '{key[:8]}'; write more letters: {key[:8]}.* and 1 more",
    ):
        find_key(tmp_path, key[:8])
    with pytest.raises(UsageError, match="no run's key begins with 'ffffff0'"):
        find_key(tmp_path, "ffffff0")
    assert find_key(tmp_path, key) == find_key(tmp_path, key[:20]) == key


@pytest.mark.parametrize(
    "word", ["", "*", "abcdef*", "..", "ab/../cd", "ABCDEF", "zzzzzzzz", "0" * 33]
)
def test_a_word_that_is_not_a_key_names_no_run(tmp_path: Path, word: str) -> None:
    make_attempt(tmp_path, make_run_config())
    with pytest.raises(UsageError, match="is not a run's key: write at least 6 of its 32 letters"):
        find_key(tmp_path, word)
    assert not looks_like_key(tmp_path, word)


def test_wildcards_and_paths_after_a_prefix_name_no_run(tmp_path: Path) -> None:
    config = make_run_config()
    make_attempt(tmp_path, config)
    assert find_key(tmp_path, config.key[:6]) == find_key(tmp_path, config.key) == config.key
    for word in ("", "*", f"{config.key[:6]}*", "..", f"{config.key[:6]}/..", config.key + "0"):
        with pytest.raises(UsageError):
            find_key(tmp_path, word)


def test_a_word_looks_like_a_key_if_it_is_long_enough_or_begins_one(tmp_path: Path) -> None:
    key = make_attempt(tmp_path, make_run_config()).key
    other = "ff" if key[:2] != "ff" else "00"
    assert looks_like_key(tmp_path, key[:2])
    assert looks_like_key(tmp_path, "abcdef")
    assert not looks_like_key(tmp_path, other)
