"""Submitted runs are compared with installed plugins, evaluated and trained again."""

from __future__ import annotations

import dataclasses
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from qbench.runs.config import RunConfig, canonical_json
from qbench.submissions import reevaluate
from qbench.submissions.artefact_facts import read_artefact_facts
from qbench.submissions.reevaluate import SubmissionWorker
from tests.bundles import assemble_bundle, find_run_of_method, forge_json_file, read_bundle_files
from tests.submissions.verified_bundles import (
    change_artefact,
    change_json_file,
    find_failures,
    verify_data,
)


def improve_all_scores(result: dict[str, Any]) -> None:
    """Improve every number that depends on the score, so that the files agree with one another."""
    for name in ("packed", "simulated", "validation", "latent"):
        result["scores"][name] -= 0.2
    result["metrics"]["loss"] -= 0.2


def test_evaluation_finds_a_score_that_the_artefact_does_not_reach(valid_bundle: bytes) -> None:
    data = change_json_file(valid_bundle, "result.json", improve_all_scores)
    assert not find_failures(data)
    assert "but its artefact reaches" in find_failures(data, score=True)["evaluation"]


def test_evaluation_finds_a_changed_artefact_whose_counts_are_right(valid_bundle: bytes) -> None:
    """The sign of a scale changes no count, so the result can be made to fit the artefact."""
    manifest, files = read_bundle_files(valid_bundle)
    own_files = files[find_run_of_method(files)]

    def negate_scale(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["wide.weight.scale"] *= -1

    artefact = change_artefact(own_files["weights.safetensors"], negate_scale)
    facts, result = read_artefact_facts(artefact, "a"), json.loads(own_files["result.json"])
    result["artefact_sha256"] = facts.sha256
    result["size"]["artefact_bytes"] = facts.file_bytes
    own_files |= {"weights.safetensors": artefact, "result.json": json.dumps(result).encode()}
    data = assemble_bundle(manifest, files)
    assert not find_failures(data)
    assert "but its artefact reaches" in find_failures(data, score=True)["evaluation"]


def test_training_again_finds_a_run_with_another_result(valid_bundle: bytes) -> None:
    def forge(result: dict[str, Any]) -> None:
        improve_all_scores(result)
        result["artefact_sha256"] = "0" * 64

    manifest, files = read_bundle_files(change_json_file(valid_bundle, "result.json", forge))
    del files[find_run_of_method(files)]["weights.safetensors"]
    data = assemble_bundle(manifest, files)
    assert not find_failures(data, score=True)
    assert "reaches another result" in find_failures(data, rerun=None)["rerun"]


@pytest.mark.parametrize(
    ("task", "params"),
    [
        ("text", {"corpus": "path:{}"}),
        ("hf-causal", {"model": "{}", "corpus": "stdlib"}),
        ("hf-causal", {"model": "model:0", "corpus": "path:{}"}),
        ("hf-causal", {"model": "nobody/nothing", "corpus": "stdlib"}),
    ],
)
def test_paths_and_downloads_in_submitted_parameters_are_refused_unopened(
    task: str, params: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbench.plugins import registry
    from qbench.submissions.reevaluate import _find_parameter_problem

    def fail(*_: object) -> None:
        raise AssertionError("the task opened what its options name")

    monkeypatch.setattr(registry.load("tasks", task), "key_options", fail)
    options = canonical_json({name: value.format(tmp_path) for name, value in params.items()})
    assert "name a place" in (_find_parameter_problem("tasks", task, options) or "")


def test_runs_of_plugins_that_are_not_installed_stay_claimed_with_a_note(
    valid_bundle: bytes,
) -> None:
    for change, reason in (
        ({"method": "unheard"}, "method unheard is not installed here"),
        ({"method_version": 99}, "method ste has version 1 here, not 99"),
        ({"task": "unheard"}, "task unheard is not installed here"),
        ({"task_version": 99}, "task toy has version 1 here, not 99"),
        ({"data": "other"}, "task toy has other data here"),
    ):
        data = forge_json_file(
            valid_bundle, "spec.json", lambda spec, change=change: {**spec, **change}
        )
        # The method and task of a run with other data are installed, so it would be trained again.
        report = verify_data(data, score=True, rerun=0 if "data" in change else None)
        notes = [finding.detail for finding in report.findings if finding.verdict == "note"]
        assert report.passed and len(notes) == 1 and reason in notes[0], (notes, change)
        assert sorted(report.trust.values())[0] == "claimed"


def test_an_evaluation_that_fails_or_dies_does_not_affect_the_next(
    valid_bundle: bytes, tmp_path: Path
) -> None:
    files = read_bundle_files(valid_bundle)[1]
    own_files = files[find_run_of_method(files)]
    artefact = tmp_path / "weights.safetensors"
    artefact.write_bytes(own_files["weights.safetensors"])
    spec, result = json.loads(own_files["spec.json"]), json.loads(own_files["result.json"])
    other_task = dataclasses.replace(
        RunConfig.from_json(spec),
        task="linreg",
        size="l",
        task_params={"alpha": 1.1, "rotated": True, "exact": True},
        data="x" * 8,
    )
    question = {"spec": spec, "artefact": str(artefact)}
    died = {"error": "the process that evaluates died", "misfit": False}
    with SubmissionWorker() as worker:
        assert "error" in worker.request_answer({**question, "spec": other_task.to_json()})
        assert worker.request_answer(question)["packed"] == result["scores"]["packed"]
        assert worker.process
        worker.process.kill()
        assert worker.request_answer(question) == died
        assert "packed" in worker.request_answer(question)


def test_an_evaluation_that_takes_too_long_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reevaluate, "EVALUATION_TIMEOUT_S", 0.0)
    with SubmissionWorker() as worker:
        answer = worker.request_answer({"spec": {}, "artefact": ""})
        assert "took more than" in answer["error"] and worker.process is None


def test_the_process_that_evaluates_has_limited_memory() -> None:
    code = (
        "import torch; from qbench.submissions.worker import limit_memory\n"
        "limit_memory(); torch.empty(6 << 30, dtype=torch.uint8)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "memory" in done.stderr


def test_training_a_submitted_run_again_downloads_nothing(
    valid_bundle: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run needs a corpus from the Hugging Face hub, and a local server would answer for it."""
    from qbench.plugins import registry

    requests: list[Any] = []
    handler = http.server.BaseHTTPRequestHandler
    hub = http.server.HTTPServer(("127.0.0.1", 0), handler)
    monkeypatch.setattr(handler, "handle", lambda self: requests.append(self.client_address))
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    task = registry.build("tasks", "text", {"corpus": "hf:nobody/nothing"})
    manifest, files = read_bundle_files(valid_bundle)
    own_files = files[find_run_of_method(files)]
    spec, result = json.loads(own_files["spec.json"]), json.loads(own_files["result.json"])
    spec |= {
        "task": "text",
        "task_version": task.version,
        "task_params": dict(task.key_options()),
        "size": next(iter(task.sizes)),
    }
    key = RunConfig.from_json(spec).key
    result |= {
        "key": key,
        "metric": vars(task.metric),
        "metrics": {task.metric.name: result["scores"]["packed"]},
    }
    files = {
        key: {
            "spec.json": json.dumps(spec).encode(),
            "result.json": json.dumps(result).encode(),
            "curve.jsonl": own_files["curve.jsonl"],
        }
    }
    try:
        report = verify_data(assemble_bundle(manifest, files), rerun=None)
    finally:
        hub.shutdown()
        hub.server_close()
    assert report.passed and report.trust == {key: "claimed"}, report.failures()
    assert not requests
    (note,) = (f.detail for f in report.findings if (f.check, f.verdict) == ("rerun", "note"))
    assert note.startswith(f"run {key[:12]} cannot be trained here: hf:nobody/nothing")
    assert "nothing is downloaded" in note
