"""Print the summary of a board.

First the gaps recovered over all cells, then for each section its Pareto front and its view at
equal training time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from qbench.boards.board_text import NO_VALUE
from qbench.stats.intervals import CONFIDENCE, Estimate
from qbench.util import text

if TYPE_CHECKING:
    from rich.console import Console

    from qbench.analysis.entrant_summary import EntrantSummary
    from qbench.analysis.equal_time import TimedCell
    from qbench.analysis.summary import BoardSummary, SectionSummary


SHOWN_THRESHOLDS = (0.25, 0.5, 0.75, 0.9, 1.0)
"""The thresholds of the profile that are printed; `--json` has all of them."""
MAX_NAME_LENGTH = 60
MAX_NOTE_LENGTH = 1000

LEGEND = (
    "Mean: the mean gap recovered over cells with its "
    f"{100 * CONFIDENCE:.0f} % Welch–Satterthwaite interval over tasks; for a single cell, the "
    "interval of the board. IQM: the mean of the middle half of the cells, with an interval by "
    "stratified bootstrap, from ten seeds on. The last columns give the share of cells that "
    "recover at least this much of the gap.",
    "Pareto front: cells that no other cell beats in score, bits and training time together. Means "
    "are compared without tests. Bits are those of the weights.",
    "Equal time: validation scores at the time when full precision finished (its median training "
    "time on the same device); boards show the test split. A slower entrant is stopped before its "
    "learning rate has decayed, so this is its worst case, not what it would reach with a schedule "
    "planned for that time.",
)


def show_summary(summary: BoardSummary, console: Console) -> None:
    """Print the summary of a board."""
    title = text.clean_line(summary.title or "Board")
    console.print(Text(title, style="bold underline"), end="\n\n")
    if summary.overall:
        cells = text.format_count(summary.cells, "cell")
        console.print(Text(f"Gap recovered over {cells}", style="bold"))
        console.print(_make_overall_table(summary))
        for entry in summary.overall:
            if entry.missing:
                _print_dim(f"{entry.entrant} lacks {'; '.join(entry.missing)}", console)
    for section in summary.sections:
        console.print()
        heading = (
            f"{section.title}: {section.metric}, {section.better} is better; {section.setting}"
        )
        console.print(Text(text.clean_line(heading), style="bold"))
        _show_front(section, console)
        _show_equal_time(section, console)
    console.print()
    for line in (*summary.notes, *LEGEND):
        _print_dim(line, console)


def _print_dim(line: str, console: Console) -> None:
    console.print(Text(text.clean_line(line, MAX_NOTE_LENGTH), style="dim"))


# ---- overall ----


def _make_overall_table(summary: BoardSummary) -> Table:
    shown = [summary.thresholds.index(threshold) for threshold in SHOWN_THRESHOLDS]
    heads = [f"≥ {100 * threshold:.0f} %" for threshold in SHOWN_THRESHOLDS]
    table = _make_table("method", "mean", "IQM", "cells", *heads)
    for entry in summary.overall:
        shares = [""] * len(shown)
        if entry.profile is not None:
            shares = [f"{100 * entry.profile.share[i]:.0f} %" for i in shown]
        table.add_row(
            _format_name(entry),
            _format_percent(entry.gap),
            _format_percent(entry.iqm),
            f"{entry.cells} of {summary.cells}",
            *shares,
        )
    return table


def _format_name(entry: EntrantSummary) -> Text:
    name = text.clean_line(entry.entrant, MAX_NAME_LENGTH)
    return Text(name + (" (reconstructed)" if entry.reconstructed else ""))


def _format_percent(x: Estimate | None) -> str:
    """Return `88 % [85, 91]`."""
    if x is None:
        return NO_VALUE
    # Adding 0.0 turns −0.0 into 0.0, which is printed without a sign.
    value = f"{100 * x.value + 0.0:.0f} %"
    if x.low is None or x.high is None or x.low == x.high:
        return value
    return f"{value} [{100 * x.low + 0.0:.0f}, {100 * x.high + 0.0:.0f}]"


# ---- a section ----


def _show_front(section: SectionSummary, console: Console) -> None:
    front = [point for point in section.points if point.front]
    if not front:
        return
    table = _make_table("Pareto front", "format", "score", "bits", "training / fp")
    # Bits and cost are known for every point on the front.
    for point in sorted(front, key=lambda p: (p.bits_per_weight or 0.0, p.cost or 0.0)):
        table.add_row(
            Text(text.clean_line(point.entrant, MAX_NAME_LENGTH)),
            Text(text.clean_line(point.format)),
            _format_score(point.score, section.digits),
            f"{point.bits_per_weight:.3g}",
            f"{point.cost:.2f} ×",
        )
    console.print(table)


def _show_equal_time(section: SectionSummary, console: Console) -> None:
    view = section.equal_time
    times = [
        text.format_duration(seconds)
        # A single time needs no group: it is the same for all cells.
        + (f" on {text.clean_line(group)}" if len(view.seconds) > 1 else "")
        for group, seconds in view.seconds.items()
    ]
    cells_with_score = [cell for cell in view.cells if cell.at_steps or cell.at_time]
    if times and cells_with_score:
        table = _make_table(
            "validation", "format", "at equal steps", f"after {', '.join(times)}", "steps done"
        )
        for cell in cells_with_score:
            table.add_row(
                Text(text.clean_line(cell.entrant, MAX_NAME_LENGTH)),
                Text(text.clean_line(cell.format)),
                _format_score(cell.at_steps, section.digits),
                _format_score(cell.at_time, section.digits),
                "" if cell.progress is None else f"{100 * cell.progress:.0f} %",
            )
        console.print(table)
    for note, cells in _group_by_note(view.cells).items():
        # Without any score, one sentence says more than a list of all cells.
        what = "; ".join(cells) if cells_with_score else "no comparison at equal time is possible"
        _print_dim(f"{NO_VALUE} {note}: {what}", console)


def _group_by_note(cells: Iterable[TimedCell]) -> dict[str, list[str]]:
    """Return for each note the cells it applies to, as an entrant with its formats."""
    notes: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.note:
            notes.setdefault(cell.note, {}).setdefault(cell.entrant, []).append(cell.format)
    return {
        note: [f"{entrant} {', '.join(formats)}" for entrant, formats in entrants.items()]
        for note, entrants in notes.items()
    }


def _format_score(x: Estimate | None, digits: int) -> str:
    if x is None:
        return NO_VALUE
    value = text.format_number(x.value, digits)
    if x.half_width is None:
        return value
    return f"{value} ± {text.format_half_width(x.half_width, x.value, digits)}"


def _make_table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    return table
