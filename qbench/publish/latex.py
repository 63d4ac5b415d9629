"""A board as LaTeX tables for a paper: booktabs, one table a section, every name escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator

from qbench.boards import words as plaintext
from qbench.boards.board import Board, Cell, Row, Section
from qbench.util import text

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": "'", "`": r"\textasciigrave{}",
    "±": r"$\pm$", "×": r"$\times$", "†": r"\textdagger{}", "–": "--", "—": "---", "−": "$-$", "…": r"\dots{}", "“": "``", "”": "''", "≤": r"$\le$", "≥": r"$\ge$",
    "·": r"\textperiodcentered{}", "²": r"\textsuperscript{2}",
}  # fmt: skip
_GREEK = {
    chr(n): f"${chr(92)}{unicodedata.name(chr(n)).rsplit(' ', 1)[1].lower()}$" for n in range(0x3B1, 0x3CA) if n not in (0x3BF, 0x3C2, 0x3BB)
} | {"λ": r"$\lambda$"}  # fmt: skip


def to_latex(board: Board) -> str:
    """To be put into a document with \\input; its preamble needs \\usepackage{booktabs}."""
    lines = [f"% {text.plain(board.title or 'Board')}", "% \\usepackage{booktabs}"]
    for section in board.sections:
        lines += ["", *_table(section)]
    return "\n".join(lines) + "\n"


def latex(words: object, longest: int = 200) -> str:
    """`text.plain`, and nothing in it that LaTeX would act on; a letter that its usual fonts lack is written as its number."""
    return "".join(map(_letter, text.plain(words, longest)))


def _letter(char: str) -> str:
    if char in _SPECIAL:
        return _SPECIAL[char]
    if char in _GREEK:
        return _GREEK[char]
    return char if ord(char) < 0x180 else f"[U+{ord(char):04X}]"


def _table(section: Section) -> Iterator[str]:
    ranked = any(row.rank for row in section.rows)
    heads = [column.format for column in section.columns] or ["fp32"]
    yield r"\begin{table}"
    yield r"\centering"
    details = plaintext.details(section)
    yield rf"\caption{{{latex(plaintext.heading(section))}. {latex(details[:1].upper() + details[1:], 1000)}.}}"
    yield r"\par\smallskip"
    yield rf"\begin{{tabular}}{{l{'r' * ranked}{'r' * len(heads)}r}}"
    yield r"\toprule"
    yield _line(["method", *(["rank"] if ranked else []), *map(latex, heads), "step / fp"])
    lines = [("", *(_levels(section) if section.columns else [""]))]
    yield from (
        _line([first, *([""] if ranked else []), *rest, ""]) for first, *rest in lines if any(rest)
    )
    yield r"\midrule"
    for n, row in enumerate(section.rows):
        if n and section.rows[n - 1].role and not row.role:
            yield r"\midrule"
        yield _line(_row(row, section, ranked, len(heads)))
    yield r"\bottomrule"
    yield r"\end{tabular}"
    if section.notes:
        yield r"\par\medskip\begin{minipage}{\linewidth}\footnotesize\raggedright"
        yield from (
            rf"\textsuperscript{{{n}}} {latex(note, 1000)}\par"
            for n, note in enumerate(section.notes, 1)
        )
        yield r"\end{minipage}"
    yield r"\end{table}"


def _levels(section: Section) -> list[str]:
    return [latex(", ".join(plaintext.head_lines(column))) for column in section.columns]


def _row(row: Row, section: Section, ranked: bool, width: int) -> list[str]:
    cells = [_cell(cell, section.digits, not row.spans) for cell in row.cells]
    if row.spans and width > 1:
        cells = [rf"\multicolumn{{{width}}}{{c}}{{{cells[0]}}}"]
    rank = [latex(plaintext.rank(row) or plaintext.NONE)] if ranked else []
    return [latex(plaintext.name(row)), *rank, *cells, latex(plaintext.costs(row.cost)[0])]


def _cell(cell: Cell, digits: int, with_gap: bool) -> str:
    value = latex(plaintext.score(cell, digits))
    value = rf"\textbf{{{value}}}" if cell.best else value
    marks = (r"\textdagger{}" if cell.audits_failed else "") + ",".join(map(str, cell.notes))
    gap = f" ({latex(plaintext.gap(cell).partition(' [')[0])})" if with_gap and cell.gap else ""
    return value + (rf"\textsuperscript{{{marks}}}" if marks else "") + gap


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
