"""What is printed: golden files, the same numbers everywhere, nothing hostile, any width.

`python -m tests.test_render` writes the golden files again.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable
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
from qbench.runs.state import NEW, RunState
from qbench.sweeps.status import RunStatus
from qbench.terminal.board import show_board
from qbench.terminal.plan import show_plan
from qbench.terminal.plugins import show_methods, show_tasks
from qbench.terminal.run import draw_sparkline, show_run
from qbench.util import text
from tests.synthetic_runs import (
    DEFAULTS,
    make_failed_run,
    make_frame,
    make_planned_run,
    make_run,
    make_runs,
    make_small_board_frame,
)

GOLDEN = Path(__file__).parents[1] / "golden"
STRANGE = (
    *(
        "=HYPERLINK(1)",
        "'=1",
        "''+1",
        "\t=1",
        "＝1",
        "007",
        "nan",
        "null",
        "1e5",
        "True",
        "\x1b[31mred\x1b[0m",
        "\x1b]8;;http://x\x07y",
    ),
    *(
        "a\u202eb",
        "<script>x</script>",
        "[x](http://x)",
        "http://x.org",
        "www.x.org",
        "| a | b",
        "[bold]x[/bold]",
        ":smile:",
        "a\r\nb",
        "&lt;",
    ),
)
MARKS = st.text(
    st.sampled_from("=+-@\"'`*_[]()<>|&#~!$\\/:.\n\r\t\x1b\x9b\x00\u202e\u2028w1＝"), max_size=20
)
HOSTILE = st.one_of(st.text(max_size=40), MARKS, st.sampled_from(STRANGE))


def build(rows: pd.DataFrame, **more: Any) -> Board:
    return build_board(rows, defaults=DEFAULTS, **{"title": "Small", **more})


def printed(show: Callable[..., None], *what: Any, width: int = 100, **more: Any) -> str:
    """As it would be read from a pipe, without the blanks at the ends of lines."""
    out = io.StringIO()
    show(*what, Console(file=out, width=width), **more)
    return "".join(line.rstrip() + "\n" for line in out.getvalue().splitlines())


def goldens() -> dict[str, str]:
    board = build(make_small_board_frame())
    terminal = {
        f"board_small_{width}.txt": printed(show_board, board, width=width) for width in (40, 100)
    }
    return {"board_small.md": to_markdown(board), "board_small.csv": to_csv(board), **terminal}


@pytest.mark.parametrize(
    "name", ["board_small.md", "board_small.csv", "board_small_40.txt", "board_small_100.txt"]
)
def test_golden(name: str) -> None:
    assert goldens()[name] == (GOLDEN / name).read_text(encoding="utf-8"), (
        "if it is meant: python -m tests.test_render"
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
    assert list(read_runs_csv(io.StringIO(runs_csv(rows)))["packed"]) == sorted(
        rows["packed"], key=lambda x: rows.set_index("packed")["key"][x]
    )


def test_every_number_that_is_printed_is_in_the_json() -> None:
    """The table's cells, made again from the JSON alone."""
    board = build(make_small_board_frame())
    (section,) = json.loads(json.dumps(board.to_json(), allow_nan=False))["sections"]
    lines = [line for line in to_markdown(board).splitlines() if line.startswith("|")]
    heads = [
        f"{c['format']} ({c['levels'][0]} levels, {c['bits_per_weight'][0]:g} bits)"
        for c in section["columns"]
    ]
    assert lines[0] == f"| method | {' | '.join(heads)} | step / fp | training | memory |"
    for line, row in zip(lines[2:], section["rows"], strict=True):
        name, *cells, step, training, memory = line.strip("| ").split(" | ")
        assert name.replace("\\", "") == row["entrant"] + " (reconstructed)" * row["reconstructed"]
        for shown, cell in zip(cells, row["cells"], strict=False):
            assert re.sub("[†⁰¹²³⁴⁵⁶⁷⁸⁹*]| (?=[⁰¹²³⁴⁵⁶⁷⁸⁹])", "", shown) == as_markdown(
                cell, row["role"] == "reference"
            )
            assert ("**" in shown) == cell["best"] and ("†" in shown) == bool(cell["audits_failed"])
            assert all(
                text.format_superscript(n) in shown and f"\n{text.format_superscript(n)} " in to_markdown(board)
                for n in cell["notes"]
            )
        cost = row["cost"]
        assert step == ("–" if cost["step_ratio"] is None else f"{cost['step_ratio']:.2f} ×")
        assert (training, memory) == (
            f"{cost['train_s']:.1f} s",
            f"{cost['peak_memory_bytes'] / 1e6:.0f} MB",
        )


