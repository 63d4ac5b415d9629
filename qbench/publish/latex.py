"""Format a board as LaTeX tables for a paper: booktabs, one table per section, names escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from qbench.boards import board_text
from qbench.boards.board import Board, BoardCell, Row, Section
from qbench.util import text

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "_": r"\_",
    "%": r"\%",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": "'",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "†": r"\textdagger{}",
    "–": "--",
    "—": "---",
    "−": "$-$",
    "…": r"\dots{}",
    "“": "``",
    "”": "''",
    "≤": r"$\le$",
    "≥": r"$\ge$",
    "·": r"\textperiodcentered{}",
    "²": r"\textsuperscript{2}",
}


def _list_greek_letters() -> dict[str, str]:
    """Return the command for each small Greek letter, from its Unicode name."""
    # LaTeX has no command for omicron (03BF) and none for final sigma (03C2), and Unicode writes
    # lambda (03BB) without its b.
    codes = [n for n in range(0x3B1, 0x3CA) if n not in (0x3BB, 0x3BF, 0x3C2)]
    names = {chr(n): unicodedata.name(chr(n)).rsplit(" ", 1)[1].lower() for n in codes}
    return {char: rf"$\{name}$" for char, name in names.items()} | {"λ": r"$\lambda$"}


_GREEK = _list_greek_letters()
_MAX_CODE = 0x180
"""The usual fonts of LaTeX have the letters below this code."""


def to_latex(board: Board) -> str:
    """Return the tables, to be read with \\input; the preamble needs \\usepackage{booktabs}."""
    lines = [f"% {text.clean_line(board.title or 'Board')}", "% \\usepackage{booktabs}"]
    for section in board.sections:
        lines += ["", *_format_table(section)]
    return "\n".join(lines) + "\n"


def escape_latex(value: object, longest: int = 200) -> str:
    """Return plain text that LaTeX prints as it is.

    A letter that its usual fonts lack is written as its Unicode number.
    """
    return "".join(map(_escape_letter, text.clean_line(value, longest)))


def _escape_letter(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char in _GREEK:
        return _GREEK[char]
    return char if ord(char) < _MAX_CODE else f"[U+{ord(char):04X}]"


def _format_table(section: Section) -> Iterator[str]:
    """Yield the lines of a section's table."""
    ranked = any(row.rank for row in section.rows)
    formats = [column.format for column in section.columns] or ["fp32"]
    details = board_text.describe_setting(section)
    details = escape_latex(details[:1].upper() + details[1:], 1000)
    yield r"\begin{table}"
    yield r"\centering"
    yield rf"\caption{{{escape_latex(board_text.describe_metric(section))}. {details}.}}"
    yield r"\par\smallskip"
    yield rf"\begin{{tabular}}{{l{'r' * ranked}{'r' * len(formats)}r}}"
    yield r"\toprule"
    rank_head = ["rank"] if ranked else []
    yield _join_cells(["method", *rank_head, *map(escape_latex, formats), "step / fp"])
    levels = [
        escape_latex(", ".join(board_text.describe_column(column))) for column in section.columns
    ]
    if any(levels):
        yield _join_cells(["", *([""] if ranked else []), *levels, ""])
    yield r"\midrule"
    for n, row in enumerate(section.rows):
        # A line between the controls and the others.
        if n and section.rows[n - 1].role and not row.role:
            yield r"\midrule"
        yield _join_cells(_format_row(row, section, ranked, len(formats)))
    yield r"\bottomrule"
    yield r"\end{tabular}"
    yield from _format_notes(section)
    yield r"\end{table}"


def _format_notes(section: Section) -> Iterator[str]:
    if section.notes:
        yield r"\par\medskip\begin{minipage}{\linewidth}\footnotesize\raggedright"
        for n, note in enumerate(section.notes, 1):
            yield rf"\textsuperscript{{{n}}} {escape_latex(note, 1000)}\par"
        yield r"\end{minipage}"


def _format_row(row: Row, section: Section, ranked: bool, width: int) -> list[str]:
    cells = [_format_cell(cell, section.digits, not row.spans_columns) for cell in row.cells]
    if row.spans_columns and width > 1:
        cells = [rf"\multicolumn{{{width}}}{{c}}{{{cells[0]}}}"]
    rank = [escape_latex(board_text.format_rank(row) or board_text.NO_VALUE)] if ranked else []
    step_ratio = board_text.format_costs(row.cost)[0]
    return [escape_latex(board_text.format_entrant(row)), *rank, *cells, escape_latex(step_ratio)]


def _format_cell(cell: BoardCell, digits: int, with_gap: bool) -> str:
    """Return a score with its footnotes and the gap recovered, in bold if it is the best."""
    score = escape_latex(board_text.format_score(cell, digits))
    if cell.best:
        score = rf"\textbf{{{score}}}"
    marks = (r"\textdagger{}" if cell.audits_failed else "") + ",".join(map(str, cell.notes))
    if marks:
        score += rf"\textsuperscript{{{marks}}}"
    if with_gap and cell.gap:
        # Without the interval, for which a column of a paper has no room.
        score += f" ({escape_latex(board_text.format_gap(cell).partition(' [')[0])})"
    return score


def _join_cells(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
