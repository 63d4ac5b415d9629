"""What scores cost: training time and memory, the view at equal training time, and tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qbench.publish.axes import Axis, fit
from qbench.publish.sketch import LINE, LONGEST, NARROW, Figure, Json, Styles, at, base, gutter, metric, short
from qbench.publish.svg import Panel, Style, el, frame, join, label, mark, path


def figures(section: Json, look: Styles) -> list[Figure]:
    return [costs(section, look), equal_time(section, look), best_of(section, look)]


def costs(section: Json, look: Styles) -> Figure:
    kinds: tuple[tuple[str, str, Callable[[Json], Any]], ...] = (
        ("step time over full precision", "step / fp", lambda row: row["cost"]["step_ratio"]),
        ("training time, s", "training", lambda row: row["cost"]["train_s"] or None),
        ("peak memory, MB", "memory", lambda row: row["cost"]["peak_memory_bytes"] and row["cost"]["peak_memory_bytes"] / 1e6),
    )
    panels = []
    for title, head, of in kinds:
        known = [(row, value) for row in section["rows"] if (value := of(row)) is not None]
        if len(known) > 1:
            panels.append(_cost_panel(title, head, known, look))
    return Figure("cost", "What training costs", "Medians over an entrant's runs here; memory is the most of any.", panels)


def _cost_panel(title: str, head: str, known: Sequence[tuple[Json, float]], look: Styles) -> Panel:
    ordered = sorted(known, key=lambda item: (item[1], item[0]["entrant"]))
    names, bottom = gutter(row["entrant"] for row, _ in ordered), 30 + LINE * len(ordered)
    x = fit([v for _, v in ordered], names, NARROW - 46, log=False, zero=True)
    parts = [label(names, 13, head, "head"), el("path", d=f"M{names} 24V{bottom}", cls="axis")]
    for n, (row, value) in enumerate(ordered):
        middle, style = 24 + LINE * (n + 0.5), look[row["entrant"]]
        words = [
            label(names - 8, middle + 4, short(row["entrant"], LONGEST), "who", "end"),
            label(x(value) + 6, middle + 4, f"{value:.3g}", "value"),
        ]
        bar = el("rect", x=names, y=middle - 5, width=max(x(value) - names, 0.5), height=10, cls="bar")
        parts.append(el("g", join([bar, *words]), cls=f"{style.classes} m"))
    said = "; ".join(f"{short(row['entrant'], 40)} {value:.3g}" for row, value in ordered)
    return Panel(
        title, said, NARROW, bottom + 34, join([*parts, label((names + NARROW - 46) / 2, bottom + 20, title, "name", "middle", 50)])
    )


def best_of(section: Json, look: Styles) -> Figure:
    panels = []
    for i, column in enumerate(section["columns"]):
        lines = [(look[row["entrant"]], c["best_of"]) for row in section["rows"] if (c := at(row, i)) and len(c["best_of"]) > 1]
        lines = [(style, [v for v in values if v is not None]) for style, values in lines]
        if lines := [(style, values) for style, values in lines if len(values) > 1]:
            panels.append(_tuning_panel(section, column["format"], i, lines))
    return Figure(
        "tuning", "Best of n trials", "The test score to expect, at the seeds of tuning, from the best of n trials on validation.", panels
    )


def _tuning_panel(section: Json, fmt: str, i: int, lines: Sequence[tuple[Style, Sequence[float]]]) -> Panel:
    left, right, top, bottom = 42, NARROW - 12, 26, 196
    most = max(len(values) for _, values in lines)
    x, y = Axis(1, most, left + 4, right), fit([v for _, values in lines for v in values], bottom, top)
    parts = [frame(x, y, "trials", metric(section), sorted({1, *range(2, most + 1, max(1, most // 6))}))]
    for style, values in lines:
        places = [(x(n), y(v)) for n, v in enumerate(values, 1)]
        parts.append(el("path", d=path(places), cls=f"{style.classes} line"))
        parts += [
            mark(px, py, style, 2.6, f"{short(style.name, 40)}, {n} trials: {v:.4g}")
            for n, ((px, py), v) in enumerate(zip(places, values, strict=True), 1)
        ]
    said = "; ".join(f"{short(style.name, 40)} {values[-1]:.4g} of {len(values)}" for style, values in lines)
    return Panel(fmt, said, NARROW, bottom + 36, join([label(left + 60, 13, fmt, "head", None, 40), *parts]), i)


def equal_time(section: Json, look: Styles) -> Figure:
    """Where steps cost more than full precision's, what they had brought when that was done."""
    panels = []
    for i, column in enumerate(section["columns"]):
        found = [(row, c["equal_time"]) for row in section["rows"] if (c := at(row, i)) and c["equal_time"]]
        found = [(row, e) for row, e in found if e["at_time"] and e["at_steps"]]
        if len(found) > 1:
            panels.append(_timed_panel(section, column["format"], i, found, look))
    said = "On the validation split. Filled: after all steps. Hollow: when full precision's training was done, in the middle of a schedule made for longer."
    return Figure("time", "At equal training time", said, panels)


def _timed_panel(section: Json, fmt: str, i: int, found: Sequence[tuple[Json, Json]], look: Styles) -> Panel:
    names, bottom = gutter(row["entrant"] for row, _ in found), 30 + LINE * len(found)
    x = fit([e[when]["value"] for _, e in found for when in ("at_time", "at_steps")], names, NARROW - 16)
    parts = [label(names, 13, fmt, "head", None, 44), base(x, bottom, 24, section)]
    for n, (row, e) in enumerate(found):
        middle, style = 24 + LINE * (n + 0.5), look[row["entrant"]]
        then, after = x(e["at_time"]["value"]), x(e["at_steps"]["value"])
        line = el("path", d=path([(then, middle), (after, middle)]), cls="ci")
        parts.append(
            mark(then, middle, style, 3.4, f"{short(row['entrant'], 40)}: {100 * (e['progress'] or 0):.0f} % of its steps", "hollow")
        )
        parts.append(
            mark(after, middle, style, 3.6, inside=join([label(names - 8, middle + 4, short(row["entrant"], LONGEST), "who", "end"), line]))
        )
    said = "; ".join(
        f"{short(row['entrant'], 40)} {e['at_time']['value']:.4g} then, {e['at_steps']['value']:.4g} after" for row, e in found
    )
    return Panel(f"At equal training time, {fmt}", said, NARROW, bottom + 36, join(parts), i)
