"""What of a bundle is believed: every lie that the bundle alone can betray, scores that do not come out, and runs that are trained again."""

from __future__ import annotations

import dataclasses
import hashlib
import http.server
import io
import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from qbench.runs.config import RunConfig, canonical
from qbench.submissions import artefact_facts, reevaluate
from qbench.submissions.bundle import Bundle
from qbench.submissions.file_checks import load as load_run
from qbench.submissions.reevaluate import Worker
from qbench.submissions.report import Report
from qbench.submissions.strict_json import Refused
from qbench.submissions.verify import examine, verify
from tests.bundles import assemble, forged, packed, train_runs, unpack

Change = Callable[[Any], Any]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    results = tmp_path_factory.mktemp("trained")
    train_runs(results)
    return packed(results, results / "b.qbench.zip").read_bytes()


def report_of(data: bytes, **how: Any) -> Report:
    report = Report()
    examine(Bundle(io.BytesIO(data)), report, **{"score": False, **how})
    return report


def failed(data: bytes, **how: Any) -> dict[str, str]:
    found: dict[str, str] = {}
    for finding in report_of(data, **how).findings:
        if finding.verdict == "FAILED":
            found[finding.check] = "; ".join(
                filter(None, (found.get(finding.check), finding.detail))
            )
    return found


def put(path: str, value: Any) -> Change:
    """A change of one entry: `scores.packed`, `sites.0.name`."""

    def change(data: Any) -> None:
        *way, last = [int(word) if word.isdigit() else word for word in path.split(".")]
        for word in way:
            data = data[word]
        if value is ...:
            del data[last]
        else:
            data[last] = value(data[last]) if callable(value) else value

    return change


# ---- what holds ----


def test_what_was_trained_here_is_verified(good: bytes) -> None:
    report = report_of(good, score=True)
    assert report.passed and report.runs == 3 and set(report.trust.values()) == {"verified"}
    assert [f.check for f in report.findings] == [
        *(
            "archive",
            "manifest",
            "boards",
            "schema",
            "keys",
            "results",
            "scores",
            "audits",
            "curves",
            "artefacts",
            "plugins",
            "evaluation",
        ),
    ]


def test_without_the_scores_it_is_only_claimed(good: bytes) -> None:
    report = report_of(good)
    assert report.passed and set(report.trust.values()) == {"claimed"}


def test_without_its_artefact_a_run_is_only_claimed(good: bytes) -> None:
    manifest, files = unpack(good)
    for own in files.values():
        del own["weights.safetensors"]
    report = report_of(assemble(manifest, files), score=True)
    assert report.passed and set(report.trust.values()) == {"claimed"}


def test_runs_that_come_to_the_same_here_are_reproduced(good: bytes) -> None:
    report = report_of(good, rerun=None)
    assert report.passed and set(report.trust.values()) == {"reproduced"}
    assert report.findings[-1].detail.startswith("3 of 3 runs trained again")


def test_so_many_runs_are_drawn_as_asked(good: bytes) -> None:
    report = report_of(good, rerun=1)
    assert sorted(report.trust.values()) == ["claimed", "claimed", "reproduced"]


def test_a_failed_run_is_claimed(good: bytes) -> None:
    def fail(result: dict[str, Any]) -> dict[str, Any]:
        words = ("result_version", "key", "attempt", "started", "finished")
        return {name: result[name] for name in words} | {
            "state": "failed",
            "reason": "oom",
            "message": "no room",
        }

    manifest, files = unpack(forged(good, "result.json", fail))
    assert failed(assemble(manifest, files)) == {
        "results": f"run {ste(files)[:12]}: failed, and has an artefact"
    }
    del files[ste(files)]["weights.safetensors"]
    report = report_of(assemble(manifest, files))
    assert report.passed and report.trust[ste(files)] == "claimed"


def ste(files: dict[str, dict[str, bytes]]) -> str:
    return next(
        key for key, own in files.items() if json.loads(own["spec.json"])["method"] == "ste"
    )


# ---- lies that the files betray ----

LIES: list[tuple[str, str, str, Any]] = [
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
    ("check", "file", "path", "value"), LIES, ids=[f"{n}-{lie[2]}" for n, lie in enumerate(LIES)]
)
def test_a_lie_is_found_by_the_check_that_it_concerns(
    good: bytes, check: str, file: str, path: str, value: Any
) -> None:
    data = raw(good, file, put(path, value))
    found = failed(data)
    assert check in found and found[check].isprintable()


