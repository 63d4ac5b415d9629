"""A board in the terminal, in Markdown and in CSV: the same numbers, nothing hostile, any width.

`python -m tests.terminal.test_board` writes the golden files again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.console import Console

from qbench.boards.board import Board
from qbench.boards.build import build_board
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.terminal.board import show_board
from qbench.util import text
from tests.hostile_text import HOSTILE, has_only_visible_characters
from tests.synthetic_runs import (
    DEFAULTS,
    make_failed_run,
    make_frame,
    make_planned_run,
    make_run,
    make_runs,
    make_small_board_frame,
)
from tests.terminal.printing import print_to_text

GOLDEN = Path(__file__).parents[1] / "golden"
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def build(rows: pd.DataFrame, **options: Any) -> Board:
    return build_board(rows, defaults=DEFAULTS, **{"title": "Small", **options})


# ---- golden files ----


def make_golden_files() -> dict[str, str]:
    board = build(make_small_board_frame())
    files = {"board_small.md": to_markdown(board), "board_small.csv": to_csv(board)}
    for width in (40, 100):
        files[f"board_small_{width}.txt"] = print_to_text(show_board, board, width=width)
    return files


@pytest.mark.parametrize(
    "name", ["board_small.md", "board_small.csv", "board_small_40.txt", "board_small_100.txt"]
)
def test_a_small_board_is_the_golden_file(name: str) -> None:
    assert make_golden_files()[name] == (GOLDEN / name).read_text(encoding="utf-8"), (
        "if the change is intended: python -m tests.terminal.test_board"
    )


# ---- the same board in every form ----


def test_runs_csv_gives_the_same_board_back() -> None:
    rows = make_small_board_frame()
    written = runs_csv(rows)
    assert build(read_runs_csv(io.StringIO(written))) == build(rows)
    assert runs_csv(read_runs_csv(io.StringIO(written))) == written
    assert runs_csv(rows.sample(frac=1, random_state=0)) == written


@given(HOSTILE.map(text.clean_line), HOSTILE.map(text.clean_line))
def test_text_survives_runs_csv(label: str, message: str) -> None:
    rows = make_frame(
        [make_run("ste", "int4", 0, 0.1 + 1e-17, label=label)],
        [make_failed_run("ste", "int4", 1, "data", message, label=label)],
    )
    assert build(read_runs_csv(io.StringIO(runs_csv(rows)))) == build(rows)


def test_a_number_survives_runs_csv_to_the_last_bit() -> None:
    rows = make_frame(make_runs("ste", "int4", [0.1 + 0.2, math.pi * 1e-9, 1 / 3]))
    keys = rows.set_index("packed")["key"]
    read_back = read_runs_csv(io.StringIO(runs_csv(rows)))
    assert list(read_back["packed"]) == sorted(rows["packed"], key=lambda x: keys[x])


def test_every_number_that_is_printed_is_in_the_json() -> None:
    """The cells of the Markdown table can be formatted from the JSON alone."""
    board = build(make_small_board_frame())
    markdown = to_markdown(board)
    (section,) = json.loads(json.dumps(board.to_json(), allow_nan=False))["sections"]
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    heads = [
        f"{c['format']} ({c['levels'][0]} levels, {c['bits_per_weight'][0]:g} bits)"
        for c in section["columns"]
    ]
    assert lines[0] == f"| method | {' | '.join(heads)} | step / fp | training | memory |"
    for line, row in zip(lines[2:], section["rows"], strict=True):
        name, *cells, step, training, memory = line.strip("| ").split(" | ")
        assert name.replace("\\", "") == row["entrant"] + " (reconstructed)" * (
            row["provenance"] == "reconstructed"
        )
        for shown, cell in zip(cells, row["cells"], strict=False):
            unmarked = re.sub("[†⁰¹²³⁴⁵⁶⁷⁸⁹*]| (?=[⁰¹²³⁴⁵⁶⁷⁸⁹])", "", shown)
            assert unmarked == markdown_of(cell, row["role"] == "reference")
            assert ("**" in shown) == cell["best"] and ("†" in shown) == bool(cell["audits_failed"])
            for mark in map(text.format_superscript, cell["notes"]):
                assert mark in shown and f"\n{mark} " in markdown
        cost = row["cost"]
        assert step == ("–" if cost["step_ratio"] is None else f"{cost['step_ratio']:.2f} ×")
        assert training == f"{cost['train_s']:.1f} s"
        assert memory == f"{cost['peak_memory_bytes'] / 1e6:.0f} MB"


def markdown_of(cell: dict[str, Any], reference: bool) -> str:
    """Return the text of a cell without its markers."""
    score, gap = cell["score"], cell["gap"]
    if score is None:
        return cell["state"] if cell["state"] == "skipped" else ", ".join(cell["failures"])
    value = f"{score['value']:.3f}"
    if score["low"] is not None:
        value += f" ± {(score['high'] - score['low']) / 2:.3f}"
    if reference:
        return value
    interval = ""
    if gap["low"] not in (None, gap["high"]):
        interval = f" [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]"
    return f"{value}<br>{100 * gap['value']:.0f} %{interval}"


def test_csv_has_a_line_for_each_cell_with_the_same_numbers() -> None:
    board = build(make_small_board_frame())
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    cells = [cell for section in board.sections for row in section.rows for cell in row.cells]
    assert len(lines) == len(cells) == 11
    for line, cell in zip(lines, cells, strict=True):
        assert line["state"] == cell.state and line["runs"].split() == list(cell.keys)
        names = ("mean", "low", "high", "gap")
        numbers = [float(line[name]) if line[name] else None for name in names]
        score, gap = cell.score, cell.gap
        expected = [
            score and score.value,
            score and score.low,
            score and score.high,
            gap and gap.value,
        ]
        assert numbers == [
            x if x is None else pytest.approx(x, rel=1e-11, abs=1e-12) for x in expected
        ]


# ---- hostile text ----


def make_hostile_frame(words: str) -> pd.DataFrame:
    """Return runs that carry the words wherever a stranger could put them."""
    strange = {
        "label": words,
        "provenance": "paper",
        "unit": words,
        "metric": words,
        "start": words,
        "recipe": json.dumps({"lr": 1, words: words}),
    }
    task_params = json.dumps({"net": words})
    return make_frame(
        [make_run("ste", "int4", 0, 0.5, **strange)],
        [make_failed_run("ste", "int4", 1, words or None, words, **strange)],
        [make_planned_run("pege", "int2", 0, "skipped", words, task_params=task_params)],
        [make_failed_run("lotion", words or None, 0, words or None, weights_granularity=words)],
        [make_run("rtn", "int4", 0, 0.5, params={"scale": words}, size=words, task=words)],
    )


@given(HOSTILE)
@example("\x1b[2J|=1+1<b>")
def test_nothing_hostile_is_printed(words: str) -> None:
    board = build(make_hostile_frame(words), title=words)
    for printed in (print_to_text(show_board, board), to_markdown(board), to_csv(board)):
        assert has_only_visible_characters(printed)
    for line in csv.reader(io.StringIO(to_csv(board))):
        for field in line:
            assert not field.lstrip().startswith(("=", "+", "@", "＝", "＋", "－", "＠"))
            assert not field.startswith("-") or is_number(field)


def is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


def test_a_page_of_markdown_has_one_table_and_no_markup_of_others() -> None:
    frame = make_frame(make_runs("ste", "int4", [0.5], label="a|b <b>x</b> **y**"))
    tokens = MARKDOWN.parse(to_markdown(build(frame, title="# *t*")))
    assert [t.type for t in tokens].count("table_open") == 1
    kinds = {child.type for t in tokens for child in t.children or ()}
    assert not kinds & {"link_open", "strong_open", "em_open", "image"}
    first = next(t.children[0] for t in tokens if t.type == "inline" and t.children)
    assert first.content == "# *t*"


# ---- the terminal ----


def test_the_best_is_bold_in_a_terminal_and_starred_in_a_pipe() -> None:
    out = io.StringIO()
    terminal = Console(
        file=out, width=100, force_terminal=True, color_system="standard", _environ={}
    )
    show_board(build(make_small_board_frame()), terminal)
    assert "\x1b[1m0.302 ± 0.019" in out.getvalue()
    assert "*" not in out.getvalue() and "Best (bold)" in out.getvalue()
    piped = print_to_text(show_board, build(make_small_board_frame()))
    assert piped.count(" *") == 2 and "0.302 ± 0.019 *" in piped and "Best (*)" in piped


def test_randomised_rounding_is_shown_on_request() -> None:
    board = build(make_frame(make_runs("ste", "int4", [0.5, 0.6], rr_mean=0.75)))
    assert "rr 0.750" in print_to_text(show_board, board, randomised=True)
    assert "0.750" not in print_to_text(show_board, board)


def test_ranks_are_shown_next_to_the_names() -> None:
    parts = [
        make_runs(name, "int4", [c + s / 100 + 0.001 * ((s * (i + 2)) % 5) for s in range(10)])
        for i, (name, c) in enumerate((("ste", 0.1), ("lotion", 0.5)))
    ]
    board = build(make_frame(*parts))
    printed = print_to_text(show_board, board)
    assert re.search(r"^ste +1 +0\.1\d\d ±", printed, re.MULTILINE)
    assert "| ste | 1 | " in to_markdown(board)
    assert "ranks are ranges" in to_markdown(board)


def test_a_board_of_planned_runs_says_so() -> None:
    board = build(make_frame([make_planned_run("ste", "int4", s) for s in range(3)]))
    printed = print_to_text(show_board, board)
    assert "\ndigits/xs\n" in printed
    assert re.search(r"^ste +planned", printed, re.MULTILINE) and "3 of 3 planned" in printed


def test_a_board_without_runs_says_so() -> None:
    empty = build(pd.DataFrame())
    assert "No runs yet." in print_to_text(show_board, empty)
    assert "No runs yet." in to_markdown(empty)
    assert len(to_csv(empty).splitlines()) == 1


BOARDS = [
    build(make_small_board_frame()),
    build(make_hostile_frame("w" * 90)),
    build(make_hostile_frame("宽" * 40)),
    build(make_frame(*(make_runs("ste", f"int{b}", [0.5, 0.25]) for b in range(1, 9)))),
]


@given(st.sampled_from(BOARDS), st.integers(20, 200), st.booleans())
def test_a_board_fits_any_width(board: Board, width: int, terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=terminal, color_system=None)
    show_board(board, console, randomised=True)
    assert all(cell_len(line) <= width for line in out.getvalue().splitlines())


if __name__ == "__main__":
    for name, content in make_golden_files().items():
        (GOLDEN / name).write_text(content, encoding="utf-8")
