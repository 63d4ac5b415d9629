"""Figures over all cells of a board: the mean gap recovered, and the performance profile.

The gap recovered by a cell is (m − rtn) / (fp − rtn): the part of the difference between rounding
to nearest and full precision that the entrant wins back.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import PlotAxis, fit_axis
from qbench.publish.figures.panels import (
    BROAD,
    ROW_HEIGHT,
    Figure,
    Json,
    Styles,
    measure_name_width,
    shorten_name,
)
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_frame,
    draw_label,
    draw_mark,
    draw_tick_labels,
    encode_path,
    join_markup,
    make_element,
)
from qbench.util import text

GAP_RIGHT = BROAD - 52
"""The right end of the axis of gaps; numbers of cells are written beyond it."""
MIN_PROFILE_CELLS = 3
"""With fewer cells a profile is one or two steps, which says nothing."""


def draw_overall_figures(overall: Json, styles: Styles) -> list[Figure]:
    """Return the figures that have something to show."""
    rows = [row for row in overall["rows"] if row["gap"] and row["entrant"] in styles]
    figures = (
        _draw_gaps(rows, styles, overall["cells"]),
        _draw_profiles(rows, styles, overall["thresholds"]),
    )
    return [figure for figure in figures if figure.panels]


# ---- mean gap recovered ----


def _draw_gaps(rows: Sequence[Json], styles: Styles, cells: int) -> Figure:
    caption = (
        "Mean over cells of (m − rtn)/(fp − rtn), where m is the entrant's score, with its 95 % "
        "interval: 0 % is rounding to nearest (rtn), 100 % is full precision (fp). Hollow: the "
        "interquartile mean. If an entrant lacks cells, their number is given at the right."
    )
    panels = [_draw_gap_panel(rows, styles, cells)] if len(rows) > 1 else []
    return Figure("gaps", "Gap recovered over all cells", caption, panels)


def _draw_gap_panel(rows: Sequence[Json], styles: Styles, cells: int) -> Panel:
    left = measure_name_width((row["entrant"] for row in rows), 24)
    bottom = 30 + ROW_HEIGHT * len(rows)
    x = _fit_gap_axis(rows, left)
    middle = (left + GAP_RIGHT) / 2
    parts = [
        make_element("path", d="".join(f"M{x(t):.1f} {bottom}V24" for t in x.ticks()), cls="grid"),
        draw_tick_labels(x, bottom, x.ticks()),
        make_element("path", d=f"M{left:.1f} {bottom}H{GAP_RIGHT}", cls="axis"),
        draw_label(middle, bottom + 29, "gap recovered, %", "name", "middle", 40),
    ]
    for percent in (0, 100):
        parts.append(make_element("path", d=f"M{x(percent):.1f} {bottom}V24", cls="axis"))
    for percent, name in ((0, "rtn"), (100, "fp")):
        parts.append(draw_label(x(percent), 15, name, "tick", "middle"))
    for n, row in enumerate(rows):
        height = 24 + ROW_HEIGHT * (n + 0.5)
        parts += _draw_gap_row(row, styles[row["entrant"]], x, height, cells)
    description = "; ".join(
        f"{shorten_name(row['entrant'], 40)} {100 * row['gap']['value']:.0f} %" for row in rows
    )
    title = "Gap recovered over all cells"
    return Panel(title, description, BROAD, bottom + 36, join_markup(parts))


def _fit_gap_axis(rows: Sequence[Json], left: float) -> PlotAxis:
    """Return an axis in per cent that holds 0, 100 and all means, and intervals that are near."""
    means = sorted(v for row in rows for v in (row["gap"]["value"], 0.0, 1.0))
    ends = [
        v
        for row in rows
        for v in (row["gap"]["low"], row["gap"]["high"])
        # An end that is a whole gap away would press everybody else together.
        if v is not None and means[0] - 1 < v < means[-1] + 1
    ]
    return fit_axis([100 * v for v in [*means, *ends]], left, GAP_RIGHT, log=False)


def _draw_gap_row(
    row: Json, style: EntrantStyle, x: PlotAxis, height: float, cells: int
) -> list[Markup]:
    """Return an entrant's name, mean with interval, interquartile mean, and number of cells."""
    gap, words = row["gap"], f"{100 * row['gap']['value']:.0f} %"
    name = shorten_name(row["entrant"], 24)
    inside = [draw_label(x.start - 8, height + 4, name, "", "end", 24)]
    if gap["low"] is not None and gap["high"] is not None:
        words += f" [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]"
        interval = encode_path([(x(100 * gap["low"]), height), (x(100 * gap["high"]), height)])
        inside.append(make_element("path", d=interval, cls="ci"))
    cell_count = text.format_count(row["cells"], "cell")
    tooltip = f"{shorten_name(row['entrant'], 40)}: {words} over {cell_count}"
    place = x(100 * gap["value"])
    parts = [draw_mark(place, height, style, title=tooltip, inside=join_markup(inside))]
    if row["iqm"]:
        percent = 100 * row["iqm"]["value"]
        tooltip = f"interquartile mean {percent:.0f} %"
        parts.append(draw_mark(x(percent), height, style, 3.2, tooltip, "hollow"))
    if row["cells"] < cells:
        number = f"{row['cells']} of {cells}"
        parts.append(draw_label(BROAD - 2, height + 4, number, "tick", "end"))
    return parts


# ---- performance profile ----


def _draw_profiles(rows: Sequence[Json], styles: Styles, thresholds: Sequence[float]) -> Figure:
    profiled = [row for row in rows if row["profile"]]
    caption = (
        "The share of an entrant's cells that recover at least a given part of the gap. With ten "
        "seeds a line has a band. It is shown for the entrant that you point at in the legend, or "
        "when three entrants or fewer are shown."
    )
    panels = []
    if len(profiled) > 1 and max(row["cells"] for row in profiled) >= MIN_PROFILE_CELLS:
        panels.append(_draw_profile_panel(profiled, styles, thresholds))
    return Figure("profile", "Performance profile", caption, panels)


def _draw_profile_panel(rows: Sequence[Json], styles: Styles, thresholds: Sequence[float]) -> Panel:
    left, right, top, bottom = 42, BROAD - 16, 26, 290
    x, y = PlotAxis(0, 100, left, right), PlotAxis(0, 100, bottom, top)
    parts = [draw_frame(x, y, "gap recovered, at least, %", "share of cells, %")]
    for row in rows:
        parts.append(_draw_profile_line(row["profile"], styles[row["entrant"]], thresholds, x, y))
    half = len(thresholds) // 2
    description = "; ".join(
        f"{shorten_name(row['entrant'], 40)} recovers at least half of the gap in "
        f"{100 * row['profile']['share'][half]:.0f} % of its cells"
        for row in rows
    )
    return Panel("Performance profile", description, BROAD, bottom + 36, join_markup(parts))


def _draw_profile_line(
    profile: Json, style: EntrantStyle, thresholds: Sequence[float], x: PlotAxis, y: PlotAxis
) -> Markup:
    """Return an entrant's line, and its band below it if it has one."""

    def place(name: str) -> list[tuple[float, float]]:
        pairs = zip(thresholds, profile[name], strict=True)
        return [(x(100 * threshold), y(100 * share)) for threshold, share in pairs]

    strokes = [make_element("path", d=encode_path(place("share")), cls="line")]
    if profile["low"] and profile["high"]:
        outline = [*place("high"), *place("low")[::-1]]
        band = encode_path(outline, close=True, unit=10)
        strokes.insert(0, make_element("path", d=band, cls="ribbon"))
    return make_element("g", join_markup(strokes), cls=f"{style.classes} m")
