"""What all figures of a board share: sizes, the looks of entrants, look-ups of cells, and words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qbench.publish.figures.svg import COLOURS, SHAPES, EntrantStyle, Panel
from qbench.util import text

Json = Mapping[str, Any]
Styles = Mapping[str, EntrantStyle]
"""The look of each entrant, by its name."""
NARROW, BROAD = 330, 440
"""Widths of panels, in pixels."""
MARGIN = 112
"""Room for names at the right of a broad panel."""
MAX_NAME = 17
"""Letters of an entrant's name in a panel."""
ROW_HEIGHT = 19
"""Pixels of an entrant's row."""
MAX_BANDS = 8
"""With more lines than this in a panel, their bands can no longer be told apart."""


@dataclass(frozen=True)
class Figure:
    """A title, a caption, and one panel or several with the same kind of picture."""

    name: str
    title: str
    caption: str
    panels: Sequence[Panel]


def assign_styles(sections: Sequence[Json]) -> dict[str, EntrantStyle]:
    """Return the look of each entrant, which is the same in every figure of the page.

    Controls are grey. The others get colours and shapes in the alphabetical order of their names.
    """
    roles = {row["entrant"]: row["role"] for section in sections for row in section["rows"]}
    order = {"reference": 0, "control": 1}
    names = sorted(roles, key=lambda name: (order.get(roles[name], 2), name))
    rivals = [name for name in names if not roles[name]]
    styles = {}
    for number, name in enumerate(names):
        role = roles[name]
        # 8 colours and 5 shapes have no common factor: 40 rivals get 40 different marks.
        place = number if role else rivals.index(name)
        colour = {"reference": "ref", "control": "ctl"}.get(role, f"c{place % COLOURS}")
        styles[name] = EntrantStyle(name, number, colour, place % SHAPES)
    return styles


# ---- cells ----


def get_cell(row: Json, column: int) -> Any:
    """Return a row's cell in a column, or None. Full precision has one cell for all columns."""
    cells = row["cells"]
    if row["role"] == "reference" and len(cells) == 1:
        return cells[0]
    return cells[column] if column < len(cells) else None


def list_scored_cells(section: Json) -> list[tuple[Json, Json]]:
    """Return the (row, cell) pairs of quantized cells that have a score."""
    return [
        (row, cell)
        for row in section["rows"]
        if row["role"] != "reference"
        for cell in row["cells"]
        if cell["score"]
    ]


def find_reference_cell(section: Json) -> Any:
    """Return the cell of full precision with default parameters, or None."""
    for row in section["rows"]:
        if row["role"] == "reference" and row["main"]:
            return row["cells"][0]
    return None


# ---- words ----


def measure_name_width(names: Iterable[str], longest: int = MAX_NAME) -> float:
    """Return the pixels that names need at the left of a panel."""
    return 20 + 6.3 * min(max(map(len, names), default=0), longest)


def shorten_name(name: str, longest: int) -> str:
    """Return a name without its middle if it is long: variants of a method differ at the end."""
    name = text.clean_line(name, 200)
    if len(name) <= longest:
        return name
    return name[: (longest - 1) // 2] + "…" + name[-(longest // 2) :]


def format_metric(section: Json) -> str:
    """Return the metric with its unit, such as `loss, nats`."""
    return f"{section['metric']}, {section['unit']}" if section["unit"] else str(section["metric"])


def format_levels(column: Json) -> str:
    """Return `, 3 levels` for a column's heading, or nothing if the number is unknown."""
    counts = text.format_range(tuple(float(n) for n in column["levels"]))
    return f", {counts} levels" if counts else ""


def format_tooltip(row: Json, cell: Json, section: Json) -> str:
    """Return what a mark says when it is pointed at: entrant, format and score."""
    score, digits = cell["score"], section["digits"]
    words = f"{shorten_name(row['entrant'], 40)}, {cell['format']}: "
    words += text.format_number(score["value"], digits)
    if score["low"] is not None and score["high"] is not None:
        half = (score["high"] - score["low"]) / 2
        words += f" ± {text.format_half_width(half, score['value'], digits)}"
    return words


def describe_missing_score(cell: Json | None) -> str:
    """Return why a cell has no score."""
    if cell is None or cell["state"] == "absent":
        return "not asked"
    return ", ".join(cell["failures"]) or cell["state"]


def describe_best(section: Json, column: int) -> str:
    """Return a sentence with the three best means of a column."""
    means = [
        (cell["score"]["value"], row["entrant"])
        for row in section["rows"]
        if (cell := get_cell(row, column)) and cell["score"]
    ]
    best = sorted(means, reverse=section["better"] == "higher")[:3]
    words = "; ".join(
        f"{shorten_name(name, 40)} {text.format_number(value, section['digits'])}"
        for value, name in best
    )
    return f"{text.format_count(len(means), 'entrant')}; the best means: {words}"
