"""`qbench submit`, `verify` and `merge` as commands, and hostile text in what others print."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

import qbench
from qbench import cli
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.store.file_rows import make_run_row
from qbench.util import text
from tests.bundles import write_board_members
from tests.run_folders import make_attempt, make_result, make_run_config
from tests.submissions.merged_folders import find_ste_run

# ---- The commands ----


def run_qbench(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "qbench", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def test_submit_verify_and_merge_work_as_commands(
    trained: Path, empty_results: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine.qbench.zip"
    submitted = run_qbench("submit", "b", "--out", out, "--results", trained, "--note", "hello")
    assert submitted.returncode == 0 and not submitted.stderr
    assert submitted.stdout.startswith(f"{out}: 3 runs")
    verified = run_qbench("verify", out, "--rerun", "1", "--json")
    assert verified.returncode == 0 and json.loads(verified.stdout)["passed"]
    merged = run_qbench("merge", out, "--results", empty_results)
    assert merged.returncode == 0
    assert merged.stdout.splitlines()[-2] == "3 runs merged (3 verified), 0 here already"
    key = find_ste_run(empty_results)
    assert run_qbench("reproduce", key, "--results", empty_results).returncode == 0
    assert "reproduced: merged" in run_qbench("show", key, "--results", empty_results).stdout
    out.write_bytes(out.read_bytes()[:-1])
    for words in (("verify", out), ("merge", out, "--results", empty_results)):
        refused = run_qbench(*words)
        assert refused.returncode == 5 and not refused.stderr, refused.stderr
        assert refused.stdout.startswith("FAILED archive")
    assert run_qbench("verify", out, "--rerun", "many").returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "nothing.zip"),
        ("verify", "/"),
        ("merge", "nothing.zip"),
        ("submit", "nothing", "--out", "x.zip"),
    ],
)
def test_wrong_input_gives_a_one_line_error(words: tuple[str, ...], tmp_path: Path) -> None:
    options = ("--results", tmp_path) if words[0] != "verify" else ()
    done = run_qbench(*words, *options)
    assert done.returncode == 2 and not done.stdout
    assert len(done.stderr.splitlines()) == 1, done.stderr


# ---- Hostile text ----

HOSTILE_TEXTS = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "=HYPERLINK(1)",
    "@SUM(1)",
    "<script>alert(1)</script>",
    "a|b",
    "\u202egnp.exe",
    "nul\x00",
    "x\r\ny",
    "[a](javascript:b)",
)


def test_hostile_text_does_not_reach_terminal_page_or_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = write_hostile_runs(tmp_path)
    results = qbench.results(tmp_path)
    board, frame = results.board("b"), results.board_runs("b")
    printed = {"csv": to_csv(board), "markdown": to_markdown(board), "runs": runs_csv(frame)}
    for command in (("show", "b"), *(("show", key) for key in keys)):
        printed[" ".join(command)] = print_command(capsys, tmp_path, *command)
    for name, page in printed.items():
        assert all(c == "\n" or c.isprintable() for c in page), name
    assert "<script" not in printed["markdown"] and "](javascript" not in printed["markdown"]
    read_back = read_runs_csv(io.StringIO(printed["runs"]))
    expected = {text.clean_line(hostile, 10_000) for hostile in HOSTILE_TEXTS}
    assert set(read_back["device_name"].fillna("")) == expected
    for line in printed["runs"].splitlines() + printed["csv"].splitlines():
        assert not any(part.startswith(("=", "@")) for part in line.replace('"', "").split(","))


def write_hostile_runs(results: Path) -> list[str]:
    """Write a merged run for each hostile text, which stands in all its fields; return the keys."""
    configs = [make_run_config(seed) for seed in range(len(HOSTILE_TEXTS))]
    for seed, hostile in enumerate(HOSTILE_TEXTS):
        attempt = make_attempt(results, configs[seed])
        if seed % 2:
            failure = make_result(0.5, state="failed", reason="plugin", message=hostile)
            attempt.write("result", failure | {"key": attempt.key, "attempt": 1})
        fields = ("device_name", "cpu", "platform", "qbench", "commit")
        attempt.write("env", {**dict.fromkeys(fields, hostile), "threads": 1})
        attempt.write("trust", {"level": "claimed", "by": hostile, "merged": hostile})
        assert make_run_row(attempt)
    keys = [config.key for config in configs]
    write_board_members(results, [(configs[0], keys)], len(configs))
    return keys


def print_command(capsys: pytest.CaptureFixture[str], results: Path, *words: str) -> str:
    """Return what a command of qbench prints."""
    capsys.readouterr()
    cli.cli.main([*words, "--results", str(results)], standalone_mode=False)
    return capsys.readouterr().out


def test_a_board_can_be_built_from_an_old_table_without_the_trust_column(trained: Path) -> None:
    frame = qbench.results(trained).board_runs("b")
    assert build_board(frame.drop(columns="trust")) == build_board(frame)
    assert build_board(frame.assign(trust="claimed")).sections[0].notes
