"""The figures of a section: which there are, and the first of them, the scores of all entrants.

A figure consists of small pictures of equal size with letters of equal size, which are placed in a
row on a desktop and in a column on a phone. Only what is in the document is drawn. Instead of a
missing score, the reason is written.
"""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from qbench.publish.figures import cost, losses, tradeoffs, tuning
from qbench.publish.figures.axes import PlotAxis
from qbench.publish.figures.loss_curves import LossCurve
from qbench.publish.figures.panels import (
    BROAD,
    MAX_NAME,
    NARROW,
    ROW_HEIGHT,
    Figure,
    Json,
    Styles,
    describe_best,
    describe_missing_score,
    format_levels,
    format_tooltip,
    get_cell,
    measure_name_width,
    shorten_name,
)
from qbench.publish.figures.score_axis import (
    build_interval_path,
    draw_off_axis_arrow,
    draw_reference_band,
    draw_score_scale,
    draw_stroke,
    fit_score_axis,
)
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_label,
    draw_mark,
    join_markup,
    make_element,
)


def draw_section_figures(
    section: Json, styles: Styles, curves: Mapping[str, LossCurve]
) -> list[Figure]:
    """Return the figures that have something to show, in the order of the page."""
    figures = (
        draw_scores(section, styles),
        tradeoffs.draw_score_against_bits(section, styles),
        tradeoffs.draw_front(section, styles),
        losses.draw_losses(section, styles, curves),
        cost.draw_costs(section, styles),
        cost.draw_equal_time(section, styles),
        tuning.draw_best_of_trials(section, styles),
    )
    return [figure for figure in figures if figure.panels]


def draw_scores(section: Json, styles: Styles) -> Figure:
    """Return the scores and their intervals, a panel for each format."""
    caption = (
        f"Mean over seeds with its 95 % t interval; {section['better']} is better. "
        "The shaded band is the interval of full precision (fp)."
    )
    panels = [_draw_score_panel(section, styles, i) for i in range(len(section["columns"]))]
    return Figure("scores", "Scores", caption, panels)


def _draw_score_panel(section: Json, styles: Styles, column: int) -> Panel:
    rows = section["rows"]
    # A panel that stands alone has room for long names.
    width, longest = (BROAD, 30) if len(section["columns"]) == 1 else (NARROW, MAX_NAME)
    left = measure_name_width((row["entrant"] for row in rows), longest)
    bottom = 30 + ROW_HEIGHT * len(rows)
    cells = [cell for row in rows if (cell := get_cell(row, column))]
    x = fit_score_axis(section, cells, left, width - 16)
    fmt = section["columns"][column]
    title = f"{fmt['format']}{format_levels(fmt)}"
    # Elements that come later cover earlier ones: the band lies below the marks.
    parts = [
        draw_label(left, 13, title, "head", None, 44),
        draw_reference_band(section, x, 24, bottom),
        draw_score_scale(x, bottom, 24, section),
    ]
    for n, row in enumerate(rows):
        middle, style = 24 + ROW_HEIGHT * (n + 0.5), styles[row["entrant"]]
        name = shorten_name(row["entrant"], longest)
        label = draw_label(left - 8, middle + 4, name, "", "end", longest)
        parts.append(_draw_score_row(section, row, get_cell(row, column), style, x, middle, label))
    return Panel(
        title, describe_best(section, column), width, bottom + 36, join_markup(parts), column
    )


def _draw_score_row(
    section: Json,
    row: Json,
    cell: Json | None,
    style: EntrantStyle,
    x: PlotAxis,
    middle: float,
    label: Markup,
) -> Markup:
    """Return an entrant's mark with its interval, or the reason why there is no score."""
    if not cell or not cell["score"]:
        cls = "bad" if cell and cell["state"] == "failed" else "gone"
        reason = draw_label(x.start + 4, middle + 4, describe_missing_score(cell), cls)
        return make_element("g", join_markup([label, reason]), cls=f"{style.classes} m")
    place = x(cell["score"]["value"])
    inside = [
        label,
        draw_stroke(build_interval_path(cell, x, middle)),
        draw_off_axis_arrow(cell, x, section, place, middle + 4),
    ]
    tooltip = format_tooltip(row, cell, section)
    return draw_mark(place, middle, style, title=tooltip, inside=join_markup(inside))