def as_markdown(cell: dict[str, Any], reference: bool) -> str:
    s, g = cell["score"], cell["gap"]
    if s is None:
        return cell["state"] if cell["state"] == "skipped" else ", ".join(cell["failures"])
    value = f"{s['value']:.3f}" + (
        "" if s["low"] is None else f" ± {(s['high'] - s['low']) / 2:.3f}"
    )
    if reference:
        return value
    ends = (
        "" if g["low"] in (None, g["high"]) else f" [{100 * g['low']:.0f}, {100 * g['high']:.0f}]"
    )
    return f"{value}<br>{100 * g['value']:.0f} %{ends}"


def test_csv_has_a_line_for_each_cell_with_the_same_numbers() -> None:
    board = build(make_small_board_frame())
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    cells = [cell for section in board.sections for row in section.rows for cell in row.cells]
    assert len(lines) == len(cells) == 11
    for line, cell in zip(lines, cells, strict=True):
        assert line["state"] == cell.state and line["runs"].split() == list(cell.keys)
        found = [
            float(line[name]) if line[name] else None for name in ("mean", "low", "high", "gap")
        ]
        s, g = cell.score, cell.gap
        expected = [s and s.value, s and s.low, s and s.high, g and g.value]
        assert found == [
            x if x is None else pytest.approx(x, rel=1e-11, abs=1e-12) for x in expected
        ]


# ---- text that came from somebody else ----


def visible(found: str) -> bool:
    return not re.search(
        r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]",
        found,
    )


def hostile(words: str) -> pd.DataFrame:
    """A frame that carries the words wherever a stranger could put them."""
    strange = {
        "label": words,
        "provenance": "paper",
        "unit": words,
        "metric": words,
        "start": words,
    }
    return make_frame(
        [make_run("ste", "int4", 0, 0.5, **strange, recipe=json.dumps({"lr": 1, words: words}))],
        [
            make_failed_run(
                "ste",
                "int4",
                1,
                words or None,
                words,
                **strange,
                recipe=json.dumps({"lr": 1, words: words}),
            )
        ],
        [make_planned_run("pege", "int2", 0, "skipped", words, task_params=json.dumps({"net": words}))],
        [make_failed_run("lotion", words or None, 0, words or None, weights_granularity=words)],
        [make_run("rtn", "int4", 0, 0.5, params={"scale": words}, size=words, task=words)],
    )


@given(HOSTILE)
@example("\x1b[2J|=1+1<b>")
def test_nothing_hostile_is_printed(words: str) -> None:
    board = build(hostile(words), title=words)
    for found in (printed(show_board, board), to_markdown(board), to_csv(board)):
        assert visible(found)
    for line in csv.reader(io.StringIO(to_csv(board))):
        assert not any(
            field.lstrip().startswith(("=", "+", "@", "＝", "＋", "－", "＠")) for field in line
        )
        assert not any(field.startswith("-") and not is_number(field) for field in line)


def is_number(field: str) -> bool:
    try:
        return math.isfinite(float(field))
    except ValueError:
        return False


@given(HOSTILE)
def test_no_spreadsheet_takes_a_cell_for_a_formula(words: str) -> None:
    found = text.escape_csv_cell(words)
    assert not found.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")) and text.unescape_csv_cell(
        found
    ) == text.clean_line(words, 10_000)


MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])


