"""The figure of tuning: the score to expect from the best of n trials."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import PlotAxis, fit_axis
from qbench.publish.figures.panels import (
    MAX_NAME,
    NARROW,
    Figure,
    Json,
    Styles,
    format_metric,
    get_cell,
    shorten_name,
)
from qbench.publish.figures.score_axis import MAX_CONTROL_STRETCH, draw_stroke
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_frame,
    draw_label,
    encode_outline,
    encode_path,
    join_markup,
    make_element,
    simplify_path,
)
from qbench.util.text import format_count

LEFT, RIGHT, TOP, BOTTOM = 42, NARROW - 12, 26, 196
"""The frame of a panel, in pixels."""
Lines = Sequence[tuple[EntrantStyle, list[tuple[int, float]]]]
"""For each entrant the known pairs of a number of trials and the score of their best."""


def draw_best_of_trials(section: Json, styles: Styles) -> Figure:
    """Return the expected score of the best of n trials against n, a panel for each format."""
    panels = []
    for i, column in enumerate(section["columns"]):
        cells = [
            (styles[row["entrant"]], cell)
            for row in section["rows"]
            if (cell := get_cell(row, i)) and len(cell["best_of"]) > 1
        ]
        lines = [
            (style, points) for style, c in cells if (points := _list_known_scores(c["best_of"]))
        ]
        if lines:
            share = min(cell["best_of_share"] for _, cell in cells)
            panels.append(_draw_trials_panel(section, column["format"], i, lines, share))
    caption = (
        "The expected test score, at the seeds of tuning, of the trial that is best on validation "
        "among n trials. A line begins at the first n where that trial cannot be a failed one."
    )
    return Figure("tuning", "Best of n trials", caption, panels)


def list_trial_ticks(most: int) -> list[float]:
    """Return round numbers of trials up to `most`, far enough apart to be read."""
    steps = (1, 2, 4, 5, 10, 20, 25, 50, 100, 200, 250, 500)
    step = next((s for s in steps if most <= 8 * s), -(-most // 8))
    return [1, *range(step, most + 1, step)] if step > 1 else [*range(1, most + 1)]


def _list_known_scores(values: Sequence[float | None]) -> list[tuple[int, float]]:
    """Return (number of trials, score) pairs; the number counts trials without a score as well."""
    return [(n, value) for n, value in enumerate(values, 1) if value is not None]


def _draw_trials_panel(section: Json, fmt: str, column: int, lines: Lines, share: float) -> Panel:
    """Return the panel of a format; `share` is the part of a run's steps that a trial has."""
    most = max(n for _, points in lines for n, _ in points)
    x = PlotAxis(1, most, LEFT + 4, RIGHT) if most > 1 else PlotAxis(0, 2, LEFT, RIGHT)
    y = _fit_trials_axis(lines)
    x_name = "trials" + (f", with {100 * share:g} % of the steps" if share < 1 else "")
    parts = [
        draw_label(RIGHT, 13, fmt, "head", "end", 24),
        draw_frame(x, y, x_name, format_metric(section), list_trial_ticks(most)),
        *_draw_off_axis_names(lines, y),
        *(_draw_trials_line(style, points, x, y, most) for style, points in lines),
    ]
    description = "; ".join(
        f"{shorten_name(style.name, 40)} {points[-1][1]:.4g} "
        f"after {format_count(points[-1][0], 'trial')}"
        for style, points in lines
    )
    return Panel(fmt, description, NARROW, BOTTOM + 36, join_markup(parts), column)


def _fit_trials_axis(lines: Lines) -> PlotAxis:
    """Return an axis for scores, without controls that would flatten the lines of the others."""
    everyone = [v for _, points in lines for _, v in points]
    rivals = [v for style, points in lines if style.colour != "ctl" for _, v in points]
    spread = max(rivals) - min(rivals) if rivals else 0.0
    # Without a spread among the rivals there is nothing to flatten.
    far = 0 < MAX_CONTROL_STRETCH * spread < max(everyone) - min(everyone)
    return fit_axis(rivals if far else everyone, BOTTOM, TOP)


def _draw_off_axis_names(lines: Lines, y: PlotAxis) -> list[Markup]:
    """Return an arrow, a name and a number for each entrant whose last score is off the axis."""
    off = [(style, points) for style, points in lines if not y.low <= points[-1][1] <= y.high]
    parts = []
    for place, (style, points) in enumerate(off):
        below = points[-1][1] < y.low
        arrow = "↓" if below else "↑"
        words = f"{arrow} {shorten_name(style.name, MAX_NAME)} {points[-1][1]:.4g}"
        height = BOTTOM - 6 - 12 * place if below else TOP + 10 + 12 * place
        label = draw_label(RIGHT - 2, height, words, "end", "end")
        parts.append(make_element("g", label, cls=f"{style.classes} m"))
    return parts


def _draw_trials_line(
    style: EntrantStyle, points: list[tuple[int, float]], x: PlotAxis, y: PlotAxis, most: int
) -> Markup:
    """Return an entrant's line within the axis, marked at 1, 2, 4, 8 … trials and at the end."""
    visible = [(n, value) for n, value in points if y.low <= value <= y.high]
    line = simplify_path([(x(n), y(value)) for n, value in visible])
    parts = [draw_stroke(encode_path(line), "line")]
    marked = {most, *(1 << k for k in range(most.bit_length()))}
    for n, value in visible:
        if n in marked:
            words = f"{shorten_name(style.name, 40)}, {format_count(n, 'trial')}: {value:.4g}"
            outline = encode_outline(x(n), y(value), style.shape, 2.6)
            parts.append(make_element("path", make_element("title", words), d=outline))
    return make_element("g", join_markup(parts), cls=f"{style.classes} m")
