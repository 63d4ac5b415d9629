"""Print one run: its configuration, outcome, curve, audit and origin."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from qbench.boards.row_groups import make_format_label
from qbench.terminal.sparkline import draw_sparkline, is_logarithmic
from qbench.terminal.tables import make_label_grid
from qbench.util import text
from qbench.util.text import format_count, format_number, format_parameters

if TYPE_CHECKING:
    from qbench.terminal.tables import LabelledLine


MAX_MESSAGE_LENGTH = 2000
MAX_CURVE_WIDTH = 120
LABEL_WIDTH = 14
"""The width that a curve leaves for the labels."""


def show_run(run: Mapping[str, Any], console: Console) -> None:
    """Print everything that is known about a run.

    `run` holds `key`, `attempt`, `folder`, and the contents of the run's files: `spec`, `env` and
    `result` (None where a file is missing) and `curve` (a list of points).
    """
    spec, result, env = (run.get(part) or {} for part in ("spec", "result", "env"))
    curve_width = min(max(20, console.width - LABEL_WIDTH), MAX_CURVE_WIDTH)
    console.print(_make_title(run, result))
    lines = [
        *_describe_configuration(spec),
        *_describe_outcome(result),
        *_describe_curve(run, curve_width),
        *_describe_audit(result),
        *_describe_environment(env),
        *_describe_origin(run, result),
    ]
    console.print(make_label_grid(lines))


def _make_title(run: Mapping[str, Any], result: Mapping[str, Any]) -> Text:
    state = result.get("state") or run.get("state") or "not finished"
    title = Text(f"run {text.clean_line(run.get('key', '?'))}", style="bold")
    title.append(f"  attempt {text.clean_line(run.get('attempt', 1))}: ", style="not bold")
    title.append(text.clean_line(state), style="green" if state == "ok" else "red")
    return title


def _describe_configuration(spec: Mapping[str, Any]) -> Iterator[LabelledLine]:
    if not spec:
        return
    weights, inputs = spec.get("weights") or {}, spec.get("activations") or {}
    fmt = make_format_label(
        *(str(q.get(k) or "") for q in (weights, inputs) for k in ("format", "granularity"))
    )
    cell = f"{spec.get('method')} on {spec.get('task')}/{spec.get('size')}, {fmt}"
    yield "run", f"{cell}, seed {spec.get('seed')}"
    for kind in ("method", "task"):
        version = f"{spec.get(kind)} version {spec.get(f'{kind}_version')}"
        parameters = _append_parameters(spec.get(f"{kind}_params"))
        data = f", data {spec['data']}" if kind == "task" and spec.get("data") else ""
        yield kind, f"{version}{parameters}{data}"
    yield "recipe", f"start {spec.get('start')}{_append_parameters(spec.get('recipe'))}"
    if spec.get("base"):
        yield "starts from", str(spec["base"])


def _append_parameters(values: Any) -> str:
    return f": {format_parameters(values)}" if isinstance(values, Mapping) and values else ""


# ---- outcome ----


def _describe_outcome(result: Mapping[str, Any]) -> Iterator[LabelledLine]:
    reasons = [str(result[k]) for k in ("reason", "message") if result.get(k)]
    if reasons:
        reason = text.clean_line(": ".join(reasons), MAX_MESSAGE_LENGTH)
        yield "reason", Text(reason, style="red")
    yield from _describe_scores(result)
    for part in ("metrics", "size"):
        known = {k: v for k, v in (result.get(part) or {}).items() if v is not None}
        if known:
            values = (
                f"{k.replace('_', ' ')} {_format_metric(_to_number(v))}" for k, v in known.items()
            )
            yield part, ", ".join(values)
    if costs := list(_describe_costs(result.get("cost") or {})):
        yield "cost", ", ".join(costs)


def _describe_scores(result: Mapping[str, Any]) -> Iterator[LabelledLine]:
    scores, metric, kinds = (result.get(part) or {} for part in ("scores", "metric", "kinds"))
    # Two digits more than a board shows.
    digits = int(_to_number(metric.get("digits")) or 3) + 2
    formatted = {}
    for name in ("packed", "simulated", "validation", "latent"):
        score = _to_number(scores.get(name))
        # For a score that is not finite, `kinds` says what it is: JSON has no NaN.
        kind = str(kinds.get(name) or "")
        formatted[name] = kind if score is None else format_number(score, digits)
    if any(formatted.values()):
        unit = f" ({metric['unit']})" if metric.get("unit") else ""
        known = ", ".join(f"{name} {score}" for name, score in formatted.items() if score)
        yield "score", f"{metric.get('name') or '?'}{unit}: {known}"
    mean, deviation = _to_number(scores.get("rr_mean")), _to_number(scores.get("rr_std"))
    if mean is not None:
        spread = "" if deviation is None else f" ± {format_number(deviation, digits)} (deviation)"
        draws = format_count(scores.get("rr_count") or 0, "draw")
        yield "", f"randomised rounding {format_number(mean, digits)}{spread}, {draws}"


def _describe_costs(cost: Mapping[str, Any]) -> Iterator[str]:
    for name in ("wall", "train", "eval", "build", "overhead"):
        if (seconds := _to_number(cost.get(f"{name}_s"))) is not None:
            yield f"{name} {text.format_duration(seconds)}"
    median, low, high = (_to_number(cost.get(f"step_s_{q}")) for q in ("median", "q25", "q75"))
    if median is not None:
        quartiles = "" if low is None or high is None else f" [{1000 * low:.3g}, {1000 * high:.3g}]"
        yield f"step {1000 * median:.3g}{quartiles} ms"
    if (peak := _to_number(cost.get("peak_memory_bytes"))) is not None:
        yield f"peak memory {text.format_bytes(peak)}"


# ---- curve and audit ----


def _describe_curve(run: Mapping[str, Any], width: int) -> Iterator[LabelledLine]:
    points = [(p.get("step"), _to_number(p.get("loss"))) for p in run.get("curve") or ()]
    if not points:
        return
    losses = [loss for _, loss in points]
    scale = " (logarithmic)" if is_logarithmic([x for x in losses if x is not None]) else ""
    ends = ", ".join(
        f"{_format_metric(loss)} at step {step}" for step, loss in (points[0], points[-1])
    )
    yield "loss", Text(draw_sparkline(losses, width))
    yield "", f"{ends}{scale}"


def _describe_audit(result: Mapping[str, Any]) -> Iterator[LabelledLine]:
    for check in (result.get("audit") or {}).get("checks") or ():
        verdict = ("pass ", "green") if check.get("passed") else ("FAIL ", "bold red")
        detail = f"{check.get('name')}: {check.get('detail') or ''}"
        yield "audit", Text.assemble(verdict, text.clean_line(detail, MAX_MESSAGE_LENGTH))


# ---- origin ----


def _describe_environment(env: Mapping[str, Any]) -> Iterator[LabelledLine]:
    if not env:
        return
    changes = ""
    if env.get("commit"):
        # None means that it was not possible to find out.
        changes = {True: " with changes", None: ", changes unknown"}.get(env.get("dirty"), "")
    commit = env.get("commit") or "unknown"
    yield "code", f"qbench {env.get('qbench')}, commit {commit}{changes}"
    # On a CPU several of these are equal, and each is printed once.
    devices = dict.fromkeys(
        str(env[k]) for k in ("device", "device_name", "cpu", "platform") if env.get(k)
    )
    versions = [f"{k} {env[k]}" for k in ("threads", "python", "torch", "numpy") if env.get(k)]
    yield "machine", ", ".join((*devices, *versions))


def _describe_origin(run: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[LabelledLine]:
    if result.get("started"):
        yield "when", " to ".join(str(result[k]) for k in ("started", "finished") if result.get(k))
    if result.get("artefact_sha256"):
        yield "artefact", f"sha256 {result['artefact_sha256']}"
    if trust := run.get("trust"):
        sender = f" from {trust['by']}" if trust.get("by") else ""
        yield "trust", f"{trust.get('level')}: merged {trust.get('merged')}{sender}"
    attempts = run.get("attempts") or ()
    if len(attempts) > 1:
        for attempt in attempts:
            score = "" if attempt["packed"] is None else f", score {attempt['packed']!r}"
            origin, state = attempt["trust"] or "our own", attempt["state"] or "not finished"
            yield "", f"attempt {attempt['attempt']}, {origin}: {state}{score}"
    if run.get("folder"):
        yield "files", str(run["folder"])
    if run.get("key"):
        yield "reproduce", f"qbench reproduce {run['key']}"


# ---- numbers from JSON ----


def _to_number(x: Any) -> float | None:
    """Return a finite number as a float, and None for anything else."""
    return float(x) if isinstance(x, (int, float)) and math.isfinite(x) else None


def _format_metric(x: float | None) -> str:
    if x is None:
        return "not finite"
    return f"{x:.0f}" if x == round(x) and abs(x) < 1e12 else f"{x:.4g}"
