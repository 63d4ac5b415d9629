"""Text from outside is made safe to print, and numbers and parameters have one form."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from qbench.util import text
from tests.hostile_text import HOSTILE

ROOT = Path(__file__).resolve().parents[2]
MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


# ---- text from outside ----


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
def test_clean_line_removes_what_is_not_printable(given_text: str, shown: str) -> None:
    assert text.clean_line(given_text) == shown


@given(HOSTILE)
def test_no_spreadsheet_takes_a_cell_for_a_formula(words: str) -> None:
    escaped = text.escape_csv_cell(words)
    assert not escaped.startswith(FORMULA_STARTS)
    assert text.unescape_csv_cell(escaped) == text.clean_line(words, 10_000)


@given(HOSTILE)
@example("a_b_c *x* **y** `z` ~~s~~ <i> &amp; [l](u) ![i](u) | $m$ \\")
@example("__0__ a__b__ _0_ x_")
def test_markdown_shows_the_words_as_they_are(words: str) -> None:
    """Read by a Markdown parser, a cell is the text and nothing but text."""
    escaped = text.escape_markdown(words)
    tokens = MARKDOWN.parse(f"| x | {escaped} | y |\n| --- | --- | --- |\n")
    inline = [token for token in tokens if token.type == "inline"]
    assert [token.content for token in inline][::2] == ["x", "y"], "the row has three cells"
    children = inline[1].children or []
    assert {child.type for child in children} <= {"text"}
    assert "".join(child.content for child in children) == text.clean_line(words)
    assert "://" not in escaped and "www." not in escaped.lower(), "nothing to make a link of"


# ---- numbers ----


@pytest.mark.parametrize(
    ("x", "digits", "shown"),
    [
        (0.12345, 3, "0.123"),
        (-0.0, 3, "0.000"),
        (0.0004, 3, "4.0e-04"),
        (123456.0, 1, "1.23e+05"),
        (97.25, 1, "97.2"),
        (5.4, 0, "5"),
        (0.0, 2, "0.00"),
    ],
)
def test_numbers_are_never_shown_as_zero_unless_they_are(x: float, digits: int, shown: str) -> None:
    assert text.format_number(x, digits) == shown


@pytest.mark.parametrize(
    ("half", "value", "shown"),
    [
        (0.006, 0.1, "0.006"),
        (0.0004, 0.1, "<0.001"),
        (0.0, 0.1, "0.000"),
        (1e-18, 0.1, "0.000"),
        (3e-6, 2e-5, "3.0e-06"),
        (1234.0, 2e5, "1.2e+03"),
    ],
)
def test_half_widths_are_shown_in_the_form_of_their_value(
    half: float, value: float, shown: str
) -> None:
    assert text.format_half_width(half, value, 3) == shown


def test_durations_and_sizes() -> None:
    durations = {
        0.84: "0.8 s",
        9.97: "10 s",
        42: "42 s",
        59.7: "1:00",
        200: "3:20",
        3900: "1:05:00",
    }
    assert {x: text.format_duration(x) for x in durations} == durations
    sizes = {
        512: "512 B",
        999.6: "1 kB",
        3.4e6: "3.4 MB",
        134217728: "134 MB",
        2.5e13: "25000 GB",
    }
    assert {x: text.format_bytes(x) for x in sizes} == sizes


def test_a_noun_after_one_is_singular() -> None:
    counts = {0: "0 runs", 1: "1 run", 2: "2 runs", 1050: "1050 runs", 12_000: "12,000 runs"}
    assert {n: text.format_count(n, "run") for n in counts} == counts


def test_plurals_are_formed_in_one_place() -> None:
    by_hand = re.compile(r"""['"]s['"] ?\*|['"]s['"] if """)
    files = [
        path.name
        for path in (ROOT / "qbench").rglob("*.py")
        if by_hand.search(path.read_text(encoding="utf-8"))
    ]
    # In the other two the noun does not follow a plain number.
    assert sorted(files) == ["page.py", "text.py", "tuning_space.py"]


# ---- parameters ----


def test_equal_parameters_give_equal_texts() -> None:
    parameters = {"scale": "mse", "clip": True, "lam": 100.0, "rate": 0.003}
    assert text.format_parameters(parameters) == "clip=true, lam=100, rate=0.003, scale=mse"
    assert text.format_value([1, 2]) == "[1, 2]" and text.format_value(None) == "null"


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_no_digit_of_a_value_is_lost(x: float) -> None:
    assert float(text.format_value(x)) == x