@given(HOSTILE)
@example("a_b_c *x* **y** `z` ~~s~~ <i> &amp; [l](u) ![i](u) | $m$ \\")
@example("__0__ a__b__ _0_ x_")
def test_markdown_shows_the_words_as_they_are(words: str) -> None:
    """Read by a Markdown parser, a cell is the text and nothing but text."""
    tokens = MARKDOWN.parse(f"| x | {text.escape_markdown(words)} | y |\n| --- | --- | --- |\n")
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.content for token in inline][::2] == ["x", "y"], "no cell more or less"
    children = inline[1].children or []
    assert {child.type for child in children} <= {"text"} and "".join(
        child.content for child in children
    ) == text.clean_line(words)
    assert "://" not in text.escape_markdown(words) and "www." not in text.escape_markdown(words).lower(), (
        "nothing to make a link of"
    )


def test_a_page_of_markdown_has_one_table_and_no_markup_of_others() -> None:
    tokens = MARKDOWN.parse(
        to_markdown(
            build(make_frame(make_runs("ste", "int4", [0.5], label="a|b <b>x</b> **y**")), title="# *t*")
        )
    )
    assert [t.type for t in tokens].count("table_open") == 1
    kinds = {child.type for t in tokens for child in t.children or ()}
    assert not kinds & {"link_open", "strong_open", "em_open", "image"}
    assert (
        next(t.children[0].content for t in tokens if t.type == "inline" and t.children) == "# *t*"
    )


@pytest.mark.parametrize(
    ("given_text", "shown"),
    [
        ("a\x1b[31mb\x1b[0m", "ab"),
        ("a\nb\t c", "a b c"),
        ("\x1b]8;;http://x\x07link", "link"),
        ("a\u202eb\x00", "ab"),
        ("x" * 300, "x" * 199 + "…"),
    ],
)
def test_plain(given_text: str, shown: str) -> None:
    assert text.clean_line(given_text) == shown


@pytest.mark.parametrize(
    ("x", "digits", "shown"),
    [(0.12345, 3, "0.123"), (-0.0, 3, "0.000"), (0.0004, 3, "4.0e-04"), (123456.0, 1, "1.23e+05"), (97.25, 1, "97.2"), (5.4, 0, "5"), (0.0, 2, "0.00")],
)  # fmt: skip
def test_number(x: float, digits: int, shown: str) -> None:
    assert text.format_number(x, digits) == shown


@pytest.mark.parametrize(
    ("half", "value", "shown"),
    [(0.006, 0.1, "0.006"), (0.0004, 0.1, "<0.001"), (0.0, 0.1, "0.000"), (1e-18, 0.1, "0.000"), (3e-6, 2e-5, "3.0e-06"), (1234.0, 2e5, "1.2e+03")],
)  # fmt: skip
def test_half_width(half: float, value: float, shown: str) -> None:
    assert text.format_half_width(half, value, 3) == shown


def test_seconds_and_sizes() -> None:
    assert [text.format_duration(x) for x in (0.84, 9.97, 42, 59.7, 200, 3900)] == [
        "0.8 s",
        "10 s",
        "42 s",
        "1:00",
        "3:20",
        "1:05:00",
    ]
    assert [text.format_bytes(x) for x in (512, 999.6, 3.4e6, 134217728, 2.5e13)] == [
        "512 B",
        "1 kB",
        "3.4 MB",
        "134 MB",
        "25000 GB",
    ]


# ---- the terminal ----


def test_the_best_is_bold_in_a_terminal_and_starred_in_a_pipe() -> None:
    out = io.StringIO()
    show_board(
        build(make_small_board_frame()),
        Console(file=out, width=100, force_terminal=True, color_system="standard", _environ={}),
    )
    assert (
        "\x1b[1m0.302 ± 0.019" in out.getvalue()
        and "*" not in out.getvalue()
        and "Best (bold)" in out.getvalue()
    )
    piped = printed(show_board, build(make_small_board_frame()))
    assert piped.count(" *") == 2 and "0.302 ± 0.019 *" in piped and "Best (*)" in piped


def test_randomised_rounding_is_shown_when_asked_for() -> None:
    board = build(make_frame(make_runs("ste", "int4", [0.5, 0.6], rr_mean=0.75)))
    assert "rr 0.750" in printed(show_board, board, randomised=True) and "0.750" not in printed(
        show_board, board
    )


