"""The figures of a section: score by entrant, score against bits, what is worth its bits and its training, losses; `effort` has the rest.

Each figure is small pictures of one size class, which stand side by side on a desk and one below the other on a telephone, with letters of
the same size. Only what is in the document is drawn; a cell without a score is drawn as the word that says why.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from qbench.publish.figures import cost
from qbench.publish.figures.axes import Axis, fit
from qbench.publish.figures.loss_curves import Curve
from qbench.publish.figures.panels import (
    BROAD,
    FEW,
    LINE,
    LONGEST,
    MARGIN,
    NARROW,
    Figure,
    Json,
    Styles,
    at,
    band,
    base,
    beyond,
    gutter,
    levels,
    metric,
    score_axis,
    scored,
    short,
    stroke,
    tip,
    told,
    what_became,
    whisker,
)
from qbench.publish.figures.svg import (
    Panel,
    Style,
    el,
    frame,
    join,
    label,
    mark,
    outline,
    path,
    spread,
    thin,
)
from qbench.util.text import count


def figures(section: Json, look: Styles, losses: Mapping[str, Curve]) -> list[Figure]:
    """Those that have something to show."""
    made = (
        scores(section, look),
        against_bits(section, look),
        front(section, look),
        loss_curves(section, look, losses),
        *cost.figures(section, look),
    )
    return [f for f in made if f.panels]


# ---- scores ----


def scores(section: Json, look: Styles) -> Figure:
    panels = [_forest(section, look, i, column) for i, column in enumerate(section["columns"])]
    direction = f"{section['better']} is better"
    return Figure(
        "scores",
        "Scores",
        f"Mean over seeds and 95 % t interval; {direction}. The band is full precision's interval.",
        panels,
    )


def _forest(section: Json, look: Styles, i: int, column: Json) -> Panel:
    rows = section["rows"]
    # One panel alone has room for whole names.
    width, longest = (BROAD, 30) if len(section["columns"]) == 1 else (NARROW, LONGEST)
    names, bottom = gutter((row["entrant"] for row in rows), longest), 30 + LINE * len(rows)
    x = score_axis(section, [c for row in rows for c in [at(row, i)] if c], names, width - 16)
    parts = [band(section, x, 24, bottom), base(x, bottom, 24, section)]
    for n, row in enumerate(rows):
        cell, middle, style = at(row, i), 24 + LINE * (n + 0.5), look[row["entrant"]]
        inside = [label(names - 8, middle + 4, short(row["entrant"], longest), "", "end", longest)]
        if cell and cell["score"]:
            inside += [
                stroke(whisker(cell, x, middle)),
                beyond(cell, x, section, x(cell["score"]["value"]), middle + 4),
            ]
            parts.append(
                mark(
                    x(cell["score"]["value"]),
                    middle,
                    style,
                    title=tip(row, cell, section),
                    inside=join(inside),
                )
            )
        else:
            inside.append(
                label(
                    names + 4,
                    middle + 4,
                    what_became(cell),
                    "bad" if cell and cell["state"] == "failed" else "gone",
                )
            )
            parts.append(el("g", join(inside), cls=f"{style.classes} m"))
    title = f"{column['format']}{levels(column)}"
    return Panel(
        title,
        told(section, i),
        width,
        bottom + 36,
        join([label(names, 13, title, "head", None, 44), *parts]),
        i,
    )


# ---- against bits ----


def against_bits(section: Json, look: Styles) -> Figure:
    """A panel for each format of the activations."""
    points = [(row, c) for row, c in scored(section) if c["bits_per_weight"] is not None]
    panels = []
    if len(section["columns"]) > 1 and len({round(c["bits_per_weight"], 2) for _, c in points}) > 1:
        for activations in dict.fromkeys(c["format"].partition(" a:")[2] for _, c in points):
            part = [(row, c) for row, c in points if c["format"].partition(" a:")[2] == activations]
            panels.append(
                _bits_panel(section, look, part, activations and f"activations {activations}")
            )
    said = "True bits per weight, scales and offsets counted. Lines join the formats of one entrant, and are set a little apart."
    return Figure("bits", "Score against bits", said, panels)


def _bits_panel(
    section: Json, look: Styles, points: Sequence[tuple[Json, Json]], head: str
) -> Panel:
    left, right, top, bottom = 46, BROAD - MARGIN, 26, 290
    rows = [row for row in section["rows"] if any(r is row for r, _ in points)]
    x = fit([c["bits_per_weight"] for _, c in points], left + 12, right - 10)
    y = score_axis(section, [c for _, c in points], bottom, top)
    whole = Axis(x.low, x.high, left, right)
    parts = [
        band(section, y, left, right, across=True),
        frame(whole, y, "bits per weight", metric(section), x.ticks(6), x),
    ]
    ends: list[tuple[float, Style]] = []
    for n, row in enumerate(rows):
        own = sorted((c for r, c in points if r is row), key=lambda c: c["bits_per_weight"])
        style, shift = look[row["entrant"]], (n - (len(rows) - 1) / 2) * min(2.4, 22 / len(rows))
        places = [(x(c["bits_per_weight"]) + shift, y(c["score"]["value"])) for c in own]
        intervals = "".join(whisker(c, y, px, True) for (px, _), c in zip(places, own, strict=True))
        marks = "".join(outline(px, py, style.shape, 3.2) for px, py in places)
        far = [beyond(c, y, section, px, py + 4) for (px, py), c in zip(places, own, strict=True)]
        drawn = [stroke(path(places), "line"), stroke(intervals), stroke(marks, ""), *far]
        parts.append(el("g", join(drawn), cls=f"{style.classes} m"))
        ends.append((places[-1][1], style))
    parts += [*_end_labels(ends, right + 8, top, bottom), label(right, 13, head, "head", "end", 40)]
    title = ", ".join(filter(None, ("Score against bits", section["title"], head)))
    return Panel(
        title,
        f"{count(len(points), 'cell')}; the table above has their numbers.",
        BROAD,
        bottom + 36,
        join(parts),
    )


def _end_labels(
    ends: Sequence[tuple[float, Style]], x: float, top: float, bottom: float
) -> Iterator[Markup]:
    """Names at the ends of lines, apart from each other, with a thread to where each belongs."""
    gap = min(12.0, (bottom - top + 10) / max(len(ends), 1))
    for (y, style), place in zip(
        ends, spread([y for y, _ in ends], gap, top - 4, bottom + 6), strict=True
    ):
        thread = el("path", d=path([(x - 6, y), (x + 4, place)]), cls="thread")
        yield el(
            "g",
            join([thread, label(x + 7, place + 3.5, short(style.name, 15), "end")]),
            cls=f"{style.classes} m",
        )


# ---- the front ----


def front(section: Json, look: Styles) -> Figure:
    """Score, bits and training time at once: filled where no other cell is at least as good in all three and better in one."""
    points = [
        (row, c)
        for row, c in scored(section)
        if c["cost"] is not None and c["bits_per_weight"] is not None
    ]
    caption = (
        "Filled: no other cell is as good in score, bits and training time, and better in one. Rounding counts the training of what it rounds. "
        "The dashed line and its band are full precision."
    )
    return Figure(
        "front",
        "Worth its bits and its training",
        caption,
        [_front_panel(section, look, points)] if len(points) > 2 else [],
    )


def _front_panel(section: Json, look: Styles, points: Sequence[tuple[Json, Json]]) -> Panel:
    left, right, top, bottom = 46, BROAD - MARGIN, 26, 290
    x = fit([c["cost"] for _, c in points], left + 8, right - 8, log=False)
    y = score_axis(section, [c for _, c in points], bottom, top)
    whole = Axis(x.low, x.high, left, right)
    parts = [
        band(section, y, left, right, across=True),
        frame(whole, y, "training time over full precision's", metric(section), None, x),
    ]
    for good, row in itertools.product((False, True), section["rows"]):
        own = [c for r, c in points if r is row and bool(c["front"]) == good]
        parts += [_cloud(own, row, look[row["entrant"]], section, x, y, good)] if own else []
    best = sorted(
        (y(c["score"]["value"]), x(c["cost"]), row["entrant"], c["format"])
        for row, c in points
        if c["front"]
    )
    gap = min(12.0, (bottom - top + 10) / max(len(best), 1))
    for (py, px, who, fmt), place in zip(
        best, spread([b[0] for b in best], gap, top - 4, bottom + 6), strict=True
    ):
        # Where there is one format only, nobody needs to be told.
        words = (
            f"{short(who, max(5, 15 - len(fmt)))} {fmt}"
            if len(section["columns"]) > 1
            else short(who, 16)
        )
        thread = el(
            "path", d=path([(px + 6, py), (right + 2, place), (right + 6, place)]), cls="thread"
        )
        parts.append(
            el(
                "g",
                join([thread, label(right + 9, place + 3.5, words, "end")]),
                cls=f"{look[who].classes} m",
            )
        )
    said = "On the front: " + "; ".join(f"{short(who, 40)} {fmt}" for _, _, who, fmt in best)
    return Panel(
        f"Score, bits and training time, {section['title']}", said, BROAD, bottom + 36, join(parts)
    )


def _cloud(
    cells: Sequence[Json], row: Json, style: Style, section: Json, x: Axis, y: Axis, good: bool
) -> Markup:
    """The marks of an entrant, on the front or behind it."""
    parts = []
    for c in cells:
        px, py = x(c["cost"]), y(c["score"]["value"])
        words = f"{tip(row, c, section)}, {c['bits_per_weight']:.3g} bits, {c['cost']:.3g} × the training"
        parts += [
            beyond(c, y, section, px, py + 4),
            el("path", el("title", words), d=outline(px, py, style.shape, 4.4 if good else 3.2)),
        ]
    return el("g", join(parts), cls=f"{style.classes} m{'' if good else ' hollow'}")


# ---- losses ----


def loss_curves(section: Json, look: Styles, losses: Mapping[str, Curve]) -> Figure:
    panels = []
    for i, column in enumerate(section["columns"]):
        lines = [
            (look[row["entrant"]], losses[c["id"]])
            for row in section["rows"]
            if (c := at(row, i)) and c["id"] in losses
        ]
        lines = [(style, curve) for style, curve in lines if len(curve.mean) > 1]
        if any(style.colour != "ref" for style, _ in lines):
            panels.append(_loss_panel(column["format"], i, lines))
    return Figure(
        "losses",
        "Training loss",
        f"Mean over seeds; with {FEW} lines or fewer, the band from the lowest to the highest seed.",
        panels,
    )


def _loss_panel(fmt: str, i: int, lines: Sequence[tuple[Style, Curve]]) -> Panel:
    left, right, top, bottom = 42, NARROW - 12, 26, 196
    means = [v for _, curve in lines for v in curve.mean]
    ordered = sorted(means)
    # A first stretch at a hundred times the rest would flatten all the others.
    kept = (
        [v for v in means if v <= 4 * ordered[int(0.97 * len(ordered))]]
        if ordered[0] > 0
        else means
    )
    y = fit(kept, bottom, top, log=min(kept) > 0 and max(kept) / min(kept) > 6)
    x = Axis(0, 1, left, right)
    parts = [frame(x, y, "progress", "loss", [0, 0.25, 0.5, 0.75, 1])]
    for style, c in lines:
        there = [x(p) for p in c.progress]
        mean, high, low = (
            thin([*zip(there, map(y, values), strict=True)]) for values in (c.mean, c.high, c.low)
        )
        strokes = (
            [stroke(path([*high, *low[::-1]], close=True, unit=10), "ribbon")]
            if c.high != c.low and len(lines) <= FEW
            else []
        )
        strokes.append(stroke(path(mean), "line"))
        parts.append(el("g", join(strokes), cls=f"{style.classes} m"))
    said = "; ".join(f"{short(style.name, 40)} ends at {c.mean[-1]:.3g}" for style, c in lines)
    return Panel(
        fmt, said, NARROW, bottom + 36, join([label(right, 13, fmt, "head", "end", 24), *parts]), i
    )
