"""Everything that is printed and is no board: a run whole, a sweep's plan, the registered methods and tasks."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qbench import text
from qbench.text import count, spell
from qbench.tidy import format_label

if TYPE_CHECKING:
    from qbench.outlook import Planned

BARS = "▁▂▃▄▅▆▇█"
LINE = 120
"""Bars of a curve, where there is room for more."""
Line = tuple[str, str | Text]
"""A label, which is ours, and what it says, which may be anybody's."""


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
    fmt = format_label(*(str(q.get(k) or "") for q in (weights, acts) for k in ("format", "granularity")))
    yield "what", f"{spec.get('method')} on {spec.get('task')}/{spec.get('size')}, {fmt}, seed {spec.get('seed')}"
    for kind in ("method", "task"):
        data = f", data {spec['data']}" if kind == "task" and spec.get("data") else ""
        yield kind, f"{spec.get(kind)} version {spec.get(f'{kind}_version')}{_options(spec.get(f'{kind}_params'))}{data}"
    yield "recipe", f"start {spec.get('start')}{_options(spec.get('recipe'))}"
    if spec.get("base"):
        yield "goes on from", str(spec["base"])


def _outcome(result: Mapping[str, Any]) -> Iterator[Line]:
    if result.get("reason") or result.get("message"):
        yield "reason", Text(text.plain(": ".join(str(result[k]) for k in ("reason", "message") if result.get(k)), 2000), style="red")
    scores, metric, kinds = (result.get(part) or {} for part in ("scores", "metric", "kinds"))
    digits = int(_number(metric.get("digits")) or 3) + 2
    shown = {k: _score(scores.get(k), kinds.get(k), digits) for k in ("packed", "simulated", "validation", "latent")}
    if any(shown.values()):
        unit = f" ({metric['unit']})" if metric.get("unit") else ""
        yield "score", f"{metric.get('name') or '?'}{unit}: " + ", ".join(f"{k} {x}" for k, x in shown.items() if x)
    if (mean := _number(scores.get("rr_mean"))) is not None:
        spread = _number(scores.get("rr_std"))
        more = f" ± {text.number(spread, digits)} (deviation)" if spread is not None else ""
        yield "", f"randomised rounding {text.number(mean, digits)}{more}, {count(scores.get('rr_count') or 0, 'draw')}"
    for part, label in (("metrics", "metrics"), ("size", "size")):
        known = {k: v for k, v in (result.get(part) or {}).items() if v is not None}
        if known:
            yield label, ", ".join(f"{k.replace('_', ' ')} {_short(_number(v))}" for k, v in known.items())
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
        yield "", f"{_short(values[0])} at step {losses[0][0]}, {_short(values[-1])} at step {losses[-1][0]}{scale}"


def _audit(result: Mapping[str, Any]) -> Iterator[Line]:
    for check in (result.get("audit") or {}).get("checks") or ():
        verdict = ("pass ", "green") if check.get("passed") else ("FAIL ", "bold red")
        yield "audit", Text.assemble(verdict, text.plain(f"{check.get('name')}: {check.get('detail') or ''}", 2000))


def _origin(run: Mapping[str, Any], result: Mapping[str, Any], env: Mapping[str, Any]) -> Iterator[Line]:
    if env:
        dirty = {True: " with changes", None: ", changes unknown"}.get(env.get("dirty"), "") if env.get("commit") else ""
        yield "code", f"qbench {env.get('qbench')}, commit {env.get('commit') or 'unknown'}{dirty}"
        devices = dict.fromkeys(str(env[k]) for k in ("device", "device_name", "cpu", "platform") if env.get(k))
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
        yield "", f"attempt {one['attempt']}, {one['trust'] or 'our own'}: {one['state'] or 'not finished'}{score}"
    if run.get("folder"):
        yield "files", str(run["folder"])
    if run.get("key"):
        yield "again", f"qbench reproduce {run['key']}"


