"""What a section says about itself: its title, its setting, and notes on the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from qbench.boards.board import FormatColumn, Row
from qbench.boards.cell_rows import CellIndex, CellRows
from qbench.boards.row_groups import (
    Defaults,
    Entrant,
    non_default_parameters,
    parse_parameters,
)
from qbench.util.text import format_count, format_parameters

TRUST = {
    "claimed": "claimed, not verified here",
    "verified": "merged: their artefacts were evaluated here, but they were not trained here",
    "reproduced": "merged, and reproduced here",
}
"""What a note says of runs from elsewhere, by how far they were verified, the least first."""

Identity = Mapping[str, Any]
"""The values of a section in `row_groups.SECTION_COLUMNS`."""


def describe_title(identity: Identity, sections: Sequence[Identity], defaults: Defaults) -> str:
    """Return `digits/xs`, or `digits (net=mlp)/xs` where the task has other options."""
    task = identity["task"]
    peers = [parse_parameters(s["task_params"]) for s in sections if s["task"] == task]
    own = parse_parameters(identity["task_params"])
    changed = non_default_parameters(own, defaults.get(task), peers)
    return f"{task}{f' ({format_parameters(changed)})' if changed else ''}/{identity['size']}"


def describe_setting(identity: Identity, sections: Sequence[Identity]) -> str:
    """Return start and budget.

    The data and the rest of the recipe are added where they tell this section from others of its
    task and size.
    """
    kind = (identity["task"], identity["size"])
    peers = [s for s in sections if (s["task"], s["size"]) == kind]
    steps, batch = (
        "" if np.isnan(identity[name]) else f"{identity[name]:.0f}" for name in ("steps", "batch")
    )
    recipe = parse_parameters(identity["recipe"])
    differing = non_default_parameters(recipe, None, [parse_parameters(s["recipe"]) for s in peers])
    # The objective is always shown: it is what the runs were trained for. Steps and batch have
    # their own places.
    shown = {
        name: value
        for name, value in recipe.items()
        if name == "objective" or (name in differing and name not in ("steps", "batch"))
    }
    other_data = any(s["data"] != identity["data"] for s in peers)
    words = (
        identity["start"] and f"start {identity['start']}",
        steps and f"{steps} steps",
        batch and f"batch {batch}",
        format_parameters(shown),
        f"data {identity['data'][:12] or 'unknown'}" if other_data else "",
    )
    return ", ".join(filter(None, words))


def describe_trust(rows: CellRows, levels: Sequence[str]) -> str:
    """Return how many runs of a cell come from elsewhere, at the lowest trust among them.

    `levels` is the vocabulary of the column `trust`. The text is '' if all runs are our own.
    """
    counts = Counter(levels[code] for code in rows["trust"] if code)
    lowest = next((level for level in TRUST if counts[level]), "")
    if not lowest:
        return ""
    return f"{counts[lowest]} of {format_count(len(rows['key']), 'run')} {TRUST[lowest]}"


def note_unequal_levels(columns: Sequence[FormatColumn], rows: Sequence[Row]) -> Iterator[str]:
    """Say for each column whose cells do not all have the same number of levels who has which."""
    for i, column in enumerate(columns):
        if len(column.levels) > 1:
            entrants = {
                n: [r.entrant for r in rows if not r.spans_columns and r.cells[i].levels == n]
                for n in column.levels
            }
            each = "; ".join(f"{n} for {', '.join(names)}" for n, names in entrants.items())
            yield f"{column.format} does not compare equal numbers of levels: {each}"


def note_learning_rates(
    entrants: Mapping[int, Entrant],
    rate_counts: Mapping[CellIndex, int],
    rate_edges: Mapping[CellIndex, str],
) -> Iterator[str]:
    """Say how many learning rates each entrant tried, if some entrant tried several.

    Say also whose best rate is at an end of those tried.
    """
    labels_by_counts: dict[tuple[int, ...], list[str]] = {}
    for number, entrant in entrants.items():
        counts = sorted({rates for (n, _), rates in rate_counts.items() if n == number})
        labels_by_counts.setdefault(tuple(counts), []).append(entrant.label)
    if list(labels_by_counts) == [(1,)]:
        return
    yield f"learning rates: the best on validation, of {_describe_counts(labels_by_counts)}"
    labels_by_edge: dict[str, set[str]] = {}
    for (number, _), edge in rate_edges.items():
        if edge:
            labels_by_edge.setdefault(edge, set()).add(entrants[number].label)
    for edge, labels in sorted(labels_by_edge.items()):
        listed = ", ".join(sorted(labels))
        yield f"best at the {edge} rate tried, so another might be better: {listed}"


def _describe_counts(labels_by_counts: Mapping[tuple[int, ...], Sequence[str]]) -> str:
    """Return `3 for everyone`, or `unequal numbers of trials: 1–3 for ste; 1 for fp`."""
    order = sorted(labels_by_counts, reverse=True)
    if len(order) == 1 and len(order[0]) == 1:
        return f"{order[0][0]} for everyone"
    each = []
    for counts in order:
        # The fewest and the most of the entrant's cells, or one number where they agree.
        ends = dict.fromkeys((counts[0], counts[-1]))
        each.append(f"{'–'.join(map(str, ends))} for {', '.join(labels_by_counts[counts])}")
    return f"unequal numbers of trials: {'; '.join(each)}"
