"""Inline SVG: elements as safe markup, marks that differ in shape as well as in colour, and the frame of a panel.

Colours come from the page's style sheet through classes (`c0` … `c7`, `ref`, `ctl`), so that a figure follows the page into dark mode and onto paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from qbench.publish.figures.axes import Axis, spell
from qbench.util import text

COLOURS = 8
ANCHORS = {"end": "r", "middle": "k"}
"""Classes, as they are shorter than the attribute."""
SHAPES = 5
NEAR = 0.5
"""Pixels by which a thinned curve may differ: a third of its stroke."""


@dataclass(frozen=True)
class Style:
    """How an entrant looks in every figure of the page."""

    name: str
    number: int
    """Of the entrant: what a legend hides and a row lights up."""
    colour: str
    shape: int

    @property
    def classes(self) -> str:
        return f"e{self.number} {self.colour}"


@dataclass(frozen=True)
class Panel:
    """One picture of a figure."""

    title: str
    said: str
    """The same in words, for who cannot see it."""
    width: int
    height: int
    body: Markup
    column: int | None = None
    """Of the section, where it shows one format: what a filter of formats hides."""

    def markup(self) -> Markup:
        # A label, and no title element, which would follow the pointer all over the panel.
        words = f"{text.plain(self.title)}: {text.plain(self.said, 1000)}"
        labels = {
            "role": "img",
            "aria-label": words,
            "data-f": None if self.column is None else str(self.column),
        }
        return el(
            "svg",
            self.body,
            viewBox=f"0 0 {self.width} {self.height}",
            width=self.width,
            height=self.height,
            **labels,
        )


def el(tag: str, inside: Markup | str = "", **attributes: str | float | None) -> Markup:
    """An element; `cls` is its class, text is escaped."""
    words = [
        f' {_attribute(k)}="{escape(_value(v))}"' for k, v in attributes.items() if v is not None
    ]
    opening = f"<{tag}{''.join(words)}"
    return Markup(f"{opening}>{escape(inside)}</{tag}>") if inside else Markup(f"{opening}/>")


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def label(
    x: float, y: float, words: str, cls: str = "", anchor: str | None = None, longest: int = 24
) -> Markup:
    # A title's letters may run from right to left; the style sheet isolates them.
    classes = " ".join(filter(None, (cls, anchor and ANCHORS[anchor])))
    return el("text", text.plain(words, longest), x=x, y=y, cls=classes or None)


def mark(
    x: float,
    y: float,
    style: Style,
    size: float = 3.6,
    title: str = "",
    extra: str = "",
    inside: Markup | str = "",
) -> Markup:
    """A point of an entrant, by its shape and colour, with what hovering tells."""
    tip = el("title", title) if title else Markup("")
    return el(
        "g",
        join([Markup(inside), el("path", d=outline(x, y, style.shape, size)), tip]),
        cls=f"{style.classes} m {extra}".strip(),
    )


def path(points: Sequence[tuple[float, float]], close: bool = False, unit: int = 1) -> str:
    """Through points, relative and in tenths of a pixel, or in more of them: short."""
    rounded = [(unit * round(10 * x / unit), unit * round(10 * y / unit)) for x, y in points]
    if not rounded:
        return ""
    words, before = f"M{_tenths(rounded[0][0])} {_tenths(rounded[0][1])}", "M"
    for (px, py), (x, y) in itertools.pairwise(rounded):
        letter, steps = (
            ("h", (x - px,))
            if y == py
            else ("v", (y - py,))
            if x == px
            else ("l", (x - px, y - py))
        )
        words += _numbers(steps, letter == before) if letter == before else letter + _numbers(steps)
        before = letter
    return words + ("z" if close else "")


def thin(points: Sequence[tuple[float, float]], near: float = NEAR) -> list[tuple[float, float]]:
    """Only the points without which the line would move by more than a pixel can show (Ramer, Douglas and Peucker)."""
    if len(points) < 3:
        return list(points)
    (ax, ay), (bx, by) = points[0], points[-1]
    length = math.hypot(bx - ax, by - ay) or 1.0
    away = [abs((x - ax) * (by - ay) - (y - ay) * (bx - ax)) / length for x, y in points[1:-1]]
    far = max(range(len(away)), key=away.__getitem__) + 1
    if away[far - 1] <= near:
        return [points[0], points[-1]]
    return thin(points[: far + 1], near)[:-1] + thin(points[far:], near)


def frame(
    x: Axis,
    y: Axis,
    x_title: str,
    y_title: str = "",
    ticks: Sequence[float] | None = None,
    of: Axis | None = None,
) -> Markup:
    """Grid lines, ticks and the names of the axes; `y` runs upward. Ticks stand where `of` puts them, which may leave room at the sides."""
    left, right, bottom, top = x.start, x.stop, y.start, y.stop
    parts = [
        el(
            "path",
            d="".join(f"M{_value(left)} {_value(y(t))}H{_value(right)}" for t in y.ticks()),
            cls="grid",
        )
    ]
    parts.append(
        el("g", join(label(left - 5, y(t) + 3.5, spell(t)) for t in y.ticks()), cls="tick r")
    )
    parts.append(numbers(of or x, bottom, x.ticks() if ticks is None else ticks))
    parts.append(el("path", d=f"M{_value(left)} {_value(bottom)}H{_value(right)}", cls="axis"))
    parts.append(
        label(
            (left + right) / 2,
            bottom + 29,
            x_title + (" (log)" if x.log else ""),
            "name",
            "middle",
            60,
        )
    )
    if y_title:
        parts.append(label(4, top - 9, y_title + (" (log)" if y.log else ""), "name", None, 44))
    return join(parts)


def numbers(x: Axis, bottom: float, ticks: Sequence[float]) -> Markup:
    """Below an axis; the group has the class that each of them would have."""
    return el("g", join(label(x(t), bottom + 14, spell(t)) for t in ticks), cls="tick k")


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels, as near as can be to where they belong and no closer to each other than a gap."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    for before, i in zip([None, *order], order, strict=False):
        found[i] = max(found[i], low if before is None else found[before] + gap)
    for after, i in zip([None, *order[::-1]], order[::-1], strict=False):
        found[i] = min(found[i], high if after is None else found[after] - gap)
    return found


def outline(x: float, y: float, shape: int, r: float) -> str:
    """Circle, square, diamond and two triangles of about the same area."""
    if shape == 0:
        arc = f"{_value(r)} {_value(r)} 0 1 0"
        return f"M{_value(x - r)} {_value(y)}a{arc} {_value(2 * r)} 0 {arc}{_value(-2 * r)} 0z"
    s, t = 0.88 * r, 1.15 * r
    corners = {
        1: [(-s, -s), (s, -s), (s, s), (-s, s)],
        2: [(0, -1.3 * r), (1.3 * r, 0), (0, 1.3 * r), (-1.3 * r, 0)],
        3: [(0, -1.25 * t), (1.15 * t, 0.75 * t), (-1.15 * t, 0.75 * t)],
        4: [(0, 1.25 * t), (1.15 * t, -0.75 * t), (-1.15 * t, -0.75 * t)],
    }[shape]
    return path([(x + dx, y + dy) for dx, dy in corners], close=True)


def _attribute(name: str) -> str:
    return "class" if name == "cls" else name


def _numbers(tenths: Iterable[int], after: bool = False) -> str:
    """Numbers side by side; a minus sign separates as well as a blank does."""
    words = ""
    for number in map(_tenths, tenths):
        words += f" {number}" if (words or after) and number[0] != "-" else number
    return words


def _value(v: str | float) -> str:
    return v if isinstance(v, str) else _tenths(round(10 * v))


def _tenths(n: int) -> str:
    """A tenth of an integer, without a needless zero: `12`, `-.5`."""
    whole, rest = divmod(abs(n), 10)
    sign = "-" if n < 0 else ""
    return f"{sign}{whole}" if not rest else f"{sign}{whole or ''}.{rest}"
