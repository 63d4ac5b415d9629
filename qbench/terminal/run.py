"""Everything that is printed and is no board: a run whole, a sweep's plan, the registered methods and tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from qbench.boards.row_groups import format_label
from qbench.terminal.tables import _grid
from qbench.util import text
from qbench.util.text import count, spell

if TYPE_CHECKING:
    from qbench.terminal.tables import Line


BARS = "▁▂▃▄▅▆▇█"
LINE = 120
"""Bars of a curve, where there is room for more."""


# ---- a run ----


def show_run(run: Mapping[str, Any], console: Console) -> None:
    """One run whole: `key`, `attempt`, `folder`, and the contents of its files as `spec`, `env`, `result` (None where missing) and `curve` (a list)."""
    spec, result, env = (run.get(part) or {} for part in ("spec", "result", "env"))
    state = result.get("state") or run.get("state") or "not finished"
    title = Text(f"run {text.plain(run.get('key', '?'))}", style="bold")
    title.append(f"  attempt {text.plain(run.get('attempt', 1))}: ", style="not bold")
    title.append(text.plain(state), style="green" if state == "ok" else "red")
    console.print(title)
    lines = [
        *_what(spec),
        *_outcome(result),
        *_curve(run, min(max(20, console.width - 14), LINE)),
        *_audit(result),
        *_origin(run, result, env),
    ]
    console.print(_grid(lines))


def _what(spec: Mapping[str, Any]) -> Iterator[Line]:
    if not spec:
        return
    weights, acts = spec.get("weights") or {}, spec.get("activations") or {}
    fmt = format_label(
        *(str(q.get(k) or "") for q in (weights, acts) for k in ("format", "granularity"))
    )
    yield (
        "what",
        f"{spec.get('method')} on {spec.get('task')}/{spec.get('size')}, {fmt}, seed {spec.get('seed')}",
    )
    for kind in ("method", "task"):
        data = f", data {spec['data']}" if kind == "task" and spec.get("data") else ""
        yield (
            kind,
            f"{spec.get(kind)} version {spec.get(f'{kind}_version')}{_options(spec.get(f'{kind}_params'))}{data}",
        )
    yield "recipe", f"start {spec.get('start')}{_options(spec.get('recipe'))}"
    if spec.get("base"):
        yield "goes on from", str(spec["base"])


def _outcome(result: Mapping[str, Any]) -> Iterator[Line]:
    if result.get("reason") or result.get("message"):
        yield (
            "reason",
            Text(
                text.plain(
                    ": ".join(str(result[k]) for k in ("reason", "message") if result.get(k)), 2000
                ),
                style="red",
            ),
        )
    scores, metric, kinds = (result.get(part) or {} for part in ("scores", "metric", "kinds"))
    digits = int(_number(metric.get("digits")) or 3) + 2
    shown = {
        k: _score(scores.get(k), kinds.get(k), digits)
        for k in ("packed", "simulated", "validation", "latent")
    }
    if any(shown.values()):
        unit = f" ({metric['unit']})" if metric.get("unit") else ""
        yield (
            "score",
            f"{metric.get('name') or '?'}{unit}: "
            + ", ".join(f"{k} {x}" for k, x in shown.items() if x),
        )
    if (mean := _number(scores.get("rr_mean"))) is not None:
        spread = _number(scores.get("rr_std"))
        more = f" ± {text.number(spread, digits)} (deviation)" if spread is not None else ""
        yield (
            "",
            f"randomised rounding {text.number(mean, digits)}{more}, {count(scores.get('rr_count') or 0, 'draw')}",
        )
    for part, label in (("metrics", "metrics"), ("size", "size")):
        known = {k: v for k, v in (result.get(part) or {}).items() if v is not None}
        if known:
            yield (
                label,
                ", ".join(f"{k.replace('_', ' ')} {_short(_number(v))}" for k, v in known.items()),
            )
    if words := list(_cost(result.get("cost") or {})):
        yield "cost", ", ".join(words)


def _score(value: Any, kind: Any, digits: int) -> str:
    """The number, or why there is none."""
    return str(kind or "") if (x := _number(value)) is None else text.number(x, digits)


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    for name in ("wall", "train", "eval", "build", "overhead"):
        if (x := _number(cost.get(f"{name}_s"))) is not None:
            yield f"{name} {text.seconds(x)}"
    median, low, high = (_number(cost.get(f"step_s_{q}")) for q in ("median", "q25", "q75"))
    if median is not None:
        quartiles = "" if low is None or high is None else f" [{1000 * low:.3g}, {1000 * high:.3g}]"
        yield f"step {1000 * median:.3g}{quartiles} ms"
    if (peak := _number(cost.get("peak_memory_bytes"))) is not None:
        yield f"peak memory {text.size(peak)}"


def _curve(run: Mapping[str, Any], width: int) -> Iterator[Line]:
    losses = [(point.get("step"), _number(point.get("loss"))) for point in run.get("curve") or ()]
    if losses:
        values = [loss for _, loss in losses]
        scale = " (logarithmic)" if _logarithmic([x for x in values if x is not None]) else ""
        yield "loss", Text(sparkline(values, width))
        yield (
            "",
            f"{_short(values[0])} at step {losses[0][0]}, {_short(values[-1])} at step {losses[-1][0]}{scale}",
        )


def _audit(result: Mapping[str, Any]) -> Iterator[Line]:
    for check in (result.get("audit") or {}).get("checks") or ():
        verdict = ("pass ", "green") if check.get("passed") else ("FAIL ", "bold red")
        yield (
            "audit",
            Text.assemble(
                verdict, text.plain(f"{check.get('name')}: {check.get('detail') or ''}", 2000)
            ),
        )


def _origin(
    run: Mapping[str, Any], result: Mapping[str, Any], env: Mapping[str, Any]
) -> Iterator[Line]:
    if env:
        dirty = (
            {True: " with changes", None: ", changes unknown"}.get(env.get("dirty"), "")
            if env.get("commit")
            else ""
        )
        yield "code", f"qbench {env.get('qbench')}, commit {env.get('commit') or 'unknown'}{dirty}"
        devices = dict.fromkeys(
            str(env[k]) for k in ("device", "device_name", "cpu", "platform") if env.get(k)
        )
        versions = [f"{k} {env[k]}" for k in ("threads", "python", "torch", "numpy") if env.get(k)]
        yield "machine", ", ".join((*devices, *versions))
    if result.get("started"):
        yield "when", " to ".join(str(result[k]) for k in ("started", "finished") if result.get(k))
    if result.get("artefact_sha256"):
        yield "artefact", f"sha256 {result['artefact_sha256']}"
    if trust := run.get("trust"):
        who = f" from {trust['by']}" if trust.get("by") else ""
        yield "trust", f"{trust.get('level')}: merged {trust.get('merged')}{who}"
    tried = run.get("attempts") or ()
    for one in tried if len(tried) > 1 else ():
        score = "" if one["packed"] is None else f", score {one['packed']!r}"
        yield (
            "",
            f"attempt {one['attempt']}, {one['trust'] or 'our own'}: {one['state'] or 'not finished'}{score}",
        )
    if run.get("folder"):
        yield "files", str(run["folder"])
    if run.get("key"):
        yield "again", f"qbench reproduce {run['key']}"


def sparkline(values: Iterable[float | None], width: int) -> str:
    """Bars for the means of consecutive values; × for one that is not finite. Logarithmic where they span more than a factor of 30."""
    found = [x if x is not None and math.isfinite(x) else None for x in values]
    count = min(width, len(found))
    chunks = [found[i * len(found) // count : (i + 1) * len(found) // count] for i in range(count)]
    means = [
        None if None in chunk else _mean([x for x in chunk if x is not None]) for chunk in chunks
    ]
    bend = math.log if _logarithmic([x for x in found if x is not None]) else float
    scaled = [None if x is None else bend(x) for x in means]
    known = [x for x in scaled if x is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    return "".join(
        "×" if x is None else BARS[min(7, int(8 * _share(x, low, high)))] for x in scaled
    )


def _mean(values: Sequence[float]) -> float:
    # Each is divided first: the sum of two large ones may overflow.
    return math.fsum(x / len(values) for x in values)


def _share(x: float, low: float, high: float) -> float:
    """Where x lies between two numbers; halved, since their difference may overflow."""
    return (x / 2 - low / 2) / (high / 2 - low / 2) if high / 2 > low / 2 else 0.0


def _logarithmic(values: Sequence[float]) -> bool:
    return bool(values) and min(values) > 0 and max(values) / 30 > min(values)


def _options(values: Any) -> str:
    return f": {spell(values)}" if isinstance(values, Mapping) and values else ""


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and math.isfinite(x) else None


def _short(x: float | None) -> str:
    return (
        "not finite" if x is None else f"{x:.0f}" if x == round(x) and abs(x) < 1e12 else f"{x:.4g}"
    )
