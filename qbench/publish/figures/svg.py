"""Build inline SVG: elements as safe markup, the marks of entrants, and the frame of a panel.

Marks differ in shape as well as in colour. Colours come from the page's style sheet through classes
(`c0` to `c7`, `ref`, `ctl`), so that a figure follows the page into dark mode and onto paper.
Coordinates are written in tenths of a pixel, as short as SVG allows: a page has thousands of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from qbench.publish.figures.axes import PlotAxis, format_tick
from qbench.util import text

COLOURS, SHAPES = 8, 5
"""How many colours and shapes of marks there are."""
ANCHOR_CLASSES = {"end": "r", "middle": "k"}
"""Classes for text-anchor: they are shorter than the attribute."""
TOLERANCE = 0.5
"""By how many pixels a simplified line may differ from the original: a third of its stroke."""


@dataclass(frozen=True)
class EntrantStyle:
    """How an entrant looks in every figure of the page."""

    name: str
    number: int
    """Identifies the entrant in the page's script, which hides and highlights its marks."""
    colour: str
    shape: int

    @property
    def classes(self) -> str:
        return f"e{self.number} {self.colour}"


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    title: str
    description: str
    """What the picture shows, in words, for readers who cannot see it."""
    width: int
    height: int
    body: Markup
    column: int | None = None
    """The column of the section's table, where the panel shows one format: a filter hides it."""

    def to_markup(self) -> Markup:
        """Return the panel as an svg element."""
        # An aria-label, not a title element: a browser would show a title as a tooltip everywhere.
        words = f"{text.clean_line(self.title)}: {text.clean_line(self.description, 1000)}"
        attributes = {
            "role": "img",
            "aria-label": words,
            "data-f": None if self.column is None else str(self.column),
        }
        return make_element(
            "svg",
            self.body,
            viewBox=f"0 0 {self.width} {self.height}",
            width=self.width,
            height=self.height,
            **attributes,
        )


# ---- elements ----


def make_element(tag: str, inside: Markup | str = "", **attributes: str | float | None) -> Markup:
    """Return an element with escaped content and attributes.

    `cls` becomes the attribute class. Attributes that are None are left out.
    """
    words = [
        f' {"class" if name == "cls" else name}="{escape(_format_value(value))}"'
        for name, value in attributes.items()
        if value is not None
    ]
    opening = f"<{tag}{''.join(words)}"
    return Markup(f"{opening}>{escape(inside)}</{tag}>") if inside else Markup(f"{opening}/>")


def join_markup(parts: Iterable[Markup]) -> Markup:
    """Return the parts as one piece of markup."""
    return Markup("").join(parts)


def draw_label(
    x: float, y: float, words: str, cls: str = "", anchor: str | None = None, longest: int = 24
) -> Markup:
    """Return a text element with at most `longest` letters."""
    # A name may be written from right to left; the style sheet isolates each text element.
    classes = " ".join(filter(None, (cls, anchor and ANCHOR_CLASSES[anchor])))
    return make_element("text", text.clean_line(words, longest), x=x, y=y, cls=classes or None)


def draw_mark(
    x: float,
    y: float,
    style: EntrantStyle,
    size: float = 3.6,
    title: str = "",
    extra: str = "",
    inside: Markup | str = "",
) -> Markup:
    """Return a group with an entrant's mark at a point.

    `title` is the tooltip, `extra` more classes, and `inside` markup to draw below the mark.
    """
    tooltip = make_element("title", title) if title else Markup("")
    shape = make_element("path", d=encode_outline(x, y, style.shape, size))
    return make_element(
        "g",
        join_markup([Markup(inside), shape, tooltip]),
        cls=f"{style.classes} m {extra}".strip(),
    )


def draw_frame(
    x: PlotAxis,
    y: PlotAxis,
    x_title: str,
    y_title: str = "",
    ticks: Sequence[float] | None = None,
    tick_axis: PlotAxis | None = None,
) -> Markup:
    """Return grid lines, ticks and names of two axes, of which `y` runs upward.

    `tick_axis` places the ticks below, where the marks use a shorter axis than the frame.
    """
    left, right, bottom, top = x.start, x.stop, y.start, y.stop
    ends = f"{_format_value(left)} {{}}H{_format_value(right)}"
    lines = "".join("M" + ends.format(_format_value(y(t))) for t in y.ticks())
    side = join_markup(draw_label(left - 5, y(t) + 3.5, format_tick(t)) for t in y.ticks())
    x_name = x_title + (" (log)" if x.log else "")
    parts = [
        make_element("path", d=lines, cls="grid"),
        make_element("g", side, cls="tick r"),
        draw_tick_labels(tick_axis or x, bottom, x.ticks() if ticks is None else ticks),
        make_element("path", d="M" + ends.format(_format_value(bottom)), cls="axis"),
        draw_label((left + right) / 2, bottom + 29, x_name, "name", "middle", 60),
    ]
    if y_title:
        y_name = y_title + (" (log)" if y.log else "")
        parts.append(draw_label(4, top - 9, y_name, "name", None, 44))
    return join_markup(parts)