def raw(data: bytes, file: str, change: Change) -> bytes:
    """As `forged`, but the key stays what it was."""
    manifest, files = unpack(data)
    own = files[ste(files)]
    value = json.loads(own[file])
    change(value)
    own[file] = json.dumps(value).encode()
    return assemble(manifest, files)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("recipe.steps", 0, "minimum|bigger"),
        ("recipe.beta1", 2.0, "beta1 must be in"),
        ("recipe.objective", "task", "defaults are spelled out"),
        ("method_params.scale", "huge", "unknown value 'huge'"),
        ("method_params", {}, "not all there"),
        ("method_params.more", 1, "unknown parameter"),
        ("size", "xxl", "no size xxl"),
        ("weights.format", "int4", "which its configuration does not ask for"),
        ("weights.granularity", "tensor", "which its configuration does not ask for"),
    ],
)
def test_a_configuration_that_qbench_would_not_have_made_is_refused(
    good: bytes, path: str, value: Any, sentence: str
) -> None:
    manifest, files = unpack(good)
    own = files.pop(ste(files))
    spec = json.loads(own["spec.json"])
    put(path, value)(spec)
    key = hashlib.sha256(canonical(spec).encode()).hexdigest()[:32]
    result = json.dumps({**json.loads(own["result.json"]), "key": key}).encode()
    found = failed(
        assemble(
            manifest,
            {**files, key: {**own, "spec.json": json.dumps(spec).encode(), "result.json": result}},
        )
    )
    assert re.search(sentence, " ".join(found.values())), found


