"""Figures of what training costs: time and memory, and scores at equal training time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from qbench.publish.figures.axes import PlotAxis, fit_axis
from qbench.publish.figures.panels import (
    MAX_NAME,
    NARROW,
    ROW_HEIGHT,
    Figure,
    Json,
    Styles,
    get_cell,
    measure_name_width,
    shorten_name,
)
from qbench.publish.figures.score_axis import draw_score_scale, draw_stroke
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_label,
    draw_mark,
    encode_outline,
    encode_path,
    join_markup,
    make_element,
)


def _get_megabytes(row: Json) -> float | None:
    peak: float | None = row["cost"]["peak_memory_bytes"]
    return None if peak is None else peak / 1e6


COSTS: tuple[tuple[str, str, Callable[[Json], Any]], ...] = (
    ("step time over full precision", "step / fp", lambda row: row["cost"]["step_ratio"]),
    ("training time, s", "training", lambda row: row["cost"]["train_s"] or None),
    ("peak memory, MB", "memory", _get_megabytes),
)
"""The name of a panel's axis, its heading, and how to read its value from a row."""


def draw_costs(section: Json, styles: Styles) -> Figure:
    """Return step time, training time and peak memory as bars, a panel for each."""
    panels = []
    for title, head, get_value in COSTS:
        costs = [(row, value) for row in section["rows"] if (value := get_value(row)) is not None]
        if len(costs) > 1:
            panels.append(_draw_cost_panel(title, head, costs, styles))
    caption = "Medians over the runs of an entrant in this table; memory is the highest peak."
    return Figure("cost", "What training costs", caption, panels)


def _draw_cost_panel(
    title: str, head: str, costs: Sequence[tuple[Json, float]], styles: Styles
) -> Panel:
    ordered = sorted(costs, key=lambda item: (item[1], item[0]["entrant"]))
    left = measure_name_width(row["entrant"] for row, _ in ordered)
    right, bottom = NARROW - 46, 30 + ROW_HEIGHT * len(ordered)
    # Bars compare by their lengths, so the axis begins at zero and is never logarithmic.
    x = fit_axis([v for _, v in ordered], left, right, log=False, zero=True)
    parts = [
        draw_label(left, 13, head, "head"),
        make_element("path", d=f"M{left} 24V{bottom}", cls="axis"),
    ]
    for n, (row, value) in enumerate(ordered):
        middle = 24 + ROW_HEIGHT * (n + 0.5)
        parts.append(_draw_bar(row, value, styles[row["entrant"]], x, middle))
    parts.append(draw_label((left + right) / 2, bottom + 20, title, "name", "middle", 50))
    description = "; ".join(
        f"{shorten_name(row['entrant'], 40)} {_format_cost(value)}" for row, value in ordered
    )
    return Panel(title, description, NARROW, bottom + 34, join_markup(parts))


def _draw_bar(row: Json, value: float, style: EntrantStyle, x: PlotAxis, middle: float) -> Markup:
    """Return an entrant's bar with its name and its number."""
    end = max(x(value), x.start + 0.5)  # half a pixel of bar for the smallest value
    bar = draw_stroke(encode_path([(x.start, middle), (end, middle)]), "bar")
    # The style sheet finds the number as the text after the bar: it needs no class.
    number = draw_label(x(value) + 6, middle + 4, _format_cost(value))
    name = shorten_name(row["entrant"], MAX_NAME)
    label = draw_label(x.start - 8, middle + 4, name, "", "end")
    return make_element("g", join_markup([bar, number, label]), cls=f"{style.classes} m")


def _format_cost(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


# ---- equal training time ----


def draw_equal_time(section: Json, styles: Styles) -> Figure:
    """Return validation scores after all steps, and when full precision finished its training."""
    panels = []
    for i, column in enumerate(section["columns"]):
        timed = [
            (row, cell["equal_time"])
            for row in section["rows"]
            if (cell := get_cell(row, i)) and _has_both_scores(cell["equal_time"])
        ]
        if len(timed) > 1:
            panels.append(_draw_time_panel(section, column["format"], i, timed, styles))
    caption = (
        "Scores on the validation split. Filled: after all training steps. Hollow: at the moment "
        "when full precision finished its training, in the middle of a longer schedule."
    )
    return Figure("time", "At equal training time", caption, panels)


def explain_missing_equal_time(section: Json) -> str:
    """Return why there is no figure of equal training time; nothing if there is one."""
    views = [c["equal_time"] for row in section["rows"] for c in row["cells"] if c["equal_time"]]
    notes = [view["note"] for view in views if view["note"]]
    if sum(map(_has_both_scores, views)) > 1 or not notes:
        return ""
    why = "too few runs had been evaluated by the time full precision finished training"
    if all("without a validation curve" in note for note in notes):
        why = "the validation curves of these runs are missing"
    return f"Scores at equal training time cannot be shown: {why}."


def _has_both_scores(view: Json | None) -> bool:
    return bool(view and view["at_time"] and view["at_steps"])


def _draw_time_panel(
    section: Json, fmt: str, column: int, timed: Sequence[tuple[Json, Json]], styles: Styles
) -> Panel:
    left = measure_name_width(row["entrant"] for row, _ in timed)
    bottom = 30 + ROW_HEIGHT * len(timed)
    values = [view[when]["value"] for _, view in timed for when in ("at_time", "at_steps")]
    x = fit_axis(values, left, NARROW - 16)
    parts = [
        draw_label(left, 13, fmt, "head", None, 44),
        draw_score_scale(x, bottom, 24, section),
    ]
    for n, (row, view) in enumerate(timed):
        middle = 24 + ROW_HEIGHT * (n + 0.5)
        parts.append(_draw_time_row(row, view, styles[row["entrant"]], x, middle))
    description = "; ".join(
        f"{shorten_name(row['entrant'], 40)} {view['at_time']['value']:.4g} then, "
        f"{view['at_steps']['value']:.4g} after all steps"
        for row, view in timed
    )
    title = f"At equal training time, {fmt}"
    return Panel(title, description, NARROW, bottom + 36, join_markup(parts), column)


def _draw_time_row(
    row: Json, view: Json, style: EntrantStyle, x: PlotAxis, middle: float
) -> Markup:
    """Return an entrant's two marks and the line between them."""
    hollow, filled = x(view["at_time"]["value"]), x(view["at_steps"]["value"])
    share = 100 * (view["progress"] or 0)
    tooltip = f"{shorten_name(row['entrant'], 40)}: after {share:.0f} % of its steps"
    outline = encode_outline(hollow, middle, style.shape, 3.4)
    inside = [
        draw_label(x.start - 8, middle + 4, shorten_name(row["entrant"], MAX_NAME), "", "end"),
        draw_stroke(encode_path([(hollow, middle), (filled, middle)])),
        make_element("path", make_element("title", tooltip), d=outline, cls="open"),
    ]
    return draw_mark(filled, middle, style, inside=join_markup(inside))
