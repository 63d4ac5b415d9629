"""What scores cost: training time and memory, the view at equal training time, and tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from qbench.publish.figures.axes import Axis, fit
from qbench.publish.figures.panels import (
    CROWDED,
    LINE,
    LONGEST,
    NARROW,
    Figure,
    Json,
    Styles,
    at,
    base,
    gutter,
    metric,
    short,
    stroke,
)
from qbench.publish.figures.svg import (
    Panel,
    Style,
    el,
    frame,
    join,
    label,
    mark,
    outline,
    path,
    thin,
)
from qbench.util.text import count


def figures(section: Json, look: Styles) -> list[Figure]:
    return [costs(section, look), equal_time(section, look), best_of(section, look)]


def costs(section: Json, look: Styles) -> Figure:
    kinds: tuple[tuple[str, str, Callable[[Json], Any]], ...] = (
        ("step time over full precision", "step / fp", lambda row: row["cost"]["step_ratio"]),
        ("training time, s", "training", lambda row: row["cost"]["train_s"] or None),
        (
            "peak memory, MB",
            "memory",
            lambda row: row["cost"]["peak_memory_bytes"] and row["cost"]["peak_memory_bytes"] / 1e6,
        ),
    )
    panels = []
    for title, head, of in kinds:
        known = [(row, value) for row in section["rows"] if (value := of(row)) is not None]
        if len(known) > 1:
            panels.append(_cost_panel(title, head, known, look))
    return Figure(
        "cost",
        "What training costs",
        "Medians over an entrant's runs here; memory is the most of any.",
        panels,
    )


def _cost_panel(title: str, head: str, known: Sequence[tuple[Json, float]], look: Styles) -> Panel:
    ordered = sorted(known, key=lambda item: (item[1], item[0]["entrant"]))
    names, bottom = gutter(row["entrant"] for row, _ in ordered), 30 + LINE * len(ordered)
    x = fit([v for _, v in ordered], names, NARROW - 46, log=False, zero=True)
    parts = [label(names, 13, head, "head"), el("path", d=f"M{names} 24V{bottom}", cls="axis")]
    for n, (row, value) in enumerate(ordered):
        middle, style = 24 + LINE * (n + 0.5), look[row["entrant"]]
        # A number after its bar needs no class.
        words = [
            label(x(value) + 6, middle + 4, _number(value)),
            label(names - 8, middle + 4, short(row["entrant"], LONGEST), "", "end"),
        ]
        bar = stroke(path([(names, middle), (max(x(value), names + 0.5), middle)]), "bar")
        parts.append(el("g", join([bar, *words]), cls=f"{style.classes} m"))
    said = "; ".join(f"{short(row['entrant'], 40)} {_number(value)}" for row, value in ordered)
    return Panel(
        title,
        said,
        NARROW,
        bottom + 34,
        join([*parts, label((names + NARROW - 46) / 2, bottom + 20, title, "name", "middle", 50)]),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def best_of(section: Json, look: Styles) -> Figure:
    panels = []
    for i, column in enumerate(section["columns"]):
        cells = [
            (look[row["entrant"]], c)
            for row in section["rows"]
            if (c := at(row, i)) and len(c["best_of"]) > 1
        ]
        lines = [(style, known) for style, c in cells if (known := _known(c["best_of"]))]
        if lines:
            share = min(c["best_of_share"] for _, c in cells)
            panels.append(_tuning_panel(section, column["format"], i, lines, share))
    said = (
        "Of n trials the one that is best on validation: the test score to expect of it, at the seeds of tuning. "
        "A line begins where the best of n can no longer be a failed trial."
    )
    return Figure("tuning", "Best of n trials", said, panels)


def _known(values: Sequence[float | None]) -> list[tuple[int, float]]:
    """By the number of trials, which starts at 1 whether or not its score is known."""
    return [(n, v) for n, v in enumerate(values, 1) if v is not None]


def _tuning_panel(
    section: Json,
    fmt: str,
    i: int,
    lines: Sequence[tuple[Style, list[tuple[int, float]]]],
    share: float,
) -> Panel:
    left, right, top, bottom = 42, NARROW - 12, 26, 196
    most = max(n for _, known in lines for n, _ in known)
    doubled = {most, *(1 << k for k in range(most.bit_length()))}
    x = Axis(1, most, left + 4, right) if most > 1 else Axis(0, 2, left, right)
    y = _tuning_axis(lines, bottom, top)
    name = "trials" + (f", with {100 * share:g} % of the steps" if share < 1 else "")
    parts = [frame(x, y, name, metric(section), _counts(most))]
    off = [(style, known) for style, known in lines if not y.low <= known[-1][1] <= y.high]
    for place, (style, known) in enumerate(off):
        below = known[-1][1] < y.low
        words = f"{'↓' if below else '↑'} {short(style.name, LONGEST)} {known[-1][1]:.4g}"
        height = bottom - 6 - 12 * place if below else top + 10 + 12 * place
        parts.append(
            el("g", label(right - 2, height, words, "end", "end"), cls=f"{style.classes} m")
        )
    for style, known in lines:
        inside = [
            stroke(path(thin([(x(n), y(v)) for n, v in known if y.low <= v <= y.high])), "line")
        ]
        for n, v in known:
            if n in doubled and y.low <= v <= y.high:
                words = f"{short(style.name, 40)}, {count(n, 'trial')}: {v:.4g}"
                inside.append(
                    el("path", el("title", words), d=outline(x(n), y(v), style.shape, 2.6))
                )
        parts.append(el("g", join(inside), cls=f"{style.classes} m"))
    said = "; ".join(
        f"{short(style.name, 40)} {known[-1][1]:.4g} of {known[-1][0]}" for style, known in lines
    )
    return Panel(
        fmt, said, NARROW, bottom + 36, join([label(right, 13, fmt, "head", "end", 24), *parts]), i
    )


def _counts(most: int) -> list[float]:
    """Round numbers of trials below an axis, none on its neighbour."""
    step = next(
        (s for s in (1, 2, 4, 5, 10, 20, 25, 50, 100, 200, 250, 500) if most <= 8 * s),
        -(-most // 8),
    )
    return [1, *range(step, most + 1, step)] if step > 1 else [*range(1, most + 1)]


def _tuning_axis(
    lines: Sequence[tuple[Style, list[tuple[int, float]]]], bottom: float, top: float
) -> Axis:
    """As with scores, controls do not press what is compared into a corner."""
    everyone = [v for _, known in lines for _, v in known]
    rivals = [v for style, known in lines if style.colour != "ctl" for _, v in known]
    crowded = rivals and max(everyone) - min(everyone) > CROWDED * (max(rivals) - min(rivals)) > 0
    return fit(rivals if crowded else everyone, bottom, top)


def unknown_time(section: Json) -> str:
    """Why nothing can be drawn of equal training time; nothing where it is drawn."""
    told = [c["equal_time"] for row in section["rows"] for c in row["cells"] if c["equal_time"]]
    known = [e for e in told if e["at_time"] and e["at_steps"]]
    notes = [e["note"] for e in told if e["note"]]
    if len(known) > 1 or not notes:
        return ""
    none = all("without a validation curve" in note for note in notes)
    why = (
        "the validation curves of its runs are not here"
        if none
        else "too few runs had been evaluated when full precision was done"
    )
    return f"At equal training time nothing can be shown: {why}."


def equal_time(section: Json, look: Styles) -> Figure:
    """Where steps cost more than full precision's, what they had brought when that was done."""
    panels = []
    for i, column in enumerate(section["columns"]):
        found = [
            (row, c["equal_time"])
            for row in section["rows"]
            if (c := at(row, i)) and c["equal_time"]
        ]
        found = [(row, e) for row, e in found if e["at_time"] and e["at_steps"]]
        if len(found) > 1:
            panels.append(_timed_panel(section, column["format"], i, found, look))
    said = "On the validation split. Filled: after all steps. Hollow: when full precision's training was done, in the middle of a schedule made for longer."
    return Figure("time", "At equal training time", said, panels)


