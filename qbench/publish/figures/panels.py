"""What the figures of a board share: how entrants look, sizes, axes of scores, and the parts that panels are put together from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from qbench.publish.figures.axes import WIDE, Axis, fit
from qbench.publish.figures.svg import COLOURS, SHAPES, Panel, Style, el, join, label, numbers, path
from qbench.util import text

Json = Mapping[str, Any]
Styles = Mapping[str, Style]
NARROW, BROAD, MARGIN = 330, 440, 112
LONGEST = 17
"""Letters of a name in a panel."""
LINE = 19
"""Height of an entrant's line."""
FAR = 30.0
"""Full precision does not stretch a logarithmic axis by more than this."""
FEW = 8
"""Lines in a panel whose bands can still be told apart."""
ROOM = 1.3
"""The interval of full precision may stretch an axis by so much."""
CROWDED = 2.5
"""Controls that would stretch an axis by more stand at its end, with an arrow and their number."""


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    caption: str
    panels: Sequence[Panel]


def styles(sections: Sequence[Json]) -> dict[str, Style]:
    """By entrant, the same in every figure: controls in grey, the others by their names' order."""
    rows = {row["entrant"]: row["role"] for section in sections for row in section["rows"]}
    names = sorted(rows, key=lambda n: ({"reference": 0, "control": 1}.get(rows[n], 2), n))
    free = [n for n in names if not rows[n]]
    found = {}
    for number, name in enumerate(names):
        place = free.index(name) if not rows[name] else number
        colour = {"reference": "ref", "control": "ctl"}.get(rows[name], f"c{place % COLOURS}")
        found[name] = Style(name, number, colour, place % SHAPES)
    return found


# ---- parts ----


def base(x: Axis, bottom: float, top: float, section: Json) -> Markup:
    """A panel's frame without numbers at its side."""
    parts = [el("path", d="".join(f"M{x(t):.1f} {bottom}V{top}" for t in x.ticks()), cls="grid")]
    parts.append(numbers(x, bottom, x.ticks()))
    parts.append(el("path", d=f"M{x.start} {bottom}H{x.stop}", cls="axis"))
    parts.append(
        label(
            (x.start + x.stop) / 2,
            bottom + 29,
            metric(section) + (", log" if x.log else ""),
            "name",
            "middle",
            50,
        )
    )
    return join(parts)


def whisker(cell: Json, axis: Axis, place: float, vertical: bool = False) -> str:
    """The path of an interval, which others can follow; empty where there is none."""
    low, high = cell["score"]["low"], cell["score"]["high"]
    if low is None or high is None or high < axis.low or low > axis.high:
        return ""
    a, b = axis(low), axis(high)
    line = path([(place, a), (place, b)] if vertical else [(a, place), (b, place)])
    cut = [
        (end, other)
        for value, end, other in ((low, a, b), (high, b, a))
        if not axis.low <= value <= axis.high
    ]
    return line + "".join(
        _arrowhead(end, 1 if other > end else -1, place, vertical) for end, other in cut
    )


def _arrowhead(end: float, back: int, place: float, vertical: bool) -> str:
    """Where an interval goes on beyond the axis; `back` is where it comes from."""
    corners = [(end + 4 * back, place - 3), (end, place), (end + 4 * back, place + 3)]
    return path([(y, x) for x, y in corners] if vertical else corners)


def stroke(d: str, cls: str = "ci") -> Markup:
    return el("path", d=d, cls=cls or None) if d else Markup("")


def beyond(cell: Json, axis: Axis, section: Json, x: float, y: float, who: str = "") -> Markup:
    """An arrow and the number of a score that lies off the axis."""
    value = cell["score"]["value"]
    if axis.low <= value <= axis.high:
        return Markup("")
    upright, less = axis.start > axis.stop, value < axis.low
    arrow = ("↓" if less else "↑") if upright else ("←" if less else "→")
    left = less or upright
    words = text.number(value, section["digits"])
    return label(
        x + (8 if left else -8),
        y - 8 * upright,
        f"{arrow} {who}{words}",
        "value",
        None if left else "end",
    )


def band(section: Json, axis: Axis, start: float, stop: float, across: bool = False) -> Markup:
    """Full precision's interval and mean: upright, or `across` an axis that runs upward."""
    cell = reference(section)
    if not cell or not cell["score"]:
        return Markup("")
    s = cell["score"]
    low, value, high = (
        axis(v if v is not None else s["value"]) for v in (s["low"], s["value"], s["high"])
    )
    a, b = sorted((low, high))
    if not axis.low <= s["value"] <= axis.high:
        return el(
            "g",
            beyond(
                cell,
                axis,
                section,
                start + 4 if across else value,
                value if across else start + 10,
                "fp ",
            ),
            cls="ref fp",
        )
    x, y, width, height = (
        (start, a, stop - start, b - a) if across else (a, start, b - a, stop - start)
    )
    line = [(start, value), (stop, value)] if across else [(value, start), (value, stop)]
    return el(
        "g",
        join(
            [
                el("rect", cls="band", x=x, y=y, width=width, height=height),
                el("path", d=path(line), cls="line"),
            ]
        ),
        cls="ref fp",
    )


