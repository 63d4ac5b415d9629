"""The figures over all cells of a board: gap recovered by entrant, and how many of its cells recover how much."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from qbench.publish.figures.axes import Axis, fit
from qbench.publish.figures.panels import BROAD, LINE, Figure, Json, Styles, gutter, short
from qbench.publish.figures.svg import Panel, Style, el, frame, join, label, mark, numbers, path
from qbench.util import text


def figures(overall: Json, look: Styles) -> list[Figure]:
    rows = [row for row in overall["rows"] if row["gap"] and row["entrant"] in look]
    return [
        figure
        for figure in (
            _gaps(rows, look, overall["cells"]),
            _profiles(rows, look, overall["thresholds"]),
        )
        if figure.panels
    ]


def _gaps(rows: Sequence[Json], look: Styles, cells: int) -> Figure:
    caption = "Mean over cells, (m − rtn)/(fp − rtn), with its 95 % interval; hollow: the interquartile mean. An entrant that lacks cells says how many it has."
    return Figure(
        "gaps",
        "Gap recovered over all cells",
        caption,
        [_gap_panel(rows, look, cells)] if len(rows) > 1 else [],
    )


def _gap_panel(rows: Sequence[Json], look: Styles, cells: int) -> Panel:
    names, bottom = gutter((row["entrant"] for row in rows), 24), 30 + LINE * len(rows)
    middles = sorted(v for row in rows for v in (row["gap"]["value"], 0.0, 1.0))
    ends = [
        v
        for row in rows
        for v in (row["gap"]["low"], row["gap"]["high"])
        if v is not None and middles[0] - 1 < v < middles[-1] + 1
    ]
    x = fit([100 * v for v in [*middles, *ends]], names, BROAD - 52, log=False)
    parts = [el("path", d="".join(f"M{x(t):.1f} {bottom}V24" for t in x.ticks()), cls="grid")]
    parts.append(numbers(x, bottom, x.ticks()))
    parts += [
        el("path", d=f"M{names:.1f} {bottom}H{BROAD - 52}", cls="axis"),
        label((names + BROAD - 52) / 2, bottom + 29, "gap recovered, %", "name", "middle", 40),
    ]
    parts += [el("path", d=f"M{x(at):.1f} {bottom}V24", cls="axis") for at in (0, 100)]
    parts += [label(x(at), 15, words, "tick", "middle") for at, words in ((0, "rtn"), (100, "fp"))]
    for n, row in enumerate(rows):
        parts += _gap_row(row, look[row["entrant"]], x, names, 24 + LINE * (n + 0.5), cells)
    said = "; ".join(
        f"{short(row['entrant'], 40)} {100 * row['gap']['value']:.0f} %" for row in rows
    )
    return Panel("Gap recovered over all cells", said, BROAD, bottom + 36, join(parts))


def _gap_row(
    row: Json, style: Style, x: Axis, names: float, middle: float, cells: int
) -> list[Markup]:
    gap, words = row["gap"], f"{100 * row['gap']['value']:.0f} %"
    inside = [label(names - 8, middle + 4, short(row["entrant"], 24), "", "end", 24)]
    if gap["low"] is not None and gap["high"] is not None:
        words += f" [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]"
        inside.append(
            el(
                "path",
                d=path([(x(100 * gap["low"]), middle), (x(100 * gap["high"]), middle)]),
                cls="ci",
            )
        )
    parts = [
        mark(
            x(100 * gap["value"]),
            middle,
            style,
            title=f"{short(row['entrant'], 40)}: {words} over {text.count(row['cells'], 'cell')}",
            inside=join(inside),
        )
    ]
    if row["iqm"]:
        parts.append(
            mark(
                x(100 * row["iqm"]["value"]),
                middle,
                style,
                3.2,
                f"interquartile mean {100 * row['iqm']['value']:.0f} %",
                "hollow",
            )
        )
    if row["cells"] < cells:
        parts.append(label(BROAD - 2, middle + 4, f"{row['cells']} of {cells}", "tick", "end"))
    return parts


def _profiles(rows: Sequence[Json], look: Styles, thresholds: Sequence[float]) -> Figure:
    known = [row for row in rows if row["profile"]]
    caption = "The share of an entrant's cells whose gap recovered is at least so much. With ten seeds an entrant has a band, which shows where it is pointed at in the legend, or stands among three or fewer."
    enough = len(known) > 1 and max(row["cells"] for row in known) > 2
    return Figure(
        "profile",
        "Performance profile",
        caption,
        [_profile_panel(known, look, thresholds)] if enough else [],
    )


def _profile_panel(rows: Sequence[Json], look: Styles, thresholds: Sequence[float]) -> Panel:
    left, right, top, bottom = 42, BROAD - 16, 26, 290
    x, y = Axis(0, 100, left, right), Axis(0, 100, bottom, top)
    parts = [frame(x, y, "gap recovered, at least, %", "share of cells, %")]
    for row in rows:
        profile, style = row["profile"], look[row["entrant"]]
        places = [
            (x(100 * t), y(100 * v)) for t, v in zip(thresholds, profile["share"], strict=True)
        ]
        strokes = [el("path", d=path(places), cls="line")]
        if profile["low"] and profile["high"]:
            high, low = (
                [(x(100 * t), y(100 * v)) for t, v in zip(thresholds, profile[name], strict=True)]
                for name in ("high", "low")
            )
            strokes.insert(
                0, el("path", d=path([*high, *low[::-1]], close=True, unit=10), cls="ribbon")
            )
        parts.append(el("g", join(strokes), cls=f"{style.classes} m"))
    said = "; ".join(
        f"{short(row['entrant'], 40)} has {100 * row['profile']['share'][len(thresholds) // 2]:.0f} % of its cells above half"
        for row in rows
    )
    return Panel("Performance profile", said, BROAD, bottom + 36, join(parts))