def test_ranks_stand_beside_the_names() -> None:
    parts = [
        make_runs(name, "int4", [c + s / 100 + 0.001 * ((s * (i + 2)) % 5) for s in range(10)])
        for i, (name, c) in enumerate((("ste", 0.1), ("lotion", 0.5)))
    ]
    board = build(make_frame(*parts))
    assert re.search(
        r"^ste +1 +0\.1\d\d ±", printed(show_board, board), re.MULTILINE
    ) and "| ste | 1 | " in to_markdown(board)
    assert "ranks are ranges" in to_markdown(board)


def test_planned_only() -> None:
    board = build(make_frame([make_planned_run("ste", "int4", s) for s in range(3)]))
    found = printed(show_board, board)
    assert (
        "\ndigits/xs\n" in found
        and re.search(r"^ste +planned", found, re.MULTILINE)
        and "3 of 3 planned" in found
    )


def test_nothing_to_show() -> None:
    empty = build(pd.DataFrame())
    assert (
        "No runs yet." in printed(show_board, empty)
        and "No runs yet." in to_markdown(empty)
        and len(to_csv(empty).splitlines()) == 1
    )


BOARDS = [
    build(make_small_board_frame()),
    build(hostile("w" * 90)),
    build(hostile("宽" * 40)),
    build(make_frame(*(make_runs("ste", f"int{b}", [0.5, 0.25]) for b in range(1, 9)))),
]


@given(st.sampled_from(BOARDS), st.integers(20, 200), st.booleans())
def test_any_width_will_do(board: Board, width: int, terminal: bool) -> None:
    out = io.StringIO()
    show_board(
        board,
        Console(file=out, width=width, force_terminal=terminal, color_system=None),
        randomised=True,
    )
    assert all(cell_len(line) <= width for line in out.getvalue().splitlines())


# ---- one run ----

KEY = "ab12" * 8
FULL: dict[str, Any] = {
    "key": KEY, "attempt": 2, "folder": "results/runs/ab/" + KEY,
    "spec": {
        "method": "ste", "method_version": 1, "method_params": {"scale": "absmax", "clip_gradient": False}, "task": "digits", "task_version": 3,
        "task_params": {"model": "mlp"}, "size": "xs", "data": "5ha", "seed": 3, "start": "scratch", "recipe": {"steps": 300, "lr": 0.003},
        "weights": {"format": "int4", "granularity": "block-32"}, "activations": {"format": "int8", "granularity": "tensor"}, "base": None,
    },
    "env": {"qbench": "0.1.0", "commit": "c0ffee", "dirty": True, "python": "3.11.7", "torch": "2.9.0", "device": "cpu", "device_name": "A Chip", "cpu": "A Chip"},
    "result": {
        "state": "ok", "reason": None, "message": None, "started": "2026-11-21T04:00:00+00:00", "finished": "2026-11-21T04:00:02+00:00",
        "metric": {"name": "loss", "unit": "nats", "better": "lower", "digits": 3},
        "scores": {"packed": 0.123, "validation": 0.12, "simulated": 0.123, "latent": None, "rr_mean": 0.14, "rr_std": 0.01, "rr_count": 5},
        "kinds": {"latent": "nan"}, "metrics": {"accuracy": 97.25},
        "cost": {"wall_s": 1.9, "train_s": 1.2, "step_s_median": 0.004, "step_s_q25": 0.003, "step_s_q75": 0.005, "peak_memory_bytes": 123456789},
        "size": {"parameters": 1000, "bits_per_weight": 4.25, "levels": 15},
        "audit": {"passed": False, "checks": [{"name": "levels", "passed": True, "detail": "15 of 15"}, {"name": "agree", "passed": False, "detail": "0.1 off"}]},
        "artefact_sha256": "f00d",
    },
    "curve": [{"step": i, "loss": 4.0 * 0.9**i} for i in range(100)],
}  # fmt: skip


