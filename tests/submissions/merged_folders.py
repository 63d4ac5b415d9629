"""Helpers for tests that merge bundles: changed bundles, and what a results folder shows then."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qbench
from qbench.runs.attempts import Attempt, iterate_attempts
from tests.bundles import assemble_bundle, find_run_of_method, read_bundle_files

Result = dict[str, Any]


def find_ste_run(results: Path) -> str:
    """Return the key of the STE run in a results folder."""
    return next(
        attempt.key
        for attempt in iterate_attempts(results)
        if (attempt.read("spec") or {})["method"] == "ste"
    )


def find_submitted_ste_run(bundle: Path) -> str:
    """Return the key of the STE run in a bundle."""
    return find_run_of_method(read_bundle_files(bundle.read_bytes())[1])


def read_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder except those of the store."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((".lock", "qbench"))
    }


def replace_result(bundle: Path, key: str, out: Path, change: Callable[[Result], object]) -> Path:
    """Write the bundle with another result for one run, for which everything else fits.

    The artefact of the run is removed, because it would reveal the change.
    """
    manifest, files = read_bundle_files(bundle.read_bytes())
    result = json.loads(files[key]["result.json"])
    change(result)
    del files[key]["weights.safetensors"]
    files[key]["result.json"] = json.dumps(result).encode()
    out.write_bytes(assemble_bundle(manifest, files))
    return out


def improve_score(result: Result, by: float = 0.5) -> None:
    """Lower the loss everywhere in a result, so that it still agrees with itself."""
    scores = result["scores"]
    scores |= {name: scores[name] - by for name in ("packed", "simulated")}
    result["metrics"]["loss"] -= by


def write_failure(attempt: Attempt, reason: str, message: str) -> None:
    """Replace the result of an attempt by a failure."""
    result = attempt.read("result") or {}
    kept = {
        name: result[name] for name in ("result_version", "key", "attempt", "started", "finished")
    }
    failure = {"state": "failed", "reason": reason, "message": message}
    attempt.write("result", {**kept, **failure})


def read_cell(results: Path, method: str = "ste") -> tuple[Any, list[str]]:
    """Return the cell of a method on board `b` and the notes that it refers to."""
    section = qbench.results(results).board("b").sections[0]
    cell = next(row for row in section.rows if row.method == method).cells[0]
    return cell, [section.notes[n - 1] for n in cell.notes]
