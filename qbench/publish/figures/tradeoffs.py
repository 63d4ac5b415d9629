"""Figures of what a score is worth: score against bits, and the best trade-offs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import PlotAxis, fit_axis
from qbench.publish.figures.panels import (
    BROAD,
    MARGIN,
    Figure,
    Json,
    Styles,
    format_metric,
    format_tooltip,
    list_scored_cells,
    shorten_name,
)
from qbench.publish.figures.score_axis import (
    build_interval_path,
    draw_off_axis_arrow,
    draw_reference_band,
    draw_stroke,
    fit_score_axis,
)
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_frame,
    draw_label,
    encode_outline,
    encode_path,
    join_markup,
    make_element,
    spread_labels,
)
from qbench.util.text import format_count

LEFT, RIGHT, TOP, BOTTOM = 46, BROAD - MARGIN, 26, 290
"""The frame of a panel, in pixels; names are written at its right."""
Points = Sequence[tuple[Json, Json]]
"""Cells to draw, as pairs of a row and its cell."""


# ---- score against bits ----


def draw_score_against_bits(section: Json, styles: Styles) -> Figure:
    """Return scores against true bits per weight, a panel for each format of the activations."""
    points = [
        (row, cell)
        for row, cell in list_scored_cells(section)
        if cell["bits_per_weight"] is not None
    ]
    panels = []
    different_bits = {round(cell["bits_per_weight"], 2) for _, cell in points}
    if len(section["columns"]) > 1 and len(different_bits) > 1:
        groups: dict[str, list[tuple[Json, Json]]] = {}
        for row, cell in points:
            groups.setdefault(cell["format"].partition(" a:")[2], []).append((row, cell))
        for activations, group in groups.items():
            head = activations and f"activations {activations}"
            panels.append(_draw_bits_panel(section, styles, group, head))
    caption = (
        "Bits per weight as stored, with scales and offsets counted. A line joins the formats of "
        "one entrant; lines are shifted a little sideways so that they do not hide each other."
    )
    return Figure("bits", "Score against bits", caption, panels)


def _draw_bits_panel(section: Json, styles: Styles, points: Points, head: str) -> Panel:
    rows = [row for row in section["rows"] if any(r is row for r, _ in points)]
    # Marks keep away from the frame, which is as wide as the panel allows.
    x = fit_axis([c["bits_per_weight"] for _, c in points], LEFT + 12, RIGHT - 10)
    y = fit_score_axis(section, [c for _, c in points], BOTTOM, TOP)
    frame_x = PlotAxis(x.low, x.high, LEFT, RIGHT)
    parts = [
        draw_reference_band(section, y, LEFT, RIGHT, across=True),
        draw_frame(frame_x, y, "bits per weight", format_metric(section), x.ticks(6), x),
    ]
    ends: list[tuple[float, EntrantStyle]] = []
    for n, row in enumerate(rows):
        style = styles[row["entrant"]]
        cells = sorted((c for r, c in points if r is row), key=lambda c: c["bits_per_weight"])
        shift = (n - (len(rows) - 1) / 2) * min(2.4, 22 / len(rows))
        places = [(x(c["bits_per_weight"]) + shift, y(c["score"]["value"])) for c in cells]
        parts.append(_draw_bits_line(section, cells, places, style, y))
        ends.append((places[-1][1], style))
    parts += _draw_end_labels(ends)
    parts.append(draw_label(RIGHT, 13, head, "head", "end", 40))
    title = ", ".join(filter(None, ("Score against bits", section["title"], head)))
    description = f"{format_count(len(points), 'cell')}; the table above has the numbers."
    return Panel(title, description, BROAD, BOTTOM + 36, join_markup(parts))


def _draw_bits_line(
    section: Json,
    cells: Sequence[Json],
    places: Sequence[tuple[float, float]],
    style: EntrantStyle,
    y: PlotAxis,
) -> Markup:
    """Return an entrant's line with its marks and intervals."""
    pairs = list(zip(cells, places, strict=True))
    intervals = "".join(build_interval_path(c, y, px, True) for c, (px, _) in pairs)
    marks = "".join(encode_outline(px, py, style.shape, 3.2) for px, py in places)
    arrows = [draw_off_axis_arrow(c, y, section, px, py + 4) for c, (px, py) in pairs]
    strokes = [
        draw_stroke(encode_path(places), "line"),
        draw_stroke(intervals),
        draw_stroke(marks, ""),
    ]
    return make_element("g", join_markup([*strokes, *arrows]), cls=f"{style.classes} m")


