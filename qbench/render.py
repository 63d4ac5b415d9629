"""A board or a run → the terminal. Markdown and CSV are `plaintext`'s; only here and in `progress` is rich imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from qbench import text
from qbench.board import Board, Cell, Section
from qbench.plaintext import (
    COSTS,
    DITTO,
    NONE,
    costs,
    details,
    gap,
    head_lines,
    heading,
    legend,
    marks,
    name,
    rank,
    read_runs_csv,
    rr,
    runs_csv,
    score,
    to_csv,
    to_markdown,
)
from qbench.tidy import format_label

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["read_runs_csv", "runs_csv", "show_board", "show_run", "sparkline", "to_csv", "to_markdown"]

NAME_WIDTH, GAP = 30, 2
BARS = "▁▂▃▄▅▆▇█"


# ---- a board ----


def show_board(board: Board, console: Console, *, randomised: bool = False) -> None:
    """Print a table for each section, in several pieces where the terminal is narrow; `randomised` adds the score after randomised rounding."""
    if board.title:
        console.print(Text(text.plain(board.title), style="bold underline"), end="\n\n")
    if not board.sections:
        console.print(Text("No runs yet."))
        return
    for section in board.sections:
        console.print(Text(text.plain(heading(section)), style="bold"))
        console.print(Text(text.plain(details(section), 1000), style="dim"))
        for table in _tables(section, console, randomised):
            console.print(table)
        for n, note in enumerate(section.notes, 1):
            console.print(_hanging(text.superscript(n), text.plain(note)))
        console.print()
    for line in legend(board):
        console.print(Text(line, style="dim"))


@dataclass(frozen=True)
class _Column:
    """A table's column, ready to print; None in a cell of full precision that the column before it already shows."""

    head: str
    cells: Sequence[Text]

    @property
    def width(self) -> int:
        return max(cell_len(line) for block in (self.head, *(cell.plain for cell in self.cells)) for line in block.split("\n"))


def _tables(section: Section, console: Console, randomised: bool) -> Iterator[Table]:
    names = _Column("method", [Text(name(row)) for row in section.rows])
    columns = _columns(section, console, randomised)
    first, start = min(names.width, NAME_WIDTH), 0
    while start < len(columns):
        stop, used = start + 1, first + GAP + columns[start].width
        while stop < len(columns) and used + GAP + columns[stop].width <= console.width:
            used, stop = used + GAP + columns[stop].width, stop + 1
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0), show_edge=False)
        table.add_column(Text(names.head), width=first, overflow="fold")
        for column in columns[start:stop]:
            table.add_column(Text(column.head), width=min(column.width, max(8, console.width - first - GAP)), overflow="fold")
        for r, row in enumerate(section.rows):
            repeated = [row.spans and start < c < len(section.columns) for c in range(start, stop)]
            cells = [
                Text(DITTO, style="dim") if again else columns[c].cells[r] for again, c in zip(repeated, range(start, stop), strict=True)
            ]
            table.add_row(names.cells[r], *cells)
        yield table
        start = stop


def _columns(section: Section, console: Console, randomised: bool) -> list[_Column]:
    # Where nothing can be bold, as in a pipe, a star says it.
    star = "" if console.is_terminal else " *"
    heads = ["\n".join((text.plain(c.format), *head_lines(c))) for c in section.columns] or ["fp32"]
    found = [
        _Column(head, [_cell(row.cells[0 if row.spans else i], section, not row.spans, star, randomised) for row in section.rows])
        for i, head in enumerate(heads)
    ]
    if any(row.rank for row in section.rows):
        found.append(_Column("rank", [Text(rank(row)) for row in section.rows]))
    return [*found, _Column("\n".join(COSTS), [_cost(costs(row.cost)) for row in section.rows])]


def _cell(cell: Cell, section: Section, with_gap: bool, star: str, randomised: bool) -> Text:
    style = "bold" if cell.best else "" if cell.score else "yellow" if cell.state == "failed" else "dim"
    found = Text(score(cell, section.digits), style=style)
    found.append((star if cell.best else "") + marks(cell), style="not dim")
    if cell.score and with_gap:
        found.append(f"\n{gap(cell)}", style="not bold dim")
    if randomised and cell.rr is not None:
        found.append(f"\nrr {rr(cell, section.digits)}", style="not bold dim")
    return found


def _cost(parts: Sequence[str]) -> Text:
    rest = ", ".join(part for part in parts[1:] if part != NONE)
    return Text.assemble(parts[0], (f"\n{rest}" if rest else "", "dim"))


def _hanging(mark: str, words: str) -> Table:
    """A note whose further lines start under its first."""
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(mark), Text(words))
    return grid


# ---- a run ----


def show_run(run: Mapping[str, Any], console: Console) -> None:
    """One run whole: `key`, `attempt`, `folder`, and the contents of its files as `spec`, `env`, `result` (None where missing) and `curve` (a list)."""
    spec, result, env = (run.get(part) or {} for part in ("spec", "result", "env"))
    state = result.get("state") or run.get("state") or "not finished"
    title = Text(f"run {text.plain(run.get('key', '?'))}", style="bold")
    title.append(f"  attempt {text.plain(run.get('attempt', 1))}: ", style="not bold")
    title.append(text.plain(state), style="green" if state == "ok" else "red")
    console.print(title)
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in _lines(run, spec, result, env, max(20, console.width - 14)):
        grid.add_row(Text(label), value if isinstance(value, Text) else Text(text.plain(value, 2000)))
    console.print(grid)


