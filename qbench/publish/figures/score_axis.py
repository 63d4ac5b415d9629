"""Axes of scores, and what is drawn along them: intervals, off-axis arrows, the reference band.

An axis must show the differences between the entrants that are compared. A control or a reference
that lies far away would press all others into a corner; it is then drawn as an arrow with a number.
"""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import LOG_RATIO, PlotAxis, fit_axis
from qbench.publish.figures.panels import Json, find_reference_cell, format_metric
from qbench.publish.figures.svg import (
    draw_label,
    draw_tick_labels,
    encode_path,
    join_markup,
    make_element,
)
from qbench.util import text

MAX_LOG_REACH = 30.0
"""A logarithmic axis goes down to the lowest mean divided by this, and no further."""
MAX_BAND_STRETCH = 1.3
"""The interval of full precision may stretch an axis by this factor."""
MAX_CONTROL_STRETCH = 2.5
"""If the controls stretch an axis by more than this factor, it is fitted without them."""


def fit_score_axis(section: Json, cells: Sequence[Json], start: float, stop: float) -> PlotAxis:
    """Return an axis for the scores of cells, which is logarithmic if their means span far."""
    fp = find_reference_cell(section)
    fp_score = fp["score"] if fp else None
    controls = {
        c["id"] for row in section["rows"] if row["role"] == "control" for c in row["cells"]
    }
    scored = [c for c in cells if c["score"] and c is not fp]
    everyone = [c["score"] for c in scored]
    rivals = [c["score"] for c in scored if c["id"] not in controls]
    log = _needs_log_axis([score["value"] for score in rivals or everyone])
    level = fp_score["value"] if fp_score else None
    inner = _list_axis_values(rivals, log, level)
    values = _list_axis_values(everyone, log, level)
    stretch = MAX_CONTROL_STRETCH * _measure_span(inner, log)
    if len(rivals) > 1 and _measure_span(values, log) > stretch:
        values = inner
    if fp_score and values:
        values = _add_reference_interval(values, fp_score, log)
    return fit_axis(values, start, stop, log=log)


def _needs_log_axis(means: Sequence[float]) -> bool:
    return bool(means) and min(means) > 0 and max(means) / min(means) >= LOG_RATIO


def _list_axis_values(scores: Sequence[Json], log: bool, level: float | None) -> list[float]:
    """Return the numbers an axis must hold: means, ends of intervals, and full precision's mean."""
    values = [v for s in scores for v in (s["value"], s["low"], s["high"]) if v is not None]
    if level is not None:
        values.append(level)
    # An interval that comes near zero, or passes it, would take a logarithmic axis for itself.
    least = min((s["value"] for s in scores if s["value"] > 0), default=1.0)
    return [v for v in values if not log or v > least / MAX_LOG_REACH]


def _add_reference_interval(values: list[float], fp_score: Json, log: bool) -> list[float]:
    """Return the values with the interval of full precision, if that costs the others little."""
    ends = [v for v in (fp_score["low"], fp_score["high"]) if v is not None]
    extended = [*values, *ends]
    if log and min(extended) <= 0:
        return values
    limit = MAX_BAND_STRETCH * _measure_span(values, log)
    return extended if _measure_span(extended, log) <= limit else values


def _measure_span(values: Sequence[float], log: bool) -> float:
    if not values:
        return 0.0
    return max(values) / min(values) if log else max(values) - min(values)


# ---- what is drawn along an axis ----


def draw_score_scale(x: PlotAxis, bottom: float, top: float, section: Json) -> Markup:
    """Return the frame of a panel with a row per entrant: vertical grid lines and the metric."""
    lines = "".join(f"M{x(t):.1f} {bottom}V{top}" for t in x.ticks())
    name = format_metric(section) + (", log" if x.log else "")
    return join_markup(
        [
            make_element("path", d=lines, cls="grid"),
            draw_tick_labels(x, bottom, x.ticks()),
            make_element("path", d=f"M{x.start} {bottom}H{x.stop}", cls="axis"),
            draw_label((x.start + x.stop) / 2, bottom + 29, name, "name", "middle", 50),
        ]
    )


def draw_stroke(data: str, cls: str = "ci") -> Markup:
    """Return a path element, or nothing if the path is empty."""
    return make_element("path", d=data, cls=cls or None) if data else Markup("")


def build_interval_path(cell: Json, axis: PlotAxis, place: float, vertical: bool = False) -> str:
    """Return the path data of a score's interval; it is empty if there is none on the axis.

    An end that lies beyond the axis gets an arrowhead.
    """
    low, high = cell["score"]["low"], cell["score"]["high"]
    if low is None or high is None or high < axis.low or low > axis.high:
        return ""
    a, b = axis(low), axis(high)
    data = encode_path([(place, a), (place, b)] if vertical else [(a, place), (b, place)])
    for value, end, other in ((low, a, b), (high, b, a)):
        if not axis.low <= value <= axis.high:
            data += _build_arrowhead(end, 1 if other > end else -1, place, vertical)
    return data


def _build_arrowhead(end: float, back: int, place: float, vertical: bool) -> str:
    """Return an arrowhead at `end`; `back` is the direction that it comes from, 1 or -1."""
    corners = [(end + 4 * back, place - 3), (end, place), (end + 4 * back, place + 3)]
    return encode_path([(y, x) for x, y in corners] if vertical else corners)


def draw_off_axis_arrow(
    cell: Json, axis: PlotAxis, section: Json, x: float, y: float, name: str = ""
) -> Markup:
    """Return an arrow and the number of a score that lies off the axis, otherwise nothing."""
    value = cell["score"]["value"]
    if axis.low <= value <= axis.high:
        return Markup("")
    upright, below = axis.start > axis.stop, value < axis.low
    arrow = ("↓" if below else "↑") if upright else ("←" if below else "→")
    # An arrow to the right ends at the panel's edge: its words lie at its left.
    at_left = upright or below
    words = f"{arrow} {name}{text.format_number(value, section['digits'])}"
    anchor = None if at_left else "end"
    return draw_label(x + (8 if at_left else -8), y - 8 * upright, words, "value", anchor)


def draw_reference_band(
    section: Json, axis: PlotAxis, start: float, stop: float, across: bool = False
) -> Markup:
    """Return the mean and the interval of full precision, from `start` to `stop`.

    They are drawn upright for a horizontal axis, or `across` for an axis that runs upward.
    """
    cell = find_reference_cell(section)
    if not cell or not cell["score"]:
        return Markup("")
    score = cell["score"]
    ends = [axis(score["value"] if score[e] is None else score[e]) for e in ("low", "high")]
    mean = axis(score["value"])
    if not axis.low <= score["value"] <= axis.high:
        x, y = (start + 4, mean) if across else (mean, start + 10)
        arrow = draw_off_axis_arrow(cell, axis, section, x, y, "fp ")
        return make_element("g", arrow, cls="ref fp")
    a, b = min(ends), max(ends)
    x, y, width, height = (
        (start, a, stop - start, b - a) if across else (a, start, b - a, stop - start)
    )
    line = [(start, mean), (stop, mean)] if across else [(mean, start), (mean, stop)]
    band = make_element("rect", cls="band", x=x, y=y, width=width, height=height)
    middle = make_element("path", d=encode_path(line), cls="line")
    return make_element("g", join_markup([band, middle]), cls="ref fp")
