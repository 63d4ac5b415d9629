"""`--json` prints what the schemas in qbench/schemas say, nothing less and nothing more."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from jsonschema import Draft7Validator
from jsonschema.exceptions import ValidationError
from referencing import Registry, Resource

from qbench.cli.options import cli

SCHEMAS = Path(__file__).resolve().parents[2] / "qbench" / "schemas"
FILES = {
    file.name: json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(SCHEMAS.glob("*.json"))
}
REGISTRY: Any = Registry().with_resources(
    (name, Resource.from_contents(schema)) for name, schema in FILES.items()
)
SWEEP = """
board = "small"
seeds = 2
methods = ["fp", "rtn", "ste", "gdnsq"]
tasks = ["toy", "grammar"]
formats = { weights = ["int2"], activations = ["int4"] }
recipe.steps = 6
downstream.tasks = ["grammar_recall"]
[[method]]
name = "gdnsq"
bits_rate = 2.0
[[method]]
name = "rtn"
scale = "hessian"
"""
KEY, LANGUAGE = "@key", "@language"
"""Placeholders for the key of a run on the toy task, and of a run of a language model."""
PRINTED = {
    "sweep": (["sweep", "small.toml"], ["sweep", "small.toml", "--seeds", "1", "--steps", "2"]),
    "status": (["status", "small.toml"], ["sweep", "small.toml", "--dry-run", "--seeds", "3"]),
    "board": (["show", "small"],),
    "run": (["show", KEY],),
    "summary": (["show", "small", "--summary"],),
    "submit": (["submit", "small", "--out", "small.qbench.zip"],),
    "verify": (["verify", "small.qbench.zip"],),
    "merge": (["merge", "small.qbench.zip"],),
    "eval": (["eval", LANGUAGE, "--tasks", "grammar_nesting"],),
    "export": (["export", KEY, "--out", "packed"],),
    "downstream-differences": (["compare", "ste", "rtn", "--downstream"],),
    "compare": (["compare", "ste", "rtn"], ["compare", "fp", "ste"]),
    "methods": (["methods"],),
    "tasks": (["tasks"],),
    "check": (["check", "fp", "--quick"],),
    "publish": (["publish", "small", "--out", "site"],),
    "reproduce": (["reproduce", KEY], ["reproduce", "ste int2 a:int4 toy/xs", "--board", "small"]),
    "doctor": (["doctor"],),
    "new": (["new", "method", "mine"],),
    "db-check": (["db", "check"],),
    "db-rebuild": (["db", "rebuild"],),
}
"""The commands that print what a schema describes, by the name of the schema."""


def make_validator(name: str) -> Draft7Validator:
    return Draft7Validator(FILES[f"{name}.schema.json"], registry=REGISTRY)


@pytest.fixture(scope="module")
def swept_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which a sweep was trained and submitted."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "small.toml").write_text(SWEEP)
    run_json(folder, "sweep", "small.toml")
    run_json(folder, "submit", "small", "--out", "small.qbench.zip")
    return folder


def run_json(folder: Path, *words: str) -> Any:
    """Run a command with --json in a folder, and return what it prints."""
    if {KEY, LANGUAGE} & set(words):
        keys = {
            spec["task"]: file.parts[-3]
            for file in sorted(folder.glob("results/runs/*/*/1/spec.json"))
            if (spec := json.loads(file.read_text()))
        }
        words = tuple(
            {KEY: keys["toy"], LANGUAGE: keys["grammar"]}.get(word, word) for word in words
        )
    with contextlib.chdir(folder):
        done = CliRunner().invoke(cli, [*words, "--json"], env={"QBENCH_RESULTS": "results"})
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", FILES)
def test_every_schema_is_valid_and_strict(name: str) -> None:
    Draft7Validator.check_schema(FILES[name])
    for part in iterate_objects(FILES[name]):
        if "properties" in part:
            assert part.get("additionalProperties") is False, (
                f"{name}: an object accepts any property"
            )


def iterate_objects(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object type in a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from iterate_objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from iterate_objects(value)


@pytest.mark.parametrize(
    ("name", "command"),
    [(name, command) for name, commands in PRINTED.items() for command in commands],
)
def test_a_command_prints_what_its_schema_says(
    name: str, command: list[str], swept_folder: Path
) -> None:
    printed = run_json(swept_folder, *command)
    validator = make_validator(name)
    validator.validate(printed)
    assert printed
    first = printed[0] if isinstance(printed, list) else printed
    if isinstance(first, dict):
        changed = copy.deepcopy(printed)
        (changed[0] if isinstance(printed, list) else changed)["surprise"] = 1
        with pytest.raises(ValidationError, match="surprise"):
            validator.validate(changed)


def test_every_command_that_prints_json_has_a_schema() -> None:
    described = {words[0] for commands in PRINTED.values() for words in commands}
    printing = {
        name.split()[0]
        for name, command in iterate_commands(cli, "")
        if any("--json" in p.opts for p in command.params)
    }
    assert printing <= described


def iterate_commands(group: click.Group, before: str) -> Iterator[tuple[str, click.Command]]:
    """Yield every command below a group, with its full name."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from iterate_commands(command, f"{before}{name} ")
        else:
            yield f"{before}{name}", command