def _lines(
    run: Mapping[str, Any], spec: Mapping[str, Any], result: Mapping[str, Any], env: Mapping[str, Any], width: int
) -> Iterator[tuple[str, str | Text]]:
    if result.get("reason") or result.get("message"):
        yield "reason", Text(text.plain(f"{result.get('reason') or ''}: {result.get('message') or ''}", 2000), style="red")
    weights, acts = spec.get("weights") or {}, spec.get("activations") or {}
    fmt = format_label(*(str(q.get(k) or "") for q in (weights, acts) for k in ("format", "granularity")))
    if spec:
        yield "what", f"{spec.get('method')} on {spec.get('task')}/{spec.get('size')}, {fmt}, seed {spec.get('seed')}"
        yield "method", f"{spec.get('method')} version {spec.get('method_version')}{_options(spec.get('method_params'))}"
        yield "task", f"{spec.get('task')} version {spec.get('task_version')}{_options(spec.get('task_params'))}, data {spec.get('data')}"
        yield "recipe", f"start {spec.get('start')}{_options(spec.get('recipe'))}"
        if spec.get("base"):
            yield "goes on from", str(spec["base"])
    yield from _outcome(result)
    losses = [(point.get("step"), _number(point.get("loss"))) for point in run.get("curve") or ()]
    if losses:
        yield "loss", Text(sparkline([loss for _, loss in losses], width))
        yield "", f"{_short(losses[0][1])} at step {losses[0][0]}, {_short(losses[-1][1])} at step {losses[-1][0]}"
    for check in (result.get("audit") or {}).get("checks") or ():
        good = bool(check.get("passed"))
        yield (
            "audit",
            Text.assemble(
                ("pass " if good else "FAIL ", "green" if good else "bold red"),
                text.plain(f"{check.get('name')}: {check.get('detail') or ''}"),
            ),
        )
    if env:
        dirty = {True: ", with changes", None: ", changes unknown"}.get(env.get("dirty"), "")
        yield "code", f"qbench {env.get('qbench')}, commit {env.get('commit') or 'unknown'}{dirty if env.get('commit') else ''}"
        yield (
            "machine",
            ", ".join(
                f"{k} {env[k]}" for k in ("device_name", "device", "cpu", "threads", "platform", "python", "torch", "numpy") if env.get(k)
            ),
        )
    if result.get("artefact_sha256"):
        yield "artefact", f"sha256 {result['artefact_sha256']}"
    if run.get("folder"):
        yield "files", str(run["folder"])
    yield "again", f"qbench reproduce {run.get('key', '?')}"


def _outcome(result: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    scores, metric = result.get("scores") or {}, result.get("metric") or {}
    kinds = result.get("kinds") or {}
    digits = int(_number(metric.get("digits")) or 3) + 2
    if scores:
        shown = {
            k: text.number(x, digits) if (x := _number(scores.get(k))) is not None else kinds.get(k)
            for k in ("packed", "simulated", "validation", "latent")
        }
        yield (
            "score",
            f"{metric.get('name')} {metric.get('unit') or ''}: " + ", ".join(f"{k} {x}" for k, x in shown.items() if x is not None),
        )
        if (mean := _number(scores.get("rr_mean"))) is not None:
            spread = _number(scores.get("rr_std"))
            more = f" ± {text.number(spread, digits)} (deviation)" if spread is not None else ""
            yield "", f"randomised rounding {text.number(mean, digits)}{more}, {scores.get('rr_count')} draws"
    size, cost = result.get("size") or {}, result.get("cost") or {}
    if size:
        yield "size", ", ".join(f"{k.replace('_', ' ')} {_short(_number(v))}" for k, v in size.items() if v is not None)
    if cost:
        step = [_number(cost.get(f"step_s_{q}")) for q in ("median", "q25", "q75")]
        times = [
            f"{k} {text.seconds(x)}"
            for k in ("wall_s", "train_s", "eval_s", "build_s", "overhead_s")
            if (x := _number(cost.get(k))) is not None
        ]
        if step[0] is not None:
            quartiles = f" [{1000 * step[1]:.3g}, {1000 * step[2]:.3g}]" if step[1] is not None and step[2] is not None else ""
            times.append(f"step {1000 * step[0]:.3g}{quartiles} ms")
        if (peak := _number(cost.get("peak_memory_bytes"))) is not None:
            times.append(f"peak memory {text.size(peak)}")
        yield "cost", ", ".join(t.replace("_s ", " ") for t in times)


def sparkline(values: Iterable[float | None], width: int) -> str:
    """Bars for the means of consecutive values; × for one that is not finite. Logarithmic where they span more than a factor of 30."""
    found = [x if x is not None and math.isfinite(x) else None for x in values]
    chunks = [found[i * len(found) // n : (i + 1) * len(found) // n] for n in [min(width, len(found))] for i in range(n)]
    means = [None if None in chunk else math.fsum(x for x in chunk if x is not None) / len(chunk) for chunk in chunks]
    known = [x for x in means if x is not None]
    if not known:
        return "×" * len(means)
    logarithmic = min(known) > 0 and max(known) > 30 * min(known)
    scaled = [None if x is None else math.log(x) if logarithmic else x for x in means]
    low, high = (f(math.log(x) if logarithmic else x for x in known) for f in (min, max))
    return "".join("×" if x is None else BARS[min(7, int(8 * (x - low) / (high - low)))] if high > low else BARS[0] for x in scaled)


def _options(values: Any) -> str:
    return ": " + ", ".join(f"{k}={v}" for k, v in values.items()) if isinstance(values, Mapping) and values else ""


def _number(x: Any) -> float | None:
    return float(x) if isinstance(x, (int, float)) and math.isfinite(x) else None


def _short(x: float | None) -> str:
    return "not finite" if x is None else f"{x:.0f}" if x == round(x) and abs(x) < 1e12 else f"{x:.4g}"
