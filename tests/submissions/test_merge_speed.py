"""A bundle of a thousand runs is merged within seconds.

`python -m tests.submissions.test_merge_speed` merges ten thousand and prints the time.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from qbench.runs.attempts import list_attempts
from qbench.runs.config import RunConfig
from qbench.submissions.merge import merge_bundle
from tests.bundles import FilesByRun, assemble_bundle, train_runs
from tests.submissions.merged_folders import find_ste_run


def test_a_thousand_runs_are_merged_within_seconds(trained: Path, tmp_path: Path) -> None:
    # The time of this process, because the machine may be busy with others.
    start = time.process_time()
    merge_many_runs(trained, tmp_path, 1000)
    assert time.process_time() - start < 6.0


def merge_many_runs(trained: Path, folder: Path, count: int) -> float:
    """Return how many seconds it takes to verify and merge `count` runs with their curves."""
    source = list_attempts(trained, find_ste_run(trained))[0]
    result = source.read("result") or {}
    config = RunConfig.from_json(source.read("spec") or {})
    made = {"qbench": "0", "by": None}
    manifest: dict[str, Any] = {"bundle_version": 1, "made": made, "note": None, "runs": []}
    files: FilesByRun = {}
    for seed in range(1000, 1000 + count):
        copy = dataclasses.replace(config, seed=seed)
        files[copy.key] = {
            "spec.json": json.dumps(copy.to_json(), indent=1).encode(),
            "env.json": (source.folder / "env.json").read_bytes(),
            "result.json": json.dumps({**result, "key": copy.key}, indent=1).encode(),
            "curve.jsonl": source.curve.read_bytes(),
        }
    bundle = folder / "many.zip"
    bundle.write_bytes(assemble_bundle(manifest, files))
    start = time.monotonic()
    assert merge_bundle(folder / "many", bundle, score=False).added == count
    return time.monotonic() - start


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "trained"
        train_runs(results)
        seconds = merge_many_runs(results, Path(scratch), 10_000)
        print(f"10 000 runs merged in {seconds:.1f} s")
