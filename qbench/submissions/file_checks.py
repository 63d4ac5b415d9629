"""What must hold in the files of one submitted run, for each file and for all of them together.

Nothing here trains, or imports a method or a task.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qbench.errors import QbenchError
from qbench.runs.config import RunConfig, canonical_json
from qbench.submissions.artefact_facts import ArtefactFacts, PackedWeight, read_artefact_facts
from qbench.submissions.bundle import Bundle, ManifestRun
from qbench.submissions.strict_json import (
    SubmissionError,
    parse_json,
    parse_json_lines,
    require_schema,
)
from qbench.util.text import format_count

SCORE_TOLERANCE = 1e-5
"""How far the simulated and the packed score may differ, relatively; the same as in the audit."""
REQUIRED_AUDIT_CHECKS = (
    "levels",
    "decoded = snapped",
    "simulated = packed",
    "coverage",
    "bits",
)
"""Checks that every audit contains."""
PARTS_OF_OK_RESULT = (
    "metric",
    "scores",
    "metrics",
    "kinds",
    "size",
    "audit",
    "sites",
    "artefact_sha256",
    "cost",
)
"""Parts that the result of a run in state "ok" must have."""


@dataclass(frozen=True)
class ParsedRun:
    """The parsed files of a run, which match their schemas, and its configuration.

    The run's key is the hash of the configuration.
    """

    entry: ManifestRun
    config: RunConfig
    spec: Mapping[str, Any]
    result: Mapping[str, Any]
    curve: list[dict[str, Any]]
    facts: ArtefactFacts | None
    """What the artefact contains; None if the bundle has no artefact of this run."""

    @property
    def ok(self) -> bool:
        return bool(self.result["state"] == "ok")


def check_run_files(
    bundle: Bundle, run: ManifestRun
) -> tuple[ParsedRun | None, list[tuple[str, str]]]:
    """Return the parsed run and its problems as (check, sentence).

    The run is None if its files cannot be parsed; then the only problem says why.
    """
    # Later checks rely on earlier ones: shapes, then the key, then what the artefact contains.
    check = "schema"
    try:
        spec, result = (_parse_file(bundle, run, name) for name in ("spec", "result"))
        if "env.json" in run.files:
            _parse_file(bundle, run, "env")
        curve = _parse_curve(bundle, run)
        check = "keys"
        config = _parse_config(run, spec, result)
        check = "artefacts"
        data = bundle.read_file(run, "weights.safetensors")
        where = f"run {run}: weights.safetensors"
        facts = None if data is None else read_artefact_facts(data, where)
    except SubmissionError as error:
        return None, [(check, str(error))]
    parsed = ParsedRun(run, config, spec, result, curve, facts)
    return parsed, [(name, f"run {run}: {problem}") for name, problem in _find_problems(parsed)]


def _find_problems(run: ParsedRun) -> Iterator[tuple[str, str]]:
    checks = {
        "results": check_outcome,
        "scores": check_scores,
        "audits": check_audit,
        "curves": check_curve,
        "artefacts": check_artefact,
    }
    for name, find in checks.items():
        for problem in find(run):
            yield name, problem


def _parse_file(bundle: Bundle, run: ManifestRun, name: str) -> Any:
    where = f"run {run}: {name}.json"
    value = parse_json(bundle.read_file(run, f"{name}.json") or b"", where)
    require_schema(value, name, where)
    return value


def _parse_curve(bundle: Bundle, run: ManifestRun) -> list[dict[str, Any]]:
    where = f"run {run}: curve.jsonl"
    curve = parse_json_lines(bundle.read_file(run, "curve.jsonl") or b"", where)
    for number, point in enumerate(curve, 1):
        require_schema(point, "curve", f"{where}: line {number}")
    return curve


def _parse_config(
    run: ManifestRun, spec: Mapping[str, Any], result: Mapping[str, Any]
) -> RunConfig:
    """Return the configuration; refuse a specification that does not belong to the run's key."""
    where = f"run {run}: spec.json"
    if hashlib.sha256(canonical_json(spec).encode()).hexdigest()[:32] != run.key:
        raise SubmissionError(f"{where}: its hash is not the run's key")
    try:
        config = RunConfig.from_json(spec)
        problem = config.recipe.find_problem()
    except (QbenchError, TypeError, ValueError) as error:
        raise SubmissionError(f"{where}: {error}") from None
    if problem:
        raise SubmissionError(f"{where}: {problem}")
    # The same configuration must not have two keys: qbench leaves some default values out.
    if config.key != run.key:
        raise SubmissionError(f"{where}: it spells out default values that qbench leaves out")
    if (result["key"], int(result["attempt"])) != (run.key, run.attempt):
        raise SubmissionError(
            f"run {run}: result.json belongs to attempt {result['attempt']} of {result['key']}"
        )
    return config