def draw_tick_labels(x: PlotAxis, bottom: float, ticks: Sequence[float]) -> Markup:
    """Return the numbers below an axis."""
    labels = (draw_label(x(t), bottom + 14, format_tick(t)) for t in ticks)
    return make_element("g", join_markup(labels), cls="tick k")


def spread_labels(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart so that neighbours are at least `gap` apart, and return their places.

    The order is kept. Labels stay between `low` and `high` as long as there is room for all.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = list(places)
    # Push labels down from the top, then up from the bottom: the second pass has the last word.
    for before, i in zip([None, *order], order, strict=False):
        moved[i] = max(moved[i], low if before is None else moved[before] + gap)
    for after, i in zip([None, *order[::-1]], order[::-1], strict=False):
        moved[i] = min(moved[i], high if after is None else moved[after] - gap)
    return moved


# ---- paths ----


def encode_path(points: Sequence[tuple[float, float]], close: bool = False, unit: int = 1) -> str:
    """Return the path data of a line through points.

    Steps are relative, so that they are short. Places are rounded to `unit` tenths of a pixel
    before steps are taken, so that rounding errors do not add up.
    """
    rounded = [(unit * round(10 * x / unit), unit * round(10 * y / unit)) for x, y in points]
    if not rounded:
        return ""
    data = f"M{_format_tenths(rounded[0][0])} {_format_tenths(rounded[0][1])}"
    previous = "M"
    for (px, py), (x, y) in itertools.pairwise(rounded):
        command, steps = "l", [x - px, y - py]
        if y == py:
            command, steps = "h", [x - px]
        elif x == px:
            command, steps = "v", [y - py]
        # A repeated command may be left out.
        repeated = command == previous
        data += ("" if repeated else command) + _format_steps(steps, repeated)
        previous = command
    return data + ("z" if close else "")


def simplify_path(
    points: Sequence[tuple[float, float]], tolerance: float = TOLERANCE
) -> list[tuple[float, float]]:
    """Return only the points without which the line would visibly move.

    This is the algorithm of Ramer, Douglas and Peucker: keep the point that is farthest from the
    straight line between the ends, and treat both halves in the same way.
    """
    if len(points) < 3:
        return list(points)
    (ax, ay), (bx, by) = points[0], points[-1]
    length = math.hypot(bx - ax, by - ay) or 1.0
    distances = [abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length for x, y in points[1:-1]]
    farthest = max(range(len(distances)), key=distances.__getitem__) + 1
    if distances[farthest - 1] <= tolerance:
        return [points[0], points[-1]]
    first = simplify_path(points[: farthest + 1], tolerance)
    return first[:-1] + simplify_path(points[farthest:], tolerance)


def encode_outline(x: float, y: float, shape: int, r: float) -> str:
    """Return the path data of a mark: circle, square, diamond or triangle, of similar area."""
    if shape == 0:
        arc = f"{_format_value(r)} {_format_value(r)} 0 1 0"
        width = 2 * r
        start = f"M{_format_value(x - r)} {_format_value(y)}"
        return f"{start}a{arc} {_format_value(width)} 0 {arc}{_format_value(-width)} 0z"
    s, t = 0.88 * r, 1.15 * r
    corners = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        3: [(0, -1.25 * t), (1.15 * t, 0.75 * t), (-1.15 * t, 0.75 * t)],
        4: [(0, 1.25 * t), (1.15 * t, -0.75 * t), (-1.15 * t, -0.75 * t)],
    }[shape]
    return encode_path([(x + dx, y + dy) for dx, dy in corners], close=True)


def _format_steps(tenths: Iterable[int], after_number: bool = False) -> str:
    """Return numbers in a row; a minus sign separates them as well as a blank does."""
    words = ""
    for number in map(_format_tenths, tenths):
        words += f" {number}" if (words or after_number) and number[0] != "-" else number
    return words


def _format_value(value: str | float) -> str:
    return value if isinstance(value, str) else _format_tenths(round(10 * value))


def _format_tenths(n: int) -> str:
    """Return a tenth of an integer, without needless zeros: `12`, `-.5`."""
    whole, rest = divmod(abs(n), 10)
    sign = "-" if n < 0 else ""
    return f"{sign}{whole}" if not rest else f"{sign}{whole or ''}.{rest}"
