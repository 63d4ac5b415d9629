"""A board as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qbench.boards.board import Board, Cell, Section
from qbench.boards.words import (
    BEST_OF,
    COSTS,
    DITTO,
    DOWNSTREAM,
    best_of,
    chosen,
    costs,
    details,
    downstream,
    exam_lines,
    gap,
    head_lines,
    heading,
    legend,
    marks,
    name,
    rank,
    score,
)
from qbench.util import text

# ---- Markdown ----


def to_markdown(board: Board) -> str:
    """The board as a page of Markdown."""
    lines = [f"# {text.markdown(board.title or 'Board')}", ""]
    if not board.sections:
        lines += ["No runs yet.", ""]
    for section in board.sections:
        lines += _markdown_section(section)
    lines += [f"- {text.markdown(line, 1000)}" for line in legend(board)]
    return "\n".join(lines) + "\n"


def _markdown_section(section: Section) -> Iterator[str]:
    ranked = any(row.rank for row in section.rows)
    heads = [
        text.markdown(c.format) + (f" ({', '.join(inner)})" if (inner := head_lines(c)) else "")
        for c in section.columns
    ] or ["fp32"]
    yield from (
        f"## {text.markdown(heading(section))}",
        "",
        f"{text.markdown(details(section), 1000)}.",
        "",
    )
    yield _line(["method", *(["rank"] if ranked else []), *heads, *COSTS])
    yield _line(["---"] * (1 + ranked + len(heads) + len(COSTS)))
    for row in section.rows:
        cells = [_markdown_cell(cell, section.digits, not row.spans) for cell in row.cells]
        cells += [DITTO] * (len(heads) - len(cells))
        yield _line(
            [text.markdown(name(row)), *([rank(row)] if ranked else []), *cells, *costs(row.cost)]
        )
    yield ""
    if section.notes:
        yield from (
            f"{text.superscript(n)} {text.markdown(note, 1000)}  "
            for n, note in enumerate(section.notes, 1)
        )
        yield ""
    yield from _markdown_downstream(section)
    if lines := best_of(section):
        yield from (f"{BEST_OF}:", "", *(f"- {text.markdown(line, 1000)}" for line in lines), "")


def _markdown_downstream(section: Section) -> Iterator[str]:
    if not (lines := downstream(section)):
        return
    yield from (f"{DOWNSTREAM}:", "")
    heads = [
        "<br>".join(text.markdown(line) for line in (exam.task, *exam_lines(exam)))
        for exam in section.downstream
    ]
    yield _line(["method", "format", *heads])
    yield _line(["---"] * (2 + len(heads)))
    yield from (
        _line([text.markdown(name(row)), text.markdown(fmt), *map(text.markdown, words)])
        for row, fmt, words in lines
    )
    yield ""


def _markdown_cell(cell: Cell, digits: int, with_gap: bool) -> str:
    value = text.markdown(score(cell, digits))
    value = f"**{value}**" if cell.best else value
    below = [gap(cell)] if with_gap and cell.score else []
    below += [text.markdown(chosen(cell))] if cell.chosen else []
    return value + marks(cell) + "".join(f"<br>{line}" for line in below)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