def sparkline(values: Iterable[float | None], width: int) -> str:
    """Bars for the means of consecutive values; × for one that is not finite. Logarithmic where they span more than a factor of 30."""
    found = [x if x is not None and math.isfinite(x) else None for x in values]
    count = min(width, len(found))
    chunks = [found[i * len(found) // count : (i + 1) * len(found) // count] for i in range(count)]
    means = [None if None in chunk else _mean([x for x in chunk if x is not None]) for chunk in chunks]
    bend = math.log if _logarithmic([x for x in found if x is not None]) else float
    scaled = [None if x is None else bend(x) for x in means]
    known = [x for x in scaled if x is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    return "".join("×" if x is None else BARS[min(7, int(8 * _share(x, low, high)))] for x in scaled)


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
    return "not finite" if x is None else f"{x:.0f}" if x == round(x) and abs(x) < 1e12 else f"{x:.4g}"


# ---- a plan ----

MEANINGS = {
    "new": "never tried",
    "failed": "tried, and will be again",
    "running": "being trained at this moment",
    "lost": "begun and never finished: goes on from its last checkpoint",
    "stale": "finished, by other code than this: kept as it is",
    "cached": "finished",
    "skipped": "cells that their method or task has no rule for",
    "waiting": "chosen when their trials are done",
    "untuned": "cells of which every trial failed, so there is nothing to choose",
}
SWEEP = "qbench sweep {file}"
FIXES = {"new": SWEEP, "failed": SWEEP, "lost": SWEEP, "waiting": SWEEP, "stale": "qbench reproduce KEY says whether it still comes out"}
"""What to do about each."""
STYLES = {"failed": "red", "lost": "yellow", "stale": "yellow", "skipped": "dim", "waiting": "dim", "untuned": "red"}


def show_plan(lines: Sequence[Planned], console: Console | None = None, file: str = "") -> None:
    """What a sweep would train and why: a line for each run that is not simply there, and how many there are of each state, and what to do."""
    console = console or Console()
    told = [(_state(line), line) for line in lines]
    listed = [(state, line) for state, line in told if state != "cached"]
    if listed:
        table = _columns("state", "run", "why")
        for state, line in listed:
            table.add_row(Text(state, style=STYLES.get(state, "")), Text(text.plain(line.title)), Text(_why(state, line), style="dim"))
        console.print(table)
        console.print()
    counts = Counter[str]()
    for state, line in told:
        counts[state] += line.runs
    diverged = sum(line.standing.diverged for state, line in told if state == "cached")
    table = _columns("state", "runs", "", "to go on")
    for state in filter(counts.get, MEANINGS):
        more = f", {diverged} of them diverged" if state == "cached" and diverged else ""
        fix = FIXES.get(state, "").format(file=text.plain(file)).rstrip()
        table.add_row(Text(state, style=STYLES.get(state, "")), str(counts[state]), Text(MEANINGS[state] + more, style="dim"), Text(fix))
    console.print(table if counts else Text("Nothing is asked for."))
    if todo := Counter(task for line in lines for task in line.unanswered):
        each = ", ".join(f"{text.plain(task)} of {count(n, 'finished run')}" for task, n in todo.items())
        console.print(Text(f"Still to be asked downstream: {each}"))


def _state(line: Planned) -> str:
    return "stale" if (line.stale or line.edited) and line.standing.state == "cached" else line.standing.state


def _why(state: str, line: Planned) -> str:
    was = line.standing
    made = [f"{' and '.join(line.edited)} edited under the same version: raise version"] if line.edited else []
    made += [f"made by {line.stale}"] if line.stale else []
    words = (
        [f"{', '.join(made)}, key {(line.key or '')[:12]}"] if state == "stale" else [f"there is one of {line.older}"] if line.older else []
    )
    return text.plain(": ".join(filter(None, (*words, was.reason, was.message))))


# ---- what is registered ----


def show_methods(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Name, version, title and paper of each method, what it does, and its parameters with their defaults."""
    _show_entries(entries, console, _about_method)


def show_tasks(entries: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Name, version and title of each task, what it is, its metric, its sizes with their budgets, and its parameters."""
    _show_entries(entries, console, _about_task)


def _show_entries(
    entries: Sequence[Mapping[str, Any]], console: Console | None, about: Callable[[Mapping[str, Any]], Iterator[Line]]
) -> None:
    console = console or Console()
    if not entries:
        console.print(Text("None is installed."))
    for entry in entries:
        title = Text(text.plain(entry["name"]), style="bold")
        title.append(f"  {text.plain(entry.get('title') or '')}".rstrip(), style="not bold")
        title.append(f"  version {entry['version']}" if "version" in entry else "", style="not bold dim")
        console.print(title)
        lines: list[Line] = [("  error", Text(text.plain(entry["error"], 2000), style="red"))] if entry.get("error") else []
        lines += [(f"  {label}", words) for label, words in about(entry) if words] if not entry.get("error") else []
        console.print(_grid([*lines, ("  from", f"{entry.get('distribution')} ({entry.get('target')})")]))
        console.print()


def _about_method(entry: Mapping[str, Any]) -> Iterator[Line]:
    yield "does", str(entry.get("summary") or "")
    source = "reconstructed" if entry.get("provenance") == "reconstructed" else ""
    yield "paper", ", ".join(filter(None, (entry.get("paper"), source)))
    yield "after", f"a finished run of {entry['after']}" if entry.get("after") else ""
    yield "options", spell(entry.get("options") or {})
    yield "tuned", ", ".join(entry.get("knobs") or ())
    for name, preset in (entry.get("presets") or {}).items():
        words = {**preset["params"], **preset["recipe"], **({"start": preset["start"]} if preset["start"] else {})}
        yield "preset", f"{name}: {spell(words)} ({preset['source']})"


def _about_task(entry: Mapping[str, Any]) -> Iterator[Line]:
    metric = entry.get("metric") or {}
    unit = f" ({metric['unit']})" if metric.get("unit") else ""
    yield "is", str(entry.get("summary") or "")
    yield "metric", f"{metric.get('name')}{unit}, {metric.get('better')} is better"
    for n, size in enumerate(entry.get("sizes") or ()):
        yield "" if n else "sizes", f"{size}: {_budget(entry, size)}"
    yield "options", spell(entry.get("options") or {})
    yield "tuning", "; ".join(f"{name}: {', '.join(map(str, values))}" for name, values in (entry.get("tuning") or {}).items())


def _budget(entry: Mapping[str, Any], size: str) -> str:
    """`300 steps of 64`, and what the size means to the task."""
    recipe = (entry.get("recipes") or {}).get(size) or {}
    return ", ".join(filter(None, (f"{count(recipe.get('steps') or 0, 'step')} of {recipe.get('batch')}", spell(entry["sizes"][size]))))


# ---- tables ----


def _grid(lines: Iterable[Line]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in lines:
        grid.add_row(Text(label), value if isinstance(value, Text) else Text(text.plain(value, 2000)))
    return grid


def _columns(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for head in heads:
        table.add_column(head, overflow="fold")
    return table
