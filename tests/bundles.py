"""Bundles for tests: of runs that were really trained, and with whatever a forger would change."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qbench.checks.method_kit import Kit
from qbench.engines.dispatch import run_one
from qbench.execution.assignment import Assignment
from qbench.runs.attempts import Attempt, new_attempt
from qbench.runs.config import RunConfig
from qbench.submissions import canonical_zip
from qbench.submissions.bundle import FILES, MANIFEST, Bundle, spell
from qbench.submissions.submit import submit
from tests.made_runs import roster

Files = dict[str, dict[str, bytes]]
"""Of each run, by its key."""
STEPS = 5


def configs(folder: Path, method: str, seeds: int, steps: int = STEPS) -> list[RunConfig]:
    first = Kit(method, folder).config("int2", steps=steps)
    return [dataclasses.replace(first, seed=seed) for seed in range(seeds)]


def train_runs(results: Path, seeds: int = 1) -> list[Attempt]:
    """Full precision, its rounding, and STE, on the toy task; and the board `b` that asks for them."""
    made: dict[str, Attempt] = {}
    cells = []
    for method in ("fp", "rtn", "ste"):
        for config in configs(results, method, seeds):
            if config.base is not None:
                config = dataclasses.replace(config, base=cells[0][config.seed].key)
            attempt = new_attempt(results, config.key)
            run_one(
                Assignment(
                    config, attempt.folder, base=made[config.base].folder if config.base else None
                )
            )
            made[config.key] = attempt
            cells += [[]] * (config.seed == 0)
            cells[-1] = [*cells[-1], config]
    write_roster(results, [(cell[0], [config.key for config in cell]) for cell in cells], seeds)
    return list(made.values())


def write_roster(results: Path, cells: list[tuple[RunConfig, list[str]]], seeds: int) -> None:
    members = roster("b", [(config, None) for config, _ in cells], seeds)
    for cell, (_, keys) in zip(members["cells"], cells, strict=True):
        cell["keys"] = keys
    (results / "boards").mkdir(parents=True, exist_ok=True)
    (results / "boards" / "b.json").write_text(json.dumps(members))


def packed(results: Path, out: Path, *words: str) -> Path:
    submit(results, words or ("b",), out)
    return out


def unpack(data: bytes) -> tuple[dict[str, Any], Files]:
    """The manifest of a good bundle, without its boards, and the files of its runs."""
    bundle = Bundle(io.BytesIO(data))
    return {**bundle.manifest, "boards": []}, {
        run.key: {name: bundle.read(run, name) or b"" for name in run.files} for run in bundle.runs
    }


def assemble(manifest: dict[str, Any], files: Files) -> bytes:
    """A bundle of these files whose manifest tells the truth about them: what a forger who knows the format would write."""
    runs = [
        {
            "key": key,
            "attempt": next((run["attempt"] for run in manifest["runs"] if run["key"] == key), 1),
            "files": {
                name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
                for name, data in files[key].items()
            },
        }
        for key in sorted(files)
    ]
    return written({**manifest, "runs": runs}, files)


def written(manifest: dict[str, Any], files: Files) -> bytes:
    """The archive of a manifest as it is and of these files."""
    out = io.BytesIO()
    members = [
        (f"runs/{key}/{name}", files[key][name])
        for key in sorted(files)
        for name in FILES
        if name in files[key]
    ]
    canonical_zip.write(out, [(MANIFEST, spell(manifest)), *members])
    return out.getvalue()


def forged(data: bytes, file: str, change: Callable[[Any], Any], method: str = "ste") -> bytes:
    """A bundle in which one JSON file of the first run of a method is changed, and everything that depends on it follows: the hashes, and, if
    it is the specification, the key, the folder and the result."""
    manifest, files = unpack(data)
    key = next(
        key for key, own in files.items() if json.loads(own["spec.json"])["method"] == method
    )
    own = files.pop(key)
    value = json.loads(own[file])
    changed = change(value)
    value = value if changed is None else changed
    own = {**own, file: json.dumps(value, indent=1).encode()}
    if file == "spec.json":
        key = RunConfig.from_json(value).key
        own["result.json"] = json.dumps({**json.loads(own["result.json"]), "key": key}).encode()
    return assemble(manifest, {**files, key: own})