def test_a_run_whole() -> None:
    found = printed(show_run, FULL, width=160)
    for words in (
        f"run {KEY}  attempt 2: ok", "ste on digits/xs, int4/block-32 a:int8, seed 3", "ste version 1: clip_gradient=false, scale=absmax",
        "digits version 3: model=mlp, data 5ha", "start scratch: lr=0.003, steps=300",
        "loss (nats): packed 0.12300, simulated 0.12300, validation 0.12000, latent nan", "randomised rounding 0.14000 ± 0.01000 (deviation), 5 draws",
        "accuracy 97.25", "parameters 1000, bits per weight 4.25, levels 15", "wall 1.9 s, train 1.2 s, step 4 [3, 5] ms, peak memory 123 MB",
        "4 at step 0, 0.0001181 at step 99 (logarithmic)", "pass levels: 15 of 15", "FAIL agree: 0.1 off", "commit c0ffee with changes",
        "cpu, A Chip, python 3.11.7", "2026-11-21T04:00:00+00:00 to", "sha256 f00d", f"results/runs/ab/{KEY}", f"qbench reproduce {KEY}",
    ):  # fmt: skip
        assert words in found, words
    assert draw_sparkline([point["loss"] for point in FULL["curve"]], 146) in found


def test_a_failed_run() -> None:
    failure = {
        "state": "failed",
        "reason": "oom",
        "message": "out of memory",
        "scores": {"packed": None},
        "kinds": {"packed": "nan"},
    }
    found = printed(
        show_run,
        {"key": KEY, "attempt": 1, "result": failure, "curve": [{"step": 0, "loss": None}]},
    )
    assert "attempt 1: failed" in found and "oom: out of memory" in found and "packed nan" in found
    assert "×" in found and "not finite at step 0" in found and "None" not in found


def test_an_empty_run() -> None:
    assert printed(show_run, {}) == "run ?  attempt 1: not finished\n"
    assert "not finished" in printed(
        show_run, {"key": KEY, "spec": FULL["spec"], "env": None, "result": None, "curve": []}
    )


@given(HOSTILE, st.integers(20, 200))
def test_a_hostile_run_is_harmless_at_any_width(words: str, width: int) -> None:
    spec = FULL["spec"] | {"method": words, "method_params": {words: words}, "start": words}
    check = {"name": words, "detail": words, "passed": False}
    result = FULL["result"] | {
        "message": words,
        "reason": words,
        "kinds": {"latent": words},
        "audit": {"checks": [check]},
        "metrics": {words: 1.0},
    }
    found = printed(
        show_run,
        FULL | {"key": words, "spec": spec, "result": result, "folder": words},
        width=width,
    )
    assert visible(found) and all(cell_len(line) <= width for line in found.splitlines())


def test_sparkline() -> None:
    assert draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert (
        draw_sparkline([0, 1, 2, 3, 4, 5, 6, 7], 2) == "▁█"
        and draw_sparkline([1, 1], 5) == "▁▁"
        and draw_sparkline([], 5) == ""
    )
    assert (
        draw_sparkline([0, math.nan, None, 7, math.inf], 9) == "▁××█×"
        and draw_sparkline([None, None], 1) == "×"
    )
    assert draw_sparkline([1, 10, 100], 3) == "▁▅█" and draw_sparkline([1, 15.5, 30], 3) == "▁▅█", (
        "logarithmic only beyond a factor of 30"
    )


@given(st.lists(st.floats() | st.none(), max_size=50), st.integers(1, 60))
def test_sparkline_of_anything(values: list[float | None], width: int) -> None:
    found = draw_sparkline(values, width)
    assert len(found) == min(width, len(values)) and set(found) <= set("▁▂▃▄▅▆▇█×")


# ---- plans and plugins ----

