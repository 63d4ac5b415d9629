"""False entries in the files of a run fail the check that they concern."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import pytest

from qbench.runs.config import canonical_json
from tests.bundles import assemble_bundle, find_run_of_method, read_bundle_files
from tests.submissions.verified_bundles import Change, change_json_file, find_failures, set_entry

FALSE_ENTRIES: list[tuple[str, str, str, Any]] = [
    ("schema", "result.json", "more", 1),
    ("schema", "result.json", "scores.more", 1),
    ("schema", "result.json", "state", "splendid"),
    ("schema", "result.json", "state", ...),
    ("schema", "result.json", "scores.packed", "0.5"),
    ("schema", "result.json", "scores.packed", True),
    ("schema", "result.json", "scores", []),
    ("schema", "result.json", "message", "x" * 10_000),
    ("schema", "result.json", "metric.digits", 10**9),
    ("schema", "result.json", "cost.train_s", -1.0),
    ("schema", "result.json", "size.parameters", 2**70),
    ("schema", "result.json", "attempt", 0),
    ("schema", "result.json", "kinds", {"packed": "huge"}),
    ("schema", "result.json", "started", "yesterday"),
    ("schema", "env.json", "hostname", "x"),
    ("schema", "env.json", "threads", 2**31),
    ("schema", "env.json", "dirty", "no"),
    ("schema", "env.json", "commit", "main"),
    ("keys", "result.json", "key", "f" * 32),
    ("keys", "result.json", "attempt", 7),
    ("results", "result.json", "reason", "oom"),
    ("results", "result.json", "state", "failed"),
    ("results", "result.json", "message", "well done"),
    ("curves", "result.json", "train", ...),
    ("results", "result.json", "audit", ...),
    ("results", "result.json", "scores", ...),
    ("results", "result.json", "finished", "2020-01-01T00:00:00+00:00"),
    ("results", "result.json", "train.steps", 6),
    ("results", "result.json", "cost.step_s_median", 1e6),
    ("scores", "result.json", "scores.packed", lambda x: x - 0.1),
    ("scores", "result.json", "scores.packed", None),
    ("scores", "result.json", "kinds", {"packed": "nan"}),
    ("scores", "result.json", "metric.name", "accuracy"),
    ("scores", "result.json", "metrics", {}),
    ("audits", "result.json", "audit.passed", False),
    ("audits", "result.json", "audit.checks.0.passed", False),
    ("audits", "result.json", "audit.checks", lambda checks: checks[1:]),
    ("audits", "result.json", "audit.checks", lambda checks: [*checks, checks[0]]),
    ("audits", "result.json", "scores.simulated", lambda x: x * 1.001),
    ("artefacts", "result.json", "size.bits_per_weight", 2.0),
    ("artefacts", "result.json", "size.artefact_bytes", 1),
    ("artefacts", "result.json", "size.levels", 2),
    ("artefacts", "result.json", "size.parameters", lambda n: n + 1),
    ("artefacts", "result.json", "size.quantized_parameters", lambda n: n - 1),
    ("artefacts", "result.json", "artefact_sha256", "0" * 64),
    ("artefacts", "result.json", "artefact_sha256", None),
    ("artefacts", "result.json", "sites.0.levels_used", 2),
    ("artefacts", "result.json", "sites.0.levels", 4),
    ("artefacts", "result.json", "sites.0.format", "int4"),
    ("artefacts", "result.json", "sites.0.shape", [16, 32]),
    ("artefacts", "result.json", "sites.0.name", "other"),
    ("artefacts", "result.json", "sites", []),
    ("schema", "spec.json", "more", 1),
    ("schema", "spec.json", "weights.format", 2),
    ("schema", "spec.json", "method_params.scale", {"deep": {"deeper": 1}}),
    ("keys", "spec.json", "seed", 1),
    ("keys", "spec.json", "recipe.lr", 0.5),
    ("plugins", "result.json", "metric.better", "higher"),
    ("plugins", "result.json", "metric.effect", 1e-9),
    ("plugins", "result.json", "metric.unit", "=HYPERLINK()"),
]


@pytest.mark.parametrize(
    ("check", "file", "path", "value"),
    FALSE_ENTRIES,
    ids=[f"{n}-{path}" for n, (_, _, path, _) in enumerate(FALSE_ENTRIES)],
)
def test_the_check_that_a_false_entry_concerns_fails(
    valid_bundle: bytes, check: str, file: str, path: str, value: Any
) -> None:
    data = change_json_file(valid_bundle, file, set_entry(path, value))
    failures = find_failures(data)
    assert check in failures and failures[check].isprintable()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipe.steps", 0, "minimum|bigger"),
        ("recipe.beta1", 2.0, "beta1 must be in"),
        ("recipe.objective", "task", "spells out default values"),
        ("method_params.scale", "huge", "unknown value 'huge'"),
        ("method_params", {}, "are incomplete"),
        ("method_params.more", 1, "unknown parameter"),
        ("size", "xxl", "no size xxl"),
        ("weights.format", "int4", "which its configuration does not ask for"),
        ("weights.granularity", "tensor", "which its configuration does not ask for"),
    ],
)
def test_a_configuration_that_qbench_would_not_make_is_refused(
    valid_bundle: bytes, path: str, value: Any, message: str
) -> None:
    manifest, files = read_bundle_files(valid_bundle)
    own_files = files.pop(find_run_of_method(files))
    spec = json.loads(own_files["spec.json"])
    set_entry(path, value)(spec)
    # The key is the hash of what the file says, so only the content can be refused.
    key = hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:32]
    own_files["spec.json"] = json.dumps(spec).encode()
    own_files["result.json"] = json.dumps(
        {**json.loads(own_files["result.json"]), "key": key}
    ).encode()
    failures = find_failures(assemble_bundle(manifest, {**files, key: own_files}))
    assert re.search(message, " ".join(failures.values())), failures


@pytest.mark.parametrize(
    ("message", "change"),
    [
        ("not in ascending order", lambda lines: [lines[1], lines[0], *lines[2:]]),
        ("not in ascending order", lambda lines: [lines[0], *lines]),
        ("does not end with", lambda lines: lines[:-1]),
        ("does not end with", lambda lines: []),
        ("goes to step 6 of 5", lambda lines: [*lines, {**lines[-1], "step": 6, "progress": 1.0}]),
        ("progress", lambda lines: [{**lines[0], "progress": 0.9}, *lines[1:]]),
        ("does not end with", lambda lines: [*lines[:-1], {**lines[-1], "loss": 0.0}]),
        ("must not contain", lambda lines: [{**lines[0], "more": 1}, *lines[1:]]),
        ("must be", lambda lines: [{**lines[0], "loss": "low"}, *lines[1:]]),
        ("must be", lambda lines: [[], *lines]),
    ],
)
def test_an_impossible_curve_is_refused(valid_bundle: bytes, message: str, change: Change) -> None:
    manifest, files = read_bundle_files(valid_bundle)
    own_files = files[find_run_of_method(files)]
    lines = change([json.loads(line) for line in own_files["curve.jsonl"].splitlines()])
    own_files["curve.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    failures = find_failures(assemble_bundle(manifest, files))
    assert set(failures) <= {"curves", "schema"}
    assert message in " ".join(failures.values()), failures
