"""Access to a finished run and its artefact, if its bytes are those that were scored."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qbench.artefact.pack import ARTEFACT
from qbench.errors import QbenchError
from qbench.runs.attempts import Attempt
from qbench.runs.config import RunConfig


def require_finished(record: Mapping[str, Any]) -> tuple[Attempt, RunConfig]:
    """Return attempt and configuration of a run.

    Raises:
        QbenchError: The run has no result, or it failed.
    """
    result = record["result"]
    if result is None or record["spec"] is None:
        raise QbenchError(f"run {record['key']} has no result yet; qbench sweep finishes it")
    if result["state"] != "ok":
        raise QbenchError(f"run {record['key']} failed ({result['reason']}), so it has no model")
    return Attempt(Path(record["folder"])), RunConfig.from_json(record["spec"])


def require_artefact(attempt: Attempt, result: Mapping[str, Any]) -> Path:
    """Return the path of the file that was scored.

    Raises:
        QbenchError: The file is gone, or its bytes have changed.
    """
    path = attempt.export / ARTEFACT
    if not path.exists():
        raise QbenchError(
            f"run {attempt.key}: its artefact is gone from {attempt.export}; remove the run's "
            "folder, and qbench sweep trains it again"
        )
    if hashlib.sha256(path.read_bytes()).hexdigest() != result["artefact_sha256"]:
        raise QbenchError(f"{path} is not the artefact that was scored: its bytes have changed")
    return path