# ---- Each check below yields a sentence for everything that does not hold. ----


def check_outcome(run: ParsedRun) -> Iterator[str]:
    """Check that state, reason, parts, steps and times of the result fit together."""
    result = run.result
    if run.ok != (result["reason"] is None) or (run.ok and result["message"] is not None):
        yield (
            f"state {result['state']} does not fit the reason {result['reason']} "
            f"and the message {result['message']}"
        )
    if result["finished"] < result["started"]:
        yield "it finished before it started"
    missing = [part for part in PARTS_OF_OK_RESULT if part not in result]
    if run.ok and missing:
        yield f"its state is ok, but its result has no {missing[0]}"
    if not run.ok and run.facts:
        yield "it failed, but it has an artefact"
    steps = run.config.recipe.steps
    if "train" in result and int(result["train"]["steps"]) != steps:
        trained = format_count(result["train"]["steps"], "step")
        yield f"it was trained for {trained}, but its configuration asks for {steps}"
    cost = result.get("cost", {})
    names = ("step_s_q25", "step_s_median", "step_s_q75")
    quartiles = [cost[name] for name in names if cost.get(name) is not None]
    if quartiles != sorted(quartiles):
        yield "the quartiles of its step time are not in ascending order"


def check_scores(run: ParsedRun) -> Iterator[str]:
    """Check that a score is a number or is null with its kind, and that the metric is the score."""
    result = run.result
    scores, kinds = result.get("scores", {}), result.get("kinds", {})
    null_scores = {name for name, value in scores.items() if value is None}
    for name in sorted(null_scores ^ set(kinds))[:1]:
        if name in null_scores:
            yield f"its {name} score is null, but kinds does not say why"
        else:
            yield f"kinds says why its {name} score is null, but it is not"
    if "metric" in result and "metrics" in result and "scores" in result:
        name, packed = result["metric"]["name"], scores["packed"]
        if name not in result["metrics"] or result["metrics"][name] != packed:
            metric = result["metrics"].get(name)
            yield f"its packed score is {packed}, but its metric {name} is {metric}"


def check_audit(run: ParsedRun) -> Iterator[str]:
    """Check that the audit is complete and that its verdict follows from its checks.

    The comparison of the simulated and the packed score is repeated here.
    """
    audit = run.result.get("audit")
    if audit is None:
        return
    checks = {check["name"]: check["passed"] for check in audit["checks"]}
    if len(checks) != len(audit["checks"]):
        yield "its audit contains a check twice"
    elif audit["passed"] != all(checks.values()):
        yield "the verdict of its audit does not follow from the checks"
    if missing := [name for name in REQUIRED_AUDIT_CHECKS if name not in checks]:
        yield f"its audit has no check {missing[0]!r}"
    elif "scores" in run.result:
        scores = run.result["scores"]
        agree = _scores_agree(scores["simulated"], scores["packed"])
        if checks["simulated = packed"] != agree:
            yield (
                "its audit says that the simulated and the packed score "
                f"{'differ, but they agree' if agree else 'agree, but they differ'}"
            )


def _scores_agree(simulated: float | None, packed: float | None) -> bool:
    if simulated is None or packed is None:
        return False
    # The floor avoids a division by zero where both scores are zero.
    magnitude = max(abs(simulated), abs(packed), 1e-12)
    return abs(simulated - packed) / magnitude <= SCORE_TOLERANCE