def _draw_end_labels(ends: Sequence[tuple[float, EntrantStyle]]) -> Iterator[Markup]:
    """Yield names at the right of lines, kept apart, each with a thread to its line's end."""
    x = RIGHT + 8
    places = _spread_at_right([y for y, _ in ends])
    for (y, style), place in zip(ends, places, strict=True):
        thread = make_element("path", d=encode_path([(x - 6, y), (x + 4, place)]), cls="thread")
        name = draw_label(x + 7, place + 3.5, shorten_name(style.name, 15), "end")
        yield make_element("g", join_markup([thread, name]), cls=f"{style.classes} m")


def _spread_at_right(heights: Sequence[float]) -> list[float]:
    """Return where labels go at the right of a panel; with many of them they come closer."""
    gap = min(12.0, (BOTTOM - TOP + 10) / max(len(heights), 1))
    return spread_labels(heights, gap, TOP - 4, BOTTOM + 6)


# ---- best trade-offs ----


def draw_front(section: Json, styles: Styles) -> Figure:
    """Return score against training time, with the cells of the Pareto front filled."""
    points = [
        (row, cell)
        for row, cell in list_scored_cells(section)
        if cell["cost"] is not None and cell["bits_per_weight"] is not None
    ]
    caption = (
        "A mark is filled if no other cell is at least as good in score, bits and training time "
        "and better in one of them. A method that rounds a trained network counts the training of "
        "that network. The dashed line and its band are full precision."
    )
    # Of one or two cells nobody needs a picture.
    panels = [_draw_front_panel(section, styles, points)] if len(points) > 2 else []
    return Figure("front", "Best trade-offs", caption, panels)


def _draw_front_panel(section: Json, styles: Styles, points: Points) -> Panel:
    x = fit_axis([c["cost"] for _, c in points], LEFT + 8, RIGHT - 8, log=False)
    y = fit_score_axis(section, [c for _, c in points], BOTTOM, TOP)
    frame_x = PlotAxis(x.low, x.high, LEFT, RIGHT)
    x_name = "training time relative to full precision"
    parts = [
        draw_reference_band(section, y, LEFT, RIGHT, across=True),
        draw_frame(frame_x, y, x_name, format_metric(section), None, x),
    ]
    # Marks on the front are drawn last, so that the others do not cover them.
    for on_front, row in itertools.product((False, True), section["rows"]):
        cells = [c for r, c in points if r is row and bool(c["front"]) == on_front]
        if cells:
            style = styles[row["entrant"]]
            parts.append(_draw_front_marks(cells, row, style, section, x, y, on_front))
    front = sorted(
        (y(c["score"]["value"]), x(c["cost"]), row["entrant"], c["format"])
        for row, c in points
        if c["front"]
    )
    parts += _draw_front_labels(front, styles, several=len(section["columns"]) > 1)
    title = f"Score, bits and training time, {section['title']}"
    names = "; ".join(f"{shorten_name(name, 40)} {fmt}" for _, _, name, fmt in front)
    return Panel(title, f"On the front: {names}", BROAD, BOTTOM + 36, join_markup(parts))


def _draw_front_marks(
    cells: Sequence[Json],
    row: Json,
    style: EntrantStyle,
    section: Json,
    x: PlotAxis,
    y: PlotAxis,
    on_front: bool,
) -> Markup:
    """Return the marks of an entrant on the front or behind it, with their tooltips."""
    parts = []
    for cell in cells:
        px, py = x(cell["cost"]), y(cell["score"]["value"])
        words = (
            f"{format_tooltip(row, cell, section)}, {cell['bits_per_weight']:.3g} bits, "
            f"{cell['cost']:.3g} × the training time of fp"
        )
        outline = encode_outline(px, py, style.shape, 4.4 if on_front else 3.2)
        parts.append(draw_off_axis_arrow(cell, y, section, px, py + 4))
        parts.append(make_element("path", make_element("title", words), d=outline))
    hollow = "" if on_front else " hollow"
    return make_element("g", join_markup(parts), cls=f"{style.classes} m{hollow}")


def _draw_front_labels(
    front: Sequence[tuple[float, float, str, str]], styles: Styles, several: bool
) -> Iterator[Markup]:
    """Yield the names of the cells on the front; with `several` formats, their formats too."""
    places = _spread_at_right([cell[0] for cell in front])
    for (py, px, name, fmt), place in zip(front, places, strict=True):
        words = shorten_name(name, 16)
        if several:
            words = f"{shorten_name(name, max(5, 15 - len(fmt)))} {fmt}"
        line = encode_path([(px + 6, py), (RIGHT + 2, place), (RIGHT + 6, place)])
        thread = make_element("path", d=line, cls="thread")
        label = draw_label(RIGHT + 9, place + 3.5, words, "end")
        yield make_element("g", join_markup([thread, label]), cls=f"{styles[name].classes} m")
