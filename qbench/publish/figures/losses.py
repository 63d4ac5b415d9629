"""The figure of training losses, from the curves that `loss_curves` has averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import PlotAxis, fit_axis
from qbench.publish.figures.loss_curves import LossCurve
from qbench.publish.figures.panels import (
    MAX_BANDS,
    NARROW,
    Figure,
    Json,
    Styles,
    get_cell,
    shorten_name,
)
from qbench.publish.figures.score_axis import draw_stroke
from qbench.publish.figures.svg import (
    EntrantStyle,
    Panel,
    draw_frame,
    draw_label,
    encode_path,
    join_markup,
    make_element,
    simplify_path,
)

LEFT, RIGHT, TOP, BOTTOM = 42, NARROW - 12, 26, 196
"""The frame of a panel, in pixels."""
Lines = Sequence[tuple[EntrantStyle, LossCurve]]


def draw_losses(section: Json, styles: Styles, curves: Mapping[str, LossCurve]) -> Figure:
    """Return the training losses against progress, a panel for each format."""
    panels = []
    for i, column in enumerate(section["columns"]):
        lines = [
            (styles[row["entrant"]], curves[cell["id"]])
            for row in section["rows"]
            if (cell := get_cell(row, i)) and cell["id"] in curves
        ]
        lines = [(style, curve) for style, curve in lines if len(curve.mean) > 1]
        # The curve of full precision is a comparison: alone it makes no panel.
        if any(style.colour != "ref" for style, _ in lines):
            panels.append(_draw_loss_panel(column["format"], i, lines))
    caption = (
        f"Mean over seeds. With {MAX_BANDS} lines or fewer, a band reaches from the lowest to the "
        "highest seed."
    )
    return Figure("losses", "Training loss", caption, panels)


def _draw_loss_panel(fmt: str, column: int, lines: Lines) -> Panel:
    x, y = PlotAxis(0, 1, LEFT, RIGHT), _fit_loss_axis(lines)
    parts = [
        draw_label(RIGHT, 13, fmt, "head", "end", 24),
        draw_frame(x, y, "progress", "loss", [0, 0.25, 0.5, 0.75, 1]),
    ]
    with_bands = len(lines) <= MAX_BANDS
    parts += [_draw_loss_line(style, curve, x, y, with_bands) for style, curve in lines]
    description = "; ".join(
        f"{shorten_name(style.name, 40)} ends at {curve.mean[-1]:.3g}" for style, curve in lines
    )
    return Panel(fmt, description, NARROW, BOTTOM + 36, join_markup(parts), column)


def _fit_loss_axis(lines: Lines) -> PlotAxis:
    """Return an axis for the means, without the high losses at the beginning of training."""
    means = sorted(v for _, curve in lines for v in curve.mean)
    kept = means
    if means[0] > 0:
        # A few first losses at a hundred times the rest would flatten all lines. Those beyond four
        # times the 97th percentile are cut off at the axis' end.
        limit = 4 * means[int(0.97 * len(means))]
        kept = [v for v in means if v <= limit]
    return fit_axis(kept, BOTTOM, TOP, log=min(kept) > 0 and max(kept) / min(kept) > 6)


def _draw_loss_line(
    style: EntrantStyle, curve: LossCurve, x: PlotAxis, y: PlotAxis, with_band: bool
) -> Markup:
    """Return the mean as a line and, if wanted, the range of the seeds as a band below it."""
    places = [x(p) for p in curve.progress]
    mean, high, low = (
        simplify_path([*zip(places, map(y, values), strict=True)])
        for values in (curve.mean, curve.high, curve.low)
    )
    strokes = []
    if with_band and curve.high != curve.low:
        # A band is faint: whole pixels are fine enough, and half as long to write.
        band = encode_path([*high, *low[::-1]], close=True, unit=10)
        strokes.append(draw_stroke(band, "ribbon"))
    strokes.append(draw_stroke(encode_path(mean), "line"))
    return make_element("g", join_markup(strokes), cls=f"{style.classes} m")
