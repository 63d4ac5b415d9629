"""LaTeX tables: names are escaped, and every line has a cell per column."""

from __future__ import annotations

import re

from hypothesis import given

from qbench.publish.latex import escape_latex, to_latex
from tests.hostile_text import HOSTILE
from tests.synthetic_sites import build_board_and_summary, make_ranked_runs

OUR_COMMANDS = r"\\text[a-z]+\{\}|\\dots\{\}|\\textsuperscript\{2\}|\$\\?[a-z]+\$|\$-\$|\\[{}$&#_%]"


@given(HOSTILE)
def test_no_name_can_act_in_latex(name: str) -> None:
    written = escape_latex(name)
    rest = re.sub(OUR_COMMANDS, "", written)
    assert not set(rest) & set('\\{}$&#_%~^<>|"`'), (name, written)
    assert all(ord(char) < 0x180 for char in written)


def test_each_section_has_a_table_with_equally_many_cells_in_each_line() -> None:
    board, _ = build_board_and_summary(make_ranked_runs(seeds=10))
    written = to_latex(board)
    begins, ends = written.count(r"\begin{tabular}"), written.count(r"\end{tabular}")
    assert begins == ends == len(board.sections)
    for line in written.splitlines():
        if line.endswith(r"\\"):
            spanned = sum(int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line))
            assert line.count(" & ") + spanned == 4, line
    assert r"\textbf{" in written and r"$\pm$" in written