def check_curve(run: ParsedRun) -> Iterator[str]:
    """Check that the curve goes forward within the budget and ends where the result says."""
    steps, budget = [int(point["step"]) for point in run.curve], run.config.recipe.steps
    if any(first >= second for first, second in pairwise(steps)):
        yield "the steps of its curve are not in ascending order"
    elif steps and steps[-1] > budget:
        yield f"its curve goes to step {steps[-1]} of {budget}"
    # Progress is a rounded quotient, so it is not compared exactly.
    if any(
        abs(point["progress"] * budget - step) > 1e-6 * budget
        for point, step in zip(run.curve, steps, strict=True)
    ):
        yield "the progress in its curve is not the step divided by the budget"
    if not run.ok:
        return
    if "train" not in run.result:
        if steps:
            yield "it has a curve, but its result says nothing about training"
        return
    last = run.curve[-1] if run.curve else {"step": 0, "loss": None}
    if (last["step"], last["loss"]) != (budget, run.result["train"]["final_loss"]):
        yield "its curve does not end with the last step and the final loss"


def check_artefact(run: ParsedRun) -> Iterator[str]:
    """Check that the result describes the artefact as the decoder counts it."""
    facts = run.facts
    if facts is None or "size" not in run.result:
        return
    size = run.result["size"]
    if facts.sha256 != run.result.get("artefact_sha256"):
        yield "the hash of its artefact is not the one in the result"
    counted = {
        "artefact_bytes": facts.file_bytes,
        "quantized_parameters": facts.quantized_parameters,
        "bits_per_weight": facts.bits_per_weight,
        "levels": facts.levels,
    }
    for name, value in counted.items():
        # An exact comparison is right: the run computed these numbers by the same formulas.
        if size[name] != value:
            yield f"{name} is {size[name]} in the result and {value} in the artefact"
    # The artefact also holds scales and buffers, so its other numbers are only an upper limit.
    packed, other = facts.quantized_parameters, facts.unpacked_elements
    if not packed <= size["parameters"] <= packed + other:
        yield (
            f"the result has {size['parameters']} parameters, but the artefact "
            f"{packed} packed and {other} other numbers"
        )
    yield from check_sites(run, facts)


def check_sites(run: ParsedRun, facts: ArtefactFacts) -> Iterator[str]:
    """Check that the result lists the sites of the artefact in the configured formats."""
    listed: Iterable[Mapping[str, Any]] = run.result.get("sites", ())
    sites = {site["name"]: site for site in listed}
    if unlisted := (set(facts.weights) | set(facts.input_levels)) - set(sites):
        yield f"{min(unlisted)} is quantized in the artefact, but the result does not list it"
    for name, site in sites.items():
        yield from _check_format(run.config, site, facts.weights.get(name))
        yield from _check_counts(site, facts.weights.get(name))


def _check_format(
    config: RunConfig, site: Mapping[str, Any], weight: PackedWeight | None
) -> Iterator[str]:
    name, site_format, granularity = site["name"], site["format"], site["granularity"]
    configured = config.weights if site["role"] == "weight" else config.activations
    if configured is None or (site_format, granularity) != (
        configured.format,
        configured.granularity,
    ):
        yield f"{name} is {site_format} per {granularity}, which its configuration does not ask for"
    elif (
        weight
        and configured.format.startswith("int")
        and weight.bits != int(configured.format.removeprefix("int"))
    ):
        yield f"{name} has {weight.bits} bits in the artefact instead of {configured.format}"


def _check_counts(site: Mapping[str, Any], weight: PackedWeight | None) -> Iterator[str]:
    name = site["name"]
    if weight is None:
        if site["role"] == "weight" and ("levels" in site or "levels_used" in site):
            yield f"{name} has levels in the result, but is not quantized in the artefact"
        return
    listed = (*site["shape"], site["granularity"], site.get("levels"), site.get("levels_used"))
    counted = (
        weight.rows,
        weight.columns,
        weight.granularity,
        weight.levels,
        weight.levels_used,
    )
    if counted != listed:
        yield f"{name} has another shape, granularity or levels in the artefact than in the result"
