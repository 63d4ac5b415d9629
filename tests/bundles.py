"""Bundles for tests: of runs that were really trained, with the changes that a forger makes."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbench.checks.method_kit import Kit
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment
from qbench.runs.attempts import Attempt, create_attempt
from qbench.runs.config import RunConfig
from qbench.submissions.bundle import MANIFEST, RUN_FILES, Bundle, encode_manifest
from qbench.submissions.canonical_zip import write_archive
from qbench.submissions.submit import submit_runs
from tests.run_folders import fake_board_members

FilesByRun = dict[str, dict[str, bytes]]
"""The files of each run, by the run's key and the file's name."""
STEPS = 5


def make_configs(folder: Path, method: str, seeds: int, steps: int = STEPS) -> list[RunConfig]:
    first = Kit(method, folder).make_config("int2", steps=steps)
    return [dataclasses.replace(first, seed=seed) for seed in range(seeds)]


def train_runs(results: Path, seeds: int = 1) -> list[Attempt]:
    """Train full precision, its rounding and STE on the toy task; board `b` asks for these runs."""
    attempts: dict[str, Attempt] = {}
    cells: list[list[RunConfig]] = []
    for method in ("fp", "rtn", "ste"):
        cells.append([])
        for config in make_configs(results, method, seeds):
            base = None
            if config.base is not None:
                # The kit's base run is not trained here: take the full-precision run of the seed.
                config = dataclasses.replace(config, base=cells[0][config.seed].key)
                base = attempts[str(config.base)].folder
            attempt = create_attempt(results, config.key)
            run_one(Assignment(config, attempt.folder, base=base))
            attempts[config.key] = attempt
            cells[-1].append(config)
    members = [(cell[0], [config.key for config in cell]) for cell in cells]
    write_board_members(results, members, seeds)
    return list(attempts.values())


def write_board_members(
    results: Path, cells: list[tuple[RunConfig, list[str]]], seeds: int
) -> None:
    """Write the file that says which runs belong to board `b`."""
    members = fake_board_members("b", [(config, None) for config, _ in cells], seeds)
    for cell, (_, keys) in zip(members["cells"], cells, strict=True):
        cell["keys"] = keys
    (results / "boards").mkdir(parents=True, exist_ok=True)
    (results / "boards" / "b.json").write_text(json.dumps(members))


def submit_to_file(results: Path, out: Path, *words: str) -> Path:
    submit_runs(results, words or ("b",), out)
    return out


def read_bundle_files(data: bytes) -> tuple[dict[str, Any], FilesByRun]:
    """Return the manifest of a valid bundle, without its boards, and the files of its runs."""
    bundle = open_bundle_data(data)
    files = {
        run.key: {name: bundle.read_file(run, name) or b"" for name in run.files}
        for run in bundle.runs
    }
    return {**bundle.manifest, "boards": []}, files


def assemble_bundle(manifest: dict[str, Any], files: FilesByRun) -> bytes:
    """Return a bundle of these files with a manifest that describes them correctly.

    This is what a forger who knows the format would write.
    """
    attempts = {run["key"]: run["attempt"] for run in manifest["runs"]}
    runs = [
        {
            "key": key,
            "attempt": attempts.get(key, 1),
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                for name, data in files[key].items()
            },
        }
        for key in sorted(files)
    ]
    return encode_archive({**manifest, "runs": runs}, files)


def encode_archive(manifest: dict[str, Any], files: FilesByRun) -> bytes:
    """Return the archive of these files with the manifest as it is, right or wrong."""
    members = [
        (f"runs/{key}/{name}", files[key][name])
        for key in sorted(files)
        for name in RUN_FILES
        if name in files[key]
    ]
    return encode_members([(MANIFEST, encode_manifest(manifest)), *members])


def open_bundle_data(data: bytes) -> Bundle:
    return Bundle(io.BytesIO(data))


def find_directory(data: bytes) -> int:
    """Return the offset of an archive's central directory, as its end record states it."""
    return int(struct.unpack_from("<L", data, len(data) - 6)[0])


def encode_members(members: list[tuple[str, bytes]]) -> bytes:
    """Return the archive of these (name, content) pairs."""
    out = io.BytesIO()
    write_archive(out, members)
    return out.getvalue()


def forge_json_file(
    data: bytes, file: str, change: Callable[[Any], Any], method: str = "ste"
) -> bytes:
    """Return a bundle in which one JSON file of the first run of a method is changed.

    `change` changes the value in place or returns another one. The hashes are made to fit; if the
    file is the specification, so are the run's key, its folder and its result.
    """
    manifest, files = read_bundle_files(data)
    key = find_run_of_method(files, method)
    own_files = files.pop(key)
    value = json.loads(own_files[file])
    replacement = change(value)
    value = value if replacement is None else replacement
    own_files = {**own_files, file: json.dumps(value, indent=1).encode()}
    if file == "spec.json":
        key = RunConfig.from_json(value).key
        result = {**json.loads(own_files["result.json"]), "key": key}
        own_files["result.json"] = json.dumps(result).encode()
    return assemble_bundle(manifest, {**files, key: own_files})


def find_run_of_method(files: FilesByRun, method: str = "ste") -> str:
    """Return the key of the first run of a method."""
    return next(
        key
        for key, own_files in files.items()
        if json.loads(own_files["spec.json"])["method"] == method
    )
