"""Documents are true: their commands run, their code runs, their links lead somewhere, their tables come out of the tracked results."""

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
DOCS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ("--steps", "4", "--seeds", "2", "--workers", "2", "--quiet")
"""What a sweep of a document is cut to here."""


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[str]:
    lines = "\n".join(fences((ROOT / document).read_text(encoding="utf-8"), "sh")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.strip()]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the README's sweep file, swept as `mine`, cut short."""
    folder = tmp_path_factory.mktemp("desk")
    sweeps = [text for text in fences(README, "toml") if "board" in text]
    assert len(sweeps) == 1
    (folder / "my.toml").write_text(
        sweeps[0].replace('tasks = ["digits", "grammar"]', 'tasks = ["digits"]\nrecipe.steps = 4')
    )
    qbench(folder, "sweep", "my.toml", "--workers", "2", "--quiet")
    qbench(folder, "submit", "mine", "--out", "mine.qbench.zip")
    return folder


def qbench(folder: Path, *words: str) -> str:
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli, words, env={"QBENCH_RESULTS": "results", "COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    return done.stdout


PLUGIN = "qbench new method", "pip install -e", "qbench check mine", "python -m pytest"


@pytest.mark.parametrize(
    "command",
    [c for d in DOCS for c in commands(d) if c.startswith("qbench ") and not c.startswith(PLUGIN)],
)
def test_every_command_runs(desk: Path, command: str) -> None:
    words = shlex.split(command)[1:]
    assert qbench(desk, *words, *(SHORT if words[0] == "sweep" else ()))


def test_a_method_is_added_as_told(tmp_path: Path) -> None:
    """The four commands in their order, as written, but that pip installs into a folder of its own and not into this environment."""
    told = [c for c in commands("README.md") if c.startswith(PLUGIN)]
    assert [c.startswith(p) for c, p in zip(told, PLUGIN, strict=True)] == [True] * 4
    site = tmp_path / "site"
    env = {**os.environ, "PYTHONPATH": str(site)}
    for command in told:
        words = [sys.executable, "-m", *shlex.split(command.removeprefix("python -m "))]
        if words[2] == "pip":
            words = [w for w in words if w != "-e"] + [
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--target",
                str(site),
            ]
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=240
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize("document", DOCS)
def test_every_target_of_make_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {c.split()[1] for c in commands(document) if c.startswith("make ")} <= targets
    assert all(c.startswith(("make ", "qbench ", *PLUGIN)) for c in commands(document))


def test_the_table_of_commands_is_complete() -> None:
    told = set(re.findall(r"`qbench ([a-z]+)", README))
    assert told == set(cli.commands)


@pytest.mark.parametrize("code", fences(README, "python"))
def test_the_code_runs(desk: Path, code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "document",
    [
        *DOCS,
        *(
            str(p.relative_to(ROOT))
            for part in ("results/*/notes.md", "docs/*.md")
            for p in sorted(ROOT.glob(part))
        ),
    ],
)
def test_links_lead_somewhere(document: str) -> None:
    file = ROOT / document
    for target in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (file.parent / target).exists(), target


def test_the_table_in_the_readme_is_the_tracked_one() -> None:
    rows = [
        line
        for line in README.split("## What to do with it")[0].splitlines()
        if line.startswith("|")
    ]
    tracked = (
        (ROOT / "results" / "quick" / "leaderboard.md").read_text(encoding="utf-8").splitlines()
    )
    assert len(rows) > 4 and set(rows) <= set(tracked)
