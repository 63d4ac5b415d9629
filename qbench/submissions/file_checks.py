"""What must hold in the files of one submitted run, each by itself and all together. Nothing here trains or imports a method or a task."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qbench.errors import QbenchError
from qbench.runs.config import RunConfig, canonical
from qbench.submissions import artefact_facts, strict_json
from qbench.submissions.artefact_facts import Facts
from qbench.submissions.bundle import Bundle, Entry
from qbench.submissions.strict_json import Refused
from qbench.util.text import count

AGREEMENT = 1e-5
"""As in the audit: how far the simulated and the packed score may be apart, relatively."""
ALWAYS = ("levels", "decoded = snapped", "simulated = packed", "coverage", "bits")
"""Checks that no audit leaves out."""
SCORED = (
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
"""What a result has if the run ended well."""


@dataclass(frozen=True)
class Record:
    """The files of a run, parsed, of the right shape, and the configuration that its key is the hash of."""

    entry: Entry
    config: RunConfig
    spec: Mapping[str, Any]
    result: Mapping[str, Any]
    curve: list[dict[str, Any]]
    facts: Facts | None
    """Of the artefact, where it came along."""

    @property
    def ok(self) -> bool:
        return bool(self.result["state"] == "ok")


def load(bundle: Bundle, run: Entry) -> tuple[Record | None, list[tuple[str, str]]]:
    """A run of a bundle, if its files can be read at all; what is wrong with it, as (check, sentence)."""
    check = "schema"
    try:
        spec, result = (_json(bundle, run, name) for name in ("spec", "result"))
        if "env.json" in run.files:
            _json(bundle, run, "env")
        curve = strict_json.lines(bundle.read(run, "curve.jsonl") or b"", f"run {run}: curve.jsonl")
        for number, point in enumerate(curve, 1):
            strict_json.conforms(point, "curve", f"run {run}: curve.jsonl: line {number}")
        check = "keys"
        config = _config(run, spec, result)
        check = "artefacts"
        data = bundle.read(run, "weights.safetensors")
        facts = (
            None if data is None else artefact_facts.read(data, f"run {run}: weights.safetensors")
        )
    except Refused as error:
        return None, [(check, str(error))]
    record = Record(run, config, spec, result, curve, facts)
    parts = {
        "results": outcome(record),
        "scores": scores(record),
        "audits": audit(record),
        "curves": points(record),
    }
    parts["artefacts"] = decoded(record)
    return record, [
        (name, f"run {run}: {sentence}")
        for name, sentences in parts.items()
        for sentence in sentences
    ]


def _json(bundle: Bundle, run: Entry, name: str) -> Any:
    where = f"run {run}: {name}.json"
    value = strict_json.loads(bundle.read(run, f"{name}.json") or b"", where)
    strict_json.conforms(value, name, where)
    return value


def _config(run: Entry, spec: Mapping[str, Any], result: Mapping[str, Any]) -> RunConfig:
    """The configuration, if the key is the hash of the spec, and the spec is spelled as qbench spells this configuration."""
    if hashlib.sha256(canonical(spec).encode()).hexdigest()[:32] != run.key:
        raise Refused(f"run {run}: spec.json is not the configuration of this key")
    try:
        config = RunConfig.from_json(spec)
        problem = config.recipe.problem()
    except (QbenchError, TypeError, ValueError) as error:
        raise Refused(f"run {run}: spec.json: {error}") from None
    if problem or config.key != run.key:
        raise Refused(
            f"run {run}: spec.json: {problem or 'defaults are spelled out that have no place in it'}"
        )
    if (result["key"], int(result["attempt"])) != (run.key, run.attempt):
        raise Refused(
            f"run {run}: result.json belongs to attempt {result['attempt']} of {result['key']}"
        )
    return config


# ---- each yields a sentence for whatever does not hold ----


def outcome(run: Record) -> Iterator[str]:
    """State, reason and parts of the result fit together."""
    result = run.result
    if run.ok != (result["reason"] is None) or (run.ok and result["message"] is not None):
        yield f"state {result['state']} with the reason {result['reason']}: {result['message']}"
    if result["finished"] < result["started"]:
        yield "finished before it started"
    missing = [part for part in SCORED if part not in result]
    if run.ok and missing:
        yield f"ended well and has no {missing[0]}"
    if not run.ok and run.facts:
        yield "failed, and has an artefact"
    if "train" in result and int(result["train"]["steps"]) != run.config.recipe.steps:
        yield f"trained {count(result['train']['steps'], 'step')}, its configuration asks for {run.config.recipe.steps}"
    cost = result.get("cost", {})
    quartiles = [
        cost[name]
        for name in ("step_s_q25", "step_s_median", "step_s_q75")
        if cost.get(name) is not None
    ]
    if quartiles != sorted(quartiles):
        yield "the quartiles of its step time are not in order"


def scores(run: Record) -> Iterator[str]:
    """A score is a number, or null with its kind; the first of the metrics is the score."""
    found, kinds, result = run.result.get("scores", {}), run.result.get("kinds", {}), run.result
    null = {name for name, value in found.items() if value is None}
    if null != set(kinds):
        yield f"{min(null ^ set(kinds))} is null without a kind, or has a kind and is none"
    if "metric" in result and "metrics" in result and "scores" in result:
        name = result["metric"]["name"]
        if name not in result["metrics"] or result["metrics"][name] != found["packed"]:
            yield f"its score is {found['packed']}, its metric {name} {result['metrics'].get(name)}"


def audit(run: Record) -> Iterator[str]:
    """The verdict is that of its checks, no check is left out, and those that can be made again here come out alike."""
    if (found := run.result.get("audit")) is None:
        return
    checks = {check["name"]: check["passed"] for check in found["checks"]}
    if len(checks) != len(found["checks"]) or found["passed"] != all(checks.values()):
        yield "the audit's verdict is not that of its checks"
    if missing := [name for name in ALWAYS if name not in checks]:
        yield f"the audit has no check {missing[0]!r}"
    elif "scores" in run.result and checks["simulated = packed"] != _agree(
        *(run.result["scores"][n] for n in ("simulated", "packed"))
    ):
        yield "the audit does not say of the simulated and the packed score what they say"


def _agree(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and abs(a - b) / max(abs(a), abs(b), 1e-12) <= AGREEMENT


def points(run: Record) -> Iterator[str]:
    """The curve goes forward, within the budget, and ends where the result says."""
    steps, budget = [int(point["step"]) for point in run.curve], run.config.recipe.steps
    if any(a >= b for a, b in pairwise(steps)):
        yield "its curve does not go forward"
    elif steps and steps[-1] > budget:
        yield f"its curve goes to step {steps[-1]} of {budget}"
    if any(
        abs(point["progress"] * budget - step) > 1e-6 * budget
        for point, step in zip(run.curve, steps, strict=True)
    ):
        yield "its curve's progress is not its step over the budget"
    if run.ok and steps and "train" not in run.result:
        yield "it has a curve, and was not trained"
    if run.ok and "train" in run.result:
        last = run.curve[-1] if run.curve else {"step": 0, "loss": None}
        if (last["step"], last["loss"]) != (budget, run.result["train"]["final_loss"]):
            yield "its curve does not end with the last step and the final loss"


def decoded(run: Record) -> Iterator[str]:
    """What the result says of the artefact is what the decoder counts in it."""
    if (facts := run.facts) is None or "size" not in run.result:
        return
    size, told = run.result["size"], run.result.get("artefact_sha256")
    if facts.sha256 != told:
        yield "its artefact is not the one of the result"
    for name, value in (
        ("artefact_bytes", facts.size),
        ("quantized_parameters", facts.quantized),
        ("bits_per_weight", facts.bits_per_weight),
        ("levels", facts.levels),
    ):
        if size[name] != value:
            yield f"{name} is {size[name]} in the result and {value} in the artefact"
    if not facts.quantized <= size["parameters"] <= facts.quantized + facts.others:
        yield f"{size['parameters']} parameters, and {facts.quantized} packed and {facts.others} other numbers in the artefact"
    yield from _sites(run, facts)


def _sites(run: Record, facts: Facts) -> Iterator[str]:
    """The sites of the result are those of the artefact, in the formats of the configuration."""
    told: Iterable[Mapping[str, Any]] = run.result.get("sites", ())
    sites = {site["name"]: site for site in told}
    if strangers := (set(facts.weights) | set(facts.inputs)) - set(sites):
        yield f"{min(strangers)} is quantized in the artefact and no site of the result"
    for name, site in sites.items():
        weight, asked = (
            facts.weights.get(name),
            run.config.weights if site["role"] == "weight" else run.config.activations,
        )
        if asked is None or (site["format"], site["granularity"]) != (
            asked.format,
            asked.granularity,
        ):
            yield f"{name} is {site['format']} by {site['granularity']}, which its configuration does not ask for"
        elif weight and asked.format.startswith("int") and weight.bits != int(asked.format[3:]):
            yield f"{name} has {weight.bits} bits in the artefact, and is to be {asked.format}"
        counted = weight and (
            weight.rows,
            weight.columns,
            weight.granularity,
            weight.levels,
            weight.used,
        )
        if counted and counted != (
            *site["shape"],
            site["granularity"],
            site.get("levels"),
            site.get("levels_used"),
        ):
            yield f"{name} is not the same in the result and in the artefact"
        if not weight and site["role"] == "weight" and ("levels" in site or "levels_used" in site):
            yield f"{name} has levels in the result and is not quantized in the artefact"