# ---- axes and words ----


def gutter(names: Iterable[str], longest: int = 0) -> float:
    """Room for names before a panel."""
    return 20 + 6.3 * min(max(map(len, names), default=0), longest or LONGEST)


def short(name: str, longest: int) -> str:
    """Without its middle: entrants of one method differ at the end."""
    name = text.plain(name, 200)
    return (
        name if len(name) <= longest else name[: (longest - 1) // 2] + "…" + name[-(longest // 2) :]
    )


def at(row: Json, i: int) -> Any:
    """The cell of a row in a column; that of full precision spans them all."""
    cells = row["cells"]
    return (
        cells[0]
        if row["role"] == "reference" and len(cells) == 1
        else cells[i]
        if i < len(cells)
        else None
    )


def scored(section: Json) -> list[tuple[Json, Json]]:
    """Cells of a format with a score."""
    return [
        (row, c)
        for row in section["rows"]
        if row["role"] != "reference"
        for c in row["cells"]
        if c["score"]
    ]


def reference(section: Json) -> Any:
    return next(
        (row["cells"][0] for row in section["rows"] if row["role"] == "reference" and row["main"]),
        None,
    )


def score_axis(section: Json, cells: Sequence[Json], start: float, stop: float) -> Axis:
    """Means decide whether it is logarithmic. Neither full precision nor the controls press what is compared into a corner."""
    fp, controls = reference(section), _controls(section)
    everyone = [c["score"] for c in cells if c["score"] and c is not fp]
    rivals = [c["score"] for c in cells if c["score"] and c is not fp and c["id"] not in controls]
    level = fp["score"]["value"] if fp and fp["score"] else None
    log = _wide([s["value"] for s in rivals or everyone])
    inner = _ends(rivals, log, level)
    outer = _ends(everyone, log, level)
    crowded = len(rivals) > 1 and (_span(outer, log) > CROWDED * _span(inner, log))
    held = inner if crowded else outer
    whole = (
        [*held, *(v for v in (fp["score"]["low"], fp["score"]["high"]) if v is not None)]
        if fp and fp["score"] and held
        else held
    )
    # The band of full precision whole, where that costs the others little.
    return fit(
        whole
        if (not log or min(whole) > 0) and _span(whole, log) <= ROOM * _span(held, log)
        else held,
        start,
        stop,
        log=log,
    )


def _wide(means: Sequence[float]) -> bool:
    return bool(means) and min(means) > 0 and max(means) / min(means) >= WIDE


def _ends(scores: Sequence[Json], log: bool, level: float | None) -> list[float]:
    """What an axis must hold: the means, their intervals, and full precision; on a logarithmic one, as far as it can."""
    least = min((s["value"] for s in scores if s["value"] > 0), default=1.0)
    found = [v for s in scores for v in (s["value"], s["low"], s["high"]) if v is not None]
    return [
        v for v in [*found, *([level] if level is not None else [])] if not log or v > least / FAR
    ]


def _span(values: Sequence[float], log: bool) -> float:
    return (max(values) / min(values) if log else max(values) - min(values)) if values else 0.0


def _controls(section: Json) -> set[str]:
    return {c["id"] for row in section["rows"] if row["role"] == "control" for c in row["cells"]}


def metric(section: Json) -> str:
    return f"{section['metric']}, {section['unit']}" if section["unit"] else str(section["metric"])


def levels(column: Json) -> str:
    counts = text.span(tuple(float(n) for n in column["levels"]))
    return f", {counts} levels" if counts else ""


def what_became(cell: Json | None) -> str:
    if cell is None or cell["state"] == "absent":
        return "not asked"
    return ", ".join(cell["failures"]) or cell["state"]


def tip(row: Json, cell: Json, section: Json) -> str:
    s, digits = cell["score"], section["digits"]
    half = (
        ""
        if s["low"] is None or s["high"] is None
        else f" ± {text.half_width((s['high'] - s['low']) / 2, s['value'], digits)}"
    )
    return f"{short(row['entrant'], 40)}, {cell['format']}: {text.number(s['value'], digits)}{half}"


def told(section: Json, i: int) -> str:
    """The best three in words."""
    found = [
        (c["score"]["value"], row["entrant"])
        for row in section["rows"]
        if (c := at(row, i)) and c["score"]
    ]
    best = sorted(found, reverse=section["better"] == "higher")[:3]
    return f"{text.count(len(found), 'entrant')}; the best means: " + "; ".join(
        f"{short(who, 40)} {text.number(v, section['digits'])}" for v, who in best
    )
