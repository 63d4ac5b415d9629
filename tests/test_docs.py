"""The documents are true: commands and code run, links lead to files, tables are the tracked ones."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from qbench.cli.options import cli

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
LINKED_DOCUMENTS = ("results/*/notes.md", "results/README.md", "docs/*.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SHORT_SWEEP = ("--steps", "4", "--seeds", "2", "--workers", "2", "--quiet")
"""Options that cut the sweeps of the documents short."""
NEW_METHOD_STEPS = (
    "qbench new method",
    "pip install -e",
    "qbench check mine",
    "python -m pytest",
)
"""How the README's commands for a new method begin. They run in one test, in their order."""


def find_code_blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def read_commands(document: str) -> list[str]:
    """Return the shell commands of a document, without their comments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = "\n".join(find_code_blocks(text, "sh")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


def run_qbench(folder: Path, *words: str) -> str:
    """Run a command of qbench in a folder, and return what it prints."""
    with contextlib.chdir(folder):
        environment = {"QBENCH_RESULTS": "results", "COLUMNS": "140"}
        outcome = CliRunner().invoke(cli, words, env=environment)
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's sweep file, trained as the board `mine`, cut short."""
    folder = tmp_path_factory.mktemp("workspace")
    sweeps = [text for text in find_code_blocks(README, "toml") if "board" in text]
    assert len(sweeps) == 1
    (folder / "my.toml").write_text(
        sweeps[0].replace('tasks = ["digits", "grammar"]', 'tasks = ["digits"]\nrecipe.steps = 4')
    )
    run_qbench(folder, "sweep", "my.toml", "--workers", "2", "--quiet")
    run_qbench(folder, "submit", "mine", "--out", "mine.qbench.zip")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        command
        for document in DOCUMENTS
        for command in read_commands(document)
        if command.startswith("qbench ") and not command.startswith(NEW_METHOD_STEPS)
    ],
)
def test_every_command_runs(workspace: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    assert run_qbench(workspace, *words, *(SHORT_SWEEP if words[0] == "sweep" else ()))


def test_the_commands_for_a_new_method_work(tmp_path: Path) -> None:
    """Run the four commands as written, but install into a folder and not into this environment."""
    commands = [c for c in read_commands("README.md") if c.startswith(NEW_METHOD_STEPS)]
    pairs = zip(commands, NEW_METHOD_STEPS, strict=True)
    assert all(command.startswith(step) for command, step in pairs)
    site = tmp_path / "site"
    install_here = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(site)]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for command in commands:
        words = [sys.executable, "-m", *shlex.split(command.removeprefix("python -m "))]
        if words[2] == "pip":
            words = [word for word in words if word != "-e"] + install_here
        process = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=240
        )
        assert process.returncode == 0, f"{command}\n{process.stdout}{process.stderr}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_target_of_make_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = read_commands(document)
    assert {c.split()[1] for c in commands if c.startswith("make ")} <= targets
    assert all(c.startswith(("make ", "qbench ", *NEW_METHOD_STEPS)) for c in commands)


def test_the_table_of_commands_is_complete() -> None:
    assert set(re.findall(r"`qbench ([a-z]+)", README)) == set(cli.commands)


@pytest.mark.parametrize(
    "code", [*find_code_blocks(README, "python"), *find_code_blocks(CONTRIBUTING, "python")]
)
def test_the_code_runs(workspace: Path, code: str) -> None:
    process = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize(
    "document",
    [
        *DOCUMENTS,
        *(
            file.relative_to(ROOT).as_posix()
            for pattern in LINKED_DOCUMENTS
            for file in sorted(ROOT.glob(pattern))
        ),
    ],
)
def test_links_lead_to_files(document: str) -> None:
    file = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_the_table_in_the_readme_is_the_tracked_one() -> None:
    text = README.split("## What to do with it")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")]
    tracked = (ROOT / "results" / "quick" / "leaderboard.md").read_text(encoding="utf-8")
    assert len(rows) > 4 and set(rows) <= set(tracked.splitlines())
