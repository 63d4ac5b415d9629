"""The artefact of a finished run, if its bytes are those that were scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.artefact.pack import ARTEFACT
from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig


def finished(record: Mapping[str, Any]) -> tuple[Attempt, RunConfig]:
    result = record["result"]
    if result is None or record["spec"] is None:
        raise QbenchError(f"run {record['key']} has no result yet; qbench sweep finishes it")
    if result["state"] != "ok":
        raise QbenchError(
            f"run {record['key']} failed ({result['reason']}), so there is no model to ask"
        )
    return Attempt(Path(record["folder"])), RunConfig.from_json(record["spec"])


def the_artefact(attempt: Attempt, result: Mapping[str, Any]) -> Path:
    """The file that was scored, and no other."""
    path = attempt.export / ARTEFACT
    if not path.exists():
        raise QbenchError(
            f"run {attempt.key}: its artefact is gone from {attempt.export}; qbench sweep makes a run again once its folder is removed"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != result["artefact_sha256"]:
        raise QbenchError(f"{path} is not the artefact that was scored: its bytes have changed")
    return path