@pytest.mark.parametrize(
    ("sentence", "change"),
    [
        ("does not go forward", lambda lines: [lines[1], lines[0], *lines[2:]]),
        ("does not go forward", lambda lines: [lines[0], *lines]),
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
def test_a_curve_that_cannot_be_is_found_out(good: bytes, sentence: str, change: Change) -> None:
    manifest, files = unpack(good)
    own = files[ste(files)]
    lines = change([json.loads(line) for line in own["curve.jsonl"].splitlines()])
    own["curve.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    found = failed(assemble(manifest, files))
    assert set(found) <= {"curves", "schema"} and sentence in " ".join(found.values()), found


def test_every_failure_of_a_kind_is_told_up_to_a_number(good: bytes) -> None:
    report = Report()
    report.add("keys", "", [f"run {n}" for n in range(30)])
    assert len(report.findings) == 21 and report.findings[-1].detail == "and 10 more"


# ---- artefacts ----


def rewritten(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """An artefact with another header or other tensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["qbench"])
    tensors = {name: tensor.copy() for name, tensor in load(data).items()}
    change(header, tensors)
    return save(tensors, {"qbench": json.dumps(header)})


def weight(header: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = header["weights"]["wide.weight"]
    return found


ODD_ARTEFACTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
    "more bits than levels": lambda h, t: weight(h).update(high=9.0),
    "no levels": lambda h, t: weight(h).update(low=5.0),
    "broken levels": lambda h, t: weight(h).update(low=-1.3),
    "an unsorted codebook": lambda h, t: weight(h).update(codebook=[1.0, 0.0]),
    "another shape": lambda h, t: weight(h).update(shape=[64, 33]),
    "a shape of terabytes": lambda h, t: weight(h).update(shape=[2**40, 2**10], full_shape=[2**40, 2**10]),
    "another full shape": lambda h, t: weight(h).update(full_shape=[64, 33]),
    "other bits": lambda h, t: weight(h).update(bits=3),
    "another granularity": lambda h, t: weight(h).update(granularity="tensor"),
    "a block that does not fit": lambda h, t: weight(h).update(granularity="block-5", block=5),
    "a block of nothing": lambda h, t: weight(h).update(granularity="block-0", block=0),
    "a block beside a channel": lambda h, t: weight(h).update(block=4),
    "no scale": lambda h, t: t.__delitem__("wide.weight.scale"),
    "no codes": lambda h, t: t.__delitem__("wide.weight.codes"),
    "a scale too many": lambda h, t: t.update({"wide.weight.scale": np.ones((65, 1), np.float32)}),
    "a scale that is not finite": lambda h, t: t["wide.weight.scale"].__setitem__(0, math.nan),
    "a scale of doubles": lambda h, t: t.update({"wide.weight.scale": t["wide.weight.scale"].astype(np.float64)}),
    "codes of floats": lambda h, t: t.update({"wide.weight.codes": t["wide.weight.codes"].astype(np.float32)}),
    "codes too few": lambda h, t: t.update({"wide.weight.codes": t["wide.weight.codes"][:-1]}),
    "codes beyond the levels": lambda h, t: t["wide.weight.codes"].__setitem__(0, 255),
    "the weight in full besides": lambda h, t: t.update({"wide.weight": np.zeros((64, 32), np.float32)}),
    "codes of nobody": lambda h, t: t.update({"ghost.codes": np.zeros(3, np.uint8)}),
    "a grid of nobody": lambda h, t: t.update({"ghost.input.scale": np.ones((1, 1), np.float32)}),
    "an input without a scale": lambda h, t: h.update(inputs={"wide": {k: v for k, v in weight(h).items() if "shape" not in k and k != "block"}}),
    "a site that is no weight": lambda h, t: h["weights"].update(wide=weight(h)),
    "another version": lambda h, t: h.update(artefact_version=2),
    "something more": lambda h, t: h.update(more=1),
    "something more of a weight": lambda h, t: weight(h).update(more=1),
    "no weights": lambda h, t: h.update(weights={}),
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD_ARTEFACTS)
def test_an_artefact_that_is_not_what_it_says_is_refused(good: bytes, odd: str) -> None:
    data = unpack(good)[1]
    own = data[ste(data)]["weights.safetensors"]
    assert artefact_facts.read(own, "a").levels == 3
    with pytest.raises(Refused):
        artefact_facts.read(rewritten(own, ODD_ARTEFACTS[odd]), "a")


@pytest.mark.parametrize(
    "data",
    [
        b"", b"1234567", b"\xff" * 8, b"\xff" * 100, (2**63).to_bytes(8, "little"), (2).to_bytes(8, "little") + b"{}", (4).to_bytes(8, "little") + b"null",
        (100).to_bytes(8, "little") + b"[" * 100, (20).to_bytes(8, "little") + b'{"__metadata__":null}',
    ],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        artefact_facts.read(data, "a")


def test_the_facts_are_those_that_training_wrote_down(good: bytes) -> None:
    for own in unpack(good)[1].values():
        facts, size = (
            artefact_facts.read(own["weights.safetensors"], "a"),
            json.loads(own["result.json"])["size"],
        )
        told = (
            size["quantized_parameters"],
            size["bits_per_weight"],
            size["levels"],
            size["artefact_bytes"],
        )
        assert told == (facts.quantized, facts.bits_per_weight, facts.levels, facts.size)


# ---- scores ----


def better(result: dict[str, Any]) -> None:
    """Everything about the score moved at once, so that the files agree with one another."""
    for name in ("packed", "simulated", "validation", "latent"):
        result["scores"][name] -= 0.2
    result["metrics"]["loss"] -= 0.2


def test_a_score_that_its_artefact_does_not_come_to_is_found_by_evaluating(good: bytes) -> None:
    data = raw(good, "result.json", better)
    assert not failed(data)
    assert "its artefact comes to" in failed(data, score=True)["evaluation"]


def test_another_runs_artefact_is_found_by_evaluating(good: bytes) -> None:
    """Everything that can be counted is that of the artefact; only the score is not."""
    manifest, files = unpack(good)
    key = ste(files)

    def flip(header: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["wide.weight.scale"] *= -1

    own = files[key]
    own["weights.safetensors"] = rewritten(own["weights.safetensors"], flip)
    facts, result = (
        artefact_facts.read(own["weights.safetensors"], "a"),
        json.loads(own["result.json"]),
    )
    result |= {
        "artefact_sha256": facts.sha256,
        "size": {**result["size"], "artefact_bytes": facts.size},
    }
    own["result.json"] = json.dumps(result).encode()
    data = assemble(manifest, files)
    assert not failed(data) and "its artefact comes to" in failed(data, score=True)["evaluation"]


def test_a_run_that_comes_to_something_else_when_trained_is_found(good: bytes) -> None:
    data = raw(good, "result.json", lambda r: [better(r), r.update(artefact_sha256="0" * 64)])
    manifest, files = unpack(data)
    del files[ste(files)]["weights.safetensors"]
    data = assemble(manifest, files)
    assert not failed(data, score=True)
    assert "comes to something else" in failed(data, rerun=None)["rerun"]


@pytest.mark.parametrize(
    ("task", "params"),
    [("text", {"corpus": "path:{}"}), ("hf-causal", {"model": "{}", "corpus": "stdlib"}), ("hf-causal", {"model": "model:0", "corpus": "path:{}"}),
     ("hf-causal", {"model": "nobody/nothing", "corpus": "stdlib"})],
)  # fmt: skip
def test_a_stranger_has_no_place_looked_at_and_nothing_fetched(
    task: str, params: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbench.plugins import registry
    from qbench.submissions.reevaluate import _parameters

    def looked(*_: object) -> None:
        raise AssertionError("looked at")

    monkeypatch.setattr(registry.load("tasks", task), "params", property(looked))
    given = canonical({name: value.format(tmp_path) for name, value in params.items()})
    assert "name a place" in (_parameters("tasks", task, given) or "")


def test_what_is_not_known_here_stays_claimed_and_is_said(good: bytes) -> None:
    for change, reason in (
        ({"method": "unheard"}, "no method unheard here"),
        ({"method_version": 99}, "method ste is at version 1 here, not 99"),
        ({"task": "unheard"}, "no task unheard here"),
        ({"task_version": 99}, "task toy is at version 1 here, not 99"),
        ({"data": "other"}, "task toy has other data here"),
    ):
        report = report_of(
            forged(good, "spec.json", lambda spec, change=change: {**spec, **change}),
            score=True,
            rerun=None if "data" not in change else 0,
        )
        notes = [finding.detail for finding in report.findings if finding.verdict == "note"]
        assert report.passed and len(notes) == 1 and reason in notes[0], (notes, change)
        assert sorted(report.trust.values())[0] == "claimed"


def test_an_evaluation_that_fails_or_kills_its_process_costs_that_run_and_no_other(
    good: bytes, tmp_path: Path
) -> None:
    files = unpack(good)[1]
    own = files[ste(files)]
    (tmp_path / "weights.safetensors").write_bytes(own["weights.safetensors"])
    spec = json.loads(own["spec.json"])
    question = {"spec": spec, "artefact": str(tmp_path / "weights.safetensors")}
    with Worker() as worker:
        impossible = dataclasses.replace(
            RunConfig.from_json(spec),
            task="linreg",
            size="l",
            task_params={"alpha": 1.1, "rotated": True, "exact": True},
            data="x" * 8,
        )
        assert "error" in worker.ask({**question, "spec": impossible.to_json()})
        assert worker.ask(question)["packed"] == json.loads(own["result.json"])["scores"]["packed"]
        assert worker.process
        worker.process.kill()
        assert worker.ask(question) == {"error": "the process that evaluates died", "misfit": False}
        assert "packed" in worker.ask(question)


def test_an_evaluation_that_does_not_end_is_ended(
    good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reevaluate, "PATIENCE_S", 0.0)
    with Worker() as worker:
        assert (
            "took more than" in worker.ask({"spec": {}, "artefact": ""})["error"]
            and worker.process is None
        )


def test_the_process_that_evaluates_has_a_bound_on_its_memory(tmp_path: Path) -> None:
    code = "import torch; from qbench.submissions.worker import limit_memory; limit_memory(); torch.empty(6 << 30, dtype=torch.uint8)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "memory" in done.stderr


# ---- the file ----


def test_a_path_that_is_no_bundle_is_a_failed_check(tmp_path: Path) -> None:
    (tmp_path / "b.zip").write_bytes(b"hello")
    report = verify(tmp_path / "b.zip")
    assert (
        not report.passed
        and str(report.findings[0]) == f"FAILED archive    {tmp_path}/b.zip: not a zip archive"
    )


def test_a_run_is_refused_in_words_that_are_safe_to_print(good: bytes) -> None:
    for name in ("\x1b]0;owned\x07", "=cmd|' /C calc'!A0", "<script>alert(1)</script>", "a\u202eb"):
        data = raw(good, "result.json", put("metrics", {name: 1.0}))
        run = Bundle(io.BytesIO(data))
        problems = [p for entry in run.runs for p in load_run(run, entry)[1]]
        assert problems and all(sentence.isprintable() for _, sentence in problems)


def test_training_a_strangers_run_again_fetches_nothing(
    good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run on a corpus of the hub's, and a hub that would answer."""
    from qbench.plugins import registry

    asked, hub = [], http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    monkeypatch.setattr(
        http.server.BaseHTTPRequestHandler, "handle", lambda self: asked.append(self.client_address)
    )
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server_port}")
    task = registry.build("tasks", "text", {"corpus": "hf:nobody/nothing"})
    manifest, files = unpack(good)
    own = files[ste(files)]
    spec, result = json.loads(own["spec.json"]), json.loads(own["result.json"])
    spec |= {
        "task": "text",
        "task_version": task.version,
        "task_params": dict(task.params),
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
            "curve.jsonl": own["curve.jsonl"],
        }
    }
    try:
        report = report_of(assemble(manifest, files), rerun=None)
    finally:
        hub.shutdown()
        hub.server_close()
    assert report.passed and report.trust == {key: "claimed"} and not asked, report.failures()
    (note,) = (f for f in report.findings if f.check == "rerun" and f.verdict == "note")
    assert (
        note.detail.startswith(f"run {key[:12]} cannot be trained here: hf:nobody/nothing")
        and "nothing is fetched" in note.detail
    )
