"""Make text from outside safe to print, and format numbers as tables show them.

Names and messages come from plugins and from submissions. They could contain escape codes for a
terminal, markup for Markdown, or formulas for a spreadsheet. Everything that prints or writes
such text passes it through this module.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

MAX_LENGTH = 200
MAX_CELL_LENGTH = 1_000_000
"""Long, because a run's answers to hundreds of downstream tasks are one cell of a CSV file."""

# Escape sequences of a terminal: operating system commands such as links, and control sequences.
_ESCAPE_CODE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x1b\x9b][\[\]()#;?]*[0-9;]*[A-Za-z@~=<>]?"
)
_WHITESPACE = re.compile(r"\s+")

# What Markdown or HTML reads as markup. An underscore inside a word is not markup. URLs are
# escaped, too, because some renderers turn them into links.
_MARKDOWN_MARKUP = re.compile(
    r"[\\`*\[\]<>|&#~!$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.", re.IGNORECASE
)
_MARKDOWN_ESCAPES = {"<": "&lt;", "&": "&amp;", "//": r"\/\/"}
_FORMULA_STARTS = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_SUPERSCRIPT_DIGITS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


# ---- text from outside ----


def clean_line(text: object, longest: int = MAX_LENGTH) -> str:
    """Return `text` as one line of printable characters, cut to `longest`.

    Escape codes, control characters, characters that change the direction of writing, and lone
    surrogates are removed. Whitespace becomes single blanks.
    """
    # Cut first, so that a huge text costs no time; removal may shorten it further.
    line = str(text)[: 20 * longest]
    if not (line.isascii() and line.isprintable()):
        # Newlines are control characters, so they must become blanks before those are removed.
        line = _WHITESPACE.sub(" ", _ESCAPE_CODE.sub("", line))
        line = "".join(c for c in line if not unicodedata.category(c).startswith("C"))
    line = _WHITESPACE.sub(" ", line).strip()
    return line if len(line) <= longest else line[: longest - 1] + "…"


def escape_markdown(text: object, longest: int = MAX_LENGTH) -> str:
    """Return `text` as a clean line that Markdown and HTML show as it is, without links."""
    return _MARKDOWN_MARKUP.sub(
        lambda m: _MARKDOWN_ESCAPES.get(m.group(), "\\" + m.group()), clean_line(text, longest)
    )


def escape_csv_cell(text: object, longest: int = MAX_CELL_LENGTH) -> str:
    """Return `text` as a clean line that no spreadsheet takes for a formula.

    A formula gets an apostrophe in front. So does a formula that already has one: without this
    rule, `unescape_csv_cell` could not tell the two apart.
    """
    line = clean_line(text, longest)
    return "'" + line if line.lstrip("'").startswith(_FORMULA_STARTS) else line


def unescape_csv_cell(text: str) -> str:
    """Return the line that `escape_csv_cell` was given."""
    escaped = text.startswith("'") and text.lstrip("'").startswith(_FORMULA_STARTS)
    return text[1:] if escaped else text


# ---- numbers and values ----


def format_superscript(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT_DIGITS)


def format_count(n: int, noun: str) -> str:
    """Return `1 run` or `2 runs`: a number with its noun in the right form."""
    number = f"{n:,}" if n >= 10_000 else str(n)
    return f"{number} {noun}{'s' * (n != 1)}"


def format_value(x: Any) -> str:
    """Return a parameter's value as tables and labels show it: `mse`, `true`, `100`, `0.25`.

    No digit is lost: a float can be read back exactly.
    """
    if isinstance(x, str):
        return x
    if isinstance(x, float) and (short := f"{x:g}") and float(short) == x:
        return short
    return json.dumps(x)


def format_parameters(values: Mapping[str, Any]) -> str:
    """Return `clip=true, scale=mse`, sorted by name, so that equal values give equal texts."""
    return ", ".join(f"{name}={format_value(x)}" for name, x in sorted(values.items()))


def format_number(x: float, digits: int) -> str:
    """Return `x` with this many digits after the decimal point.

    Scientific notation is used for numbers that would be shown as zero, and for large ones.
    """
    if x != x:
        return "nan"
    small = x != 0 and abs(x) < 0.5 * 10.0**-digits
    # Adding 0.0 turns −0.0 into 0.0, which is printed without a sign.
    return f"{x:.1e}" if small else f"{x:.3g}" if abs(x) >= 1e5 else f"{x + 0.0:.{digits}f}"


def format_half_width(half: float, value: float, digits: int) -> str:
    """Return half the width of an interval in the form in which `format_number` shows its value.

    A width that these digits would show as zero becomes, for example, `<0.001`.
    """
    # Below this share of the value, the width is rounding noise of the arithmetic.
    if half <= 1e-12 * abs(value):
        return format_number(0.0, digits)
    if abs(value) >= 1e5 or format_number(value, digits)[-4:-2] == "e-":
        return f"{half:.1e}"
    if half < 0.5 * 10.0**-digits:
        return f"<{10.0**-digits:.{digits}f}"
    return format_number(half, digits)


def format_duration(seconds: float) -> str:
    """Return `0.8 s`, `42 s`, `3:20` or `1:05:00`."""
    # The limits are where the rounded number would need another form.
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def format_bytes(count: float) -> str:
    """Return a number of bytes as `512 B` or `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.2g} {unit}"
        count /= 1000
    raise AssertionError("the loop returns at the last unit")


def format_range(values: tuple[float, ...], form: str = "g") -> str:
    """Return the first and the last of sorted values: `2.25–2.5`, or `2.25` if they are equal."""
    if not values:
        return ""
    return "–".join(dict.fromkeys(f"{v:{form}}" for v in (values[0], values[-1])))