def _timed_panel(
    section: Json, fmt: str, i: int, found: Sequence[tuple[Json, Json]], look: Styles
) -> Panel:
    names, bottom = gutter(row["entrant"] for row, _ in found), 30 + LINE * len(found)
    x = fit(
        [e[when]["value"] for _, e in found for when in ("at_time", "at_steps")], names, NARROW - 16
    )
    parts = [label(names, 13, fmt, "head", None, 44), base(x, bottom, 24, section)]
    for n, (row, e) in enumerate(found):
        middle, style = 24 + LINE * (n + 0.5), look[row["entrant"]]
        then, after = x(e["at_time"]["value"]), x(e["at_steps"]["value"])
        words = f"{short(row['entrant'], 40)}: {100 * (e['progress'] or 0):.0f} % of its steps"
        inside = [
            label(names - 8, middle + 4, short(row["entrant"], LONGEST), "", "end"),
            stroke(path([(then, middle), (after, middle)])),
            el("path", el("title", words), d=outline(then, middle, style.shape, 3.4), cls="open"),
        ]
        parts.append(mark(after, middle, style, inside=join(inside)))
    said = "; ".join(
        f"{short(row['entrant'], 40)} {e['at_time']['value']:.4g} then, {e['at_steps']['value']:.4g} after"
        for row, e in found
    )
    return Panel(f"At equal training time, {fmt}", said, NARROW, bottom + 36, join(parts), i)
