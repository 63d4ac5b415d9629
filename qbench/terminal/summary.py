"""A board's summary → the terminal: gaps recovered over all cells, profiles, and for each section its front and its view at equal training time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from qbench.analysis.equal_time import EqualTime, Timed
from qbench.boards.words import NONE
from qbench.stats import intervals
from qbench.stats.intervals import Estimate
from qbench.util import text

if TYPE_CHECKING:
    from rich.console import Console

    from qbench.analysis.summary import Overall, SectionSummary, Summary


SHOWN = (0.25, 0.5, 0.75, 0.9, 1.0)
"""Thresholds of the profile that are printed; JSON has all."""


def show_summary(summary: Summary, console: Console) -> None:
    """Print the overall view, then each section."""
    console.print(Text(text.plain(summary.title or "Board"), style="bold underline"), end="\n\n")
    if summary.overall:
        console.print(Text(f"Gap recovered over {text.count(summary.cells, 'cell')}", style="bold"))
        console.print(_overall(summary))
        _missing(summary.overall, console)
    for section in summary.sections:
        console.print()
        console.print(
            Text(
                text.plain(
                    f"{section.title}: {section.metric}, {section.better} is better; {section.setting}"
                ),
                style="bold",
            )
        )
        _front(section, console)
        _equal_time(section, console)
    console.print()
    for line in (*summary.notes, *LEGEND):
        console.print(Text(text.plain(line, 1000), style="dim"))


LEGEND = (
    f"Mean: over cells, with its {100 * intervals.CONFIDENCE:.0f} % Welch–Satterthwaite interval over tasks; of one cell, with the board's. IQM: the mean of the middle half of the cells; interval by"
    " stratified bootstrap, from ten seeds. The last columns: the share of cells that recover so much of the gap or more.",
    "Front: cells that no other cell beats in score, bits and training time together; by means, without tests. Bits are those"
    " of the weights.",
    "Equal time: the median training time of full precision on the same device; validation, where boards show the test split. A slower entrant is cut"
    " short before its learning rate has decayed, so this is its worst case, not what it would reach with a schedule for that time.",
)


# ---- overall ----


def _overall(summary: Summary) -> Table:
    places = [summary.thresholds.index(t) for t in SHOWN]
    table = _table("method", "mean", "IQM", "cells", *(f"≥ {100 * t:.0f} %" for t in SHOWN))
    for entry in summary.overall:
        share = (
            ["" for _ in places]
            if entry.profile is None
            else [f"{100 * entry.profile.share[i]:.0f} %" for i in places]
        )
        table.add_row(
            _name(entry),
            _percent(entry.gap),
            _percent(entry.iqm),
            f"{entry.cells} of {summary.cells}",
            *share,
        )
    return table


def _name(entry: Overall) -> Text:
    return Text(text.plain(entry.entrant, 60) + (" (reconstructed)" if entry.reconstructed else ""))


def _percent(x: Estimate | None) -> str:
    """`88 % [85, 91]`."""
    if x is None:
        return NONE
    interval = (
        ""
        if x.low is None or x.high is None or x.low == x.high
        else f" [{100 * x.low + 0.0:.0f}, {100 * x.high + 0.0:.0f}]"
    )
    return f"{100 * x.value + 0.0:.0f} %{interval}"


def _missing(entries: Iterable[Overall], console: Console) -> None:
    for entry in entries:
        if entry.missing:
            console.print(
                Text(
                    text.plain(f"{entry.entrant} lacks {'; '.join(entry.missing)}", 1000),
                    style="dim",
                )
            )


# ---- a section ----


def _front(section: SectionSummary, console: Console) -> None:
    front = sorted(
        (p for p in section.points if p.front),
        key=lambda p: (p.bits_per_weight or 0.0, p.cost or 0.0),
    )
    if not front:
        return
    table = _table("on the front", "format", "score", "bits", "training / fp")
    for p in front:
        bits, cost = f"{p.bits_per_weight:.3g}", f"{p.cost:.2f} ×"
        table.add_row(
            Text(text.plain(p.entrant, 60)),
            Text(text.plain(p.format)),
            _score(p.score, section.digits),
            bits,
            cost,
        )
    console.print(table)


def _equal_time(section: SectionSummary, console: Console) -> None:
    view: EqualTime = section.equal_time
    when = ", ".join(
        f"{text.seconds(s)}{f' on {text.plain(name)}' * (len(view.seconds) > 1)}"
        for name, s in view.seconds.items()
    )
    shown = [cell for cell in view.cells if cell.at_steps or cell.at_time]
    if when and shown:
        table = _table("validation", "format", "at equal steps", f"after {when}", "of its steps")
        for cell in shown:
            table.add_row(*_timed(cell, section.digits))
        console.print(table)
    for note, who in _by_note(view.cells).items():
        console.print(
            Text(
                text.plain(
                    f"{NONE} {note}: {'; '.join(who) if shown else 'nothing is known of equal time'}",
                    1000,
                ),
                style="dim",
            )
        )


def _timed(cell: Timed, digits: int) -> Sequence[Text | str]:
    done = "" if cell.progress is None else f"{100 * cell.progress:.0f} %"
    names = (Text(text.plain(cell.entrant, 60)), Text(text.plain(cell.format)))
    return (*names, _score(cell.at_steps, digits), _score(cell.at_time, digits), done)


def _by_note(cells: Iterable[Timed]) -> dict[str, list[str]]:
    """What is missing, and in which cells."""
    found: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.note:
            found.setdefault(cell.note, {}).setdefault(cell.entrant, []).append(cell.format)
    return {
        note: [f"{who} {', '.join(formats)}" for who, formats in cells.items()]
        for note, cells in found.items()
    }


def _score(x: Estimate | None, digits: int) -> str:
    if x is None:
        return NONE
    return text.number(x.value, digits) + (
        "" if x.half is None else f" ± {text.half_width(x.half, x.value, digits)}"
    )


def _table(*heads: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for head in heads:
        table.add_column(Text(head), overflow="fold")
    return table
