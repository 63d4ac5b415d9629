"""Stored and published texts contain no absolute path of the machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.checks.method_kit import Kit
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment
from qbench.runs.attempts import Attempt, create_attempt
from qbench.runs.config import Recipe
from qbench.store.file_rows import make_run_row
from qbench.util.redact_paths import redact_paths
from tests.run_folders import make_attempt, make_run_config

KEY = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("message", "left"),
    [
        (
            "FileNotFoundError: [Errno 2] No such file or directory: '/home/ada/my data/c.txt'",
            "FileNotFoundError: [Errno 2] No such file or directory: 'c.txt'",
        ),
        (
            "corpus: /tmp/new-x1/documents: No space left on device",
            "corpus: documents: No space left on device",
        ),
        ("~/models/gpt/: no config.json in ~/models/gpt", "gpt: no config.json in gpt"),
        ('corpus = "path:/srv/texts/a b.txt"', 'corpus = "path:a b.txt"'),
        ("path:/srv/texts/a.txt is empty", "path:a.txt is empty"),
        (r"OSError: C:\Users\ada\c.txt is damaged", "OSError: c.txt is damaged"),
        ("file:///home/ada/c.txt, (/home/ada/d.txt) [/e/f]", "c.txt, (d.txt) [f]"),
        (f"run: /data/results/runs/01/{KEY}/1/export: gone", f"run: runs/01/{KEY}/1/export: gone"),
    ],
)
def test_only_the_last_name_of_an_absolute_path_is_left(message: str, left: str) -> None:
    assert redact_paths(message) == left == redact_paths(left)


@pytest.mark.parametrize(
    "message",
    [
        "https://example.org/a/b.txt",
        "grammar/xs seed 0",
        "3 of 1/20 at 2 MB/s",
        "hf:owner/name@main/x",
        "a / b / c",
        "either/or: /",
        "1e-3/step, //",
        'write model = "FOLDER" or "OWNER/NAME[@REVISION]"',
        "runs/ab/x",
        "results/quick/sweep.toml",
        "s/steps",
        "in ./data/c.txt and ../c.txt",
    ],
)
def test_text_without_an_absolute_path_does_not_change(message: str) -> None:
    assert redact_paths(message) == message


NAME = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)


@given(
    st.lists(NAME, min_size=2, max_size=5),
    st.sampled_from(["{}", "'{}'", "x: {}: no", "({})", "path:{}", '"{}"', "{}, and", "at={}"]),
)
def test_no_folder_of_a_path_is_left_whatever_surrounds_it(parts: list[str], around: str) -> None:
    found = redact_paths(around.format("/" + "/".join(parts)))
    assert found == around.format(parts[-1])


def test_the_message_of_a_failed_run_contains_no_path(tmp_path: Path) -> None:
    """A task raises an error with a path; the run's record and its row lose the path."""
    spec = Kit("fp", tmp_path).make_config("int4", steps=2)
    gone = tmp_path / "somewhere" / "weights"
    spec = type(spec).from_json({**spec.to_json(), "base": "0" * 32, "start": "fp:0.5"})
    attempt = create_attempt(tmp_path, spec.key)
    run_one(Assignment(spec, attempt.folder, base=gone))
    result = attempt.read("result") or {}
    assert result["state"] == "failed" and "weights.safetensors" in result["message"]
    assert str(tmp_path) not in json.dumps(result)
    assert str(tmp_path) not in str((make_run_row(Attempt(attempt.folder)) or {})["message"])


def test_a_path_in_a_record_does_not_reach_the_store(tmp_path: Path) -> None:
    attempt = make_attempt(
        tmp_path, make_run_config(recipe=Recipe(steps=10)), state="failed", reason="data"
    )
    result = {**(attempt.read("result") or {}), "message": "no such file: /home/ada/c.txt"}
    (attempt.folder / "result.json").write_text(json.dumps(result))
    assert (make_run_row(attempt) or {})["message"] == "no such file: c.txt"