PLAN = [
    RunStatus("ste int4 digits/xs seed 0", NEW, "k0"),
    RunStatus("ste int4 digits/xs seed 1", RunState("cached"), "k1"),
    RunStatus(
        "ste int4 digits/xs seed 2", RunState("cached", None, "diverged", "nan at step 3"), "k2"
    ),
    RunStatus("ste int4 digits/xs seed 3", RunState("cached"), "k3", "deadbeef"),
    RunStatus(
        "ste int4 digits/xs seed 4", RunState("failed", None, "oom", "out of \x1b[2Jmemory"), "k4"
    ),
    RunStatus("ste int4 digits/xs seed 5", RunState("lost"), "k5"),
    RunStatus("ste int4 digits/xs seed 6", RunState("running"), "k6"),
    RunStatus("pege int2 digits/xs seed 0", NEW, "k7", older_version="pege version 1"),
    RunStatus("pege int2 digits/xs", RunState("skipped", message="no rule for two bits")),
]


def test_a_plan_lists_what_is_not_simply_there_and_counts_the_rest() -> None:
    listed, counts = printed(show_plan, PLAN, file="my.toml", width=130).split("\n\n")
    lines = [re.split("  +", line) for line in listed.splitlines()[1:]]
    assert lines == [
        ["new", "ste int4 digits/xs seed 0"],
        ["stale", "ste int4 digits/xs seed 3", "made by deadbeef, key k3"],
        ["failed", "ste int4 digits/xs seed 4", "oom: out of memory"],
        ["lost", "ste int4 digits/xs seed 5"],
        ["running", "ste int4 digits/xs seed 6"],
        ["new", "pege int2 digits/xs seed 0", "there is one of pege version 1"],
        ["skipped", "pege int2 digits/xs", "no rule for two bits"],
    ]
    found = {line.split()[0]: int(line.split()[1]) for line in counts.splitlines()[1:]}
    assert found == {
        "new": 2,
        "failed": 1,
        "running": 1,
        "lost": 1,
        "stale": 1,
        "cached": 2,
        "skipped": 1,
    }
    assert sum(found.values()) == len(PLAN)
    fixes = {line.split()[0]: re.split("  +", line)[3:] for line in counts.splitlines()[1:]}
    assert (
        all(fixes[state] == ["qbench sweep my.toml"] for state in ("new", "failed", "lost"))
        and "reproduce" in fixes["stale"][0]
    )
    assert fixes["cached"] == fixes["running"] == fixes["skipped"] == []
    assert "1 of them diverged" in counts


def test_a_plan_with_nothing_to_do() -> None:
    assert printed(show_plan, PLAN[1:2]).splitlines()[1].split() == ["cached", "1", "finished"]
    assert printed(show_plan, []) == "Nothing is asked for.\n"


def test_methods_and_tasks() -> None:
    from qbench.plugins.describe import list_methods, list_tasks

    methods, tasks = (
        re.sub(r"\s*\n {10,}(?=\S)", " ", out)
        for out in (printed(show_methods, list_methods()), printed(show_tasks, list_tasks()))
    )
    for entry in (m for m in list_methods() if m["error"] is None):
        assert f"{entry['name']}  {entry['title']}" in methods and entry["summary"] in methods
    assert "grid=symmetric, scale=absmax" in methods
    for entry in (t for t in list_tasks() if t["error"] is None):
        assert (
            f"{entry['name']}  {entry['title']}" in tasks
            and f"{entry['metric']['better']} is better" in tasks
        )
    assert "xs: 300 steps of 64" in tasks


def test_a_broken_plugin_is_listed_with_its_error() -> None:
    broken = {
        "name": "odd",
        "distribution": "odd 1.0",
        "target": "odd:Odd",
        "error": "odd cannot be imported:\x1b[2J no module",
    }
    found = printed(show_methods, [broken])
    assert (
        found.startswith("odd\n")
        and "odd cannot be imported: no module" in found
        and "odd 1.0 (odd:Odd)" in found
        and visible(found)
    )
    assert printed(show_tasks, []) == "None is installed.\n"


@given(st.integers(20, 200))
def test_lists_at_any_width(width: int) -> None:
    for found in (
        printed(show_plan, PLAN, width=width),
        printed(show_methods, [{"name": "m" * 50, "error": "e" * 90}], width=width),
    ):
        assert all(cell_len(line) <= width for line in found.splitlines())


if __name__ == "__main__":
    for name, content in goldens().items():
        (GOLDEN / name).write_text(content, encoding="utf-8")
