"""Helpers for tests of verification: changed bundles and the checks that fail for them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

from safetensors.numpy import load, save

from qbench.submissions.bundle import Bundle
from qbench.submissions.report import VerificationReport
from qbench.submissions.verify import verify_open_bundle
from tests.bundles import assemble_bundle, find_run_of_method, read_bundle_files

Change = Callable[[Any], Any]


def verify_data(data: bytes, **options: Any) -> VerificationReport:
    """Return the report of a bundle; its artefacts are evaluated only if the options ask for it."""
    report = VerificationReport()
    verify_open_bundle(Bundle(io.BytesIO(data)), report, **{"score": False, **options})
    return report


def find_failures(data: bytes, **options: Any) -> dict[str, str]:
    """Return the details of the failed checks by check, joined where a check has several."""
    details: dict[str, list[str]] = {}
    for finding in verify_data(data, **options).findings:
        if finding.verdict == "FAILED":
            details.setdefault(finding.check, []).append(finding.detail)
    return {check: "; ".join(texts) for check, texts in details.items()}


def set_entry(path: str, value: Any) -> Change:
    """Return a function that changes one entry, such as `scores.packed` or `sites.0.name`.

    The entry becomes `value`, or what `value` makes of it if it is a function; `...` deletes it.
    """

    def change(data: Any) -> None:
        *parents, last = [int(word) if word.isdigit() else word for word in path.split(".")]
        for word in parents:
            data = data[word]
        if value is ...:
            del data[last]
        else:
            data[last] = value(data[last]) if callable(value) else value

    return change


def change_json_file(data: bytes, file: str, change: Change) -> bytes:
    """Return a bundle with one changed file; unlike in `forge_json_file`, the run's key stays."""
    manifest, files = read_bundle_files(data)
    own_files = files[find_run_of_method(files)]
    value = json.loads(own_files[file])
    change(value)
    own_files[file] = json.dumps(value).encode()
    return assemble_bundle(manifest, files)


ArtefactChange = Callable[[dict[str, Any], dict[str, Any]], None]
"""Changes an artefact's header and tensors in place."""


def change_artefact(data: bytes, change: ArtefactChange) -> bytes:
    """Return the artefact with the changed header and tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["qbench"])
    tensors = {name: tensor.copy() for name, tensor in load(data).items()}
    change(header, tensors)
    return save(tensors, {"qbench": json.dumps(header)})
