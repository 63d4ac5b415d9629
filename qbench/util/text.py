"""Text that came from somebody else, made safe to print; and numbers as tables show them.

Names and messages come from plugins, and later from submissions. In a terminal they could carry escape codes, in Markdown markup, in a
spreadsheet formulas. Every renderer passes them through here.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

LONGEST = 200
LONGEST_CELL = 1_000_000
"""What a run answered to hundreds of downstream tasks is one cell."""
_ESCAPE = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|[\x1b\x9b][\[\]()#;?]*[0-9;]*[A-Za-z@~=<>]?"
)
_SPACE = re.compile(r"\s+")
_MARKDOWN = re.compile(
    r"[\\`*\[\]<>|&#~!$]|(?<![^\W_])_|_(?![^\W_])|(?<=:)//|(?<=www)\.", re.IGNORECASE
)
_ESCAPED = {"<": "&lt;", "&": "&amp;", "//": r"\/\/"}
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


def plain(text: object, longest: int = LONGEST) -> str:
    """One line of printable text: no escape codes, control or direction-changing characters, no lone surrogates, not endless."""
    found = str(text)[: 20 * longest]
    if not (found.isascii() and found.isprintable()):
        found = _SPACE.sub(" ", _ESCAPE.sub("", found))
        found = "".join(c for c in found if not unicodedata.category(c).startswith("C"))
    found = _SPACE.sub(" ", found).strip()
    return found if len(found) <= longest else found[: longest - 1] + "…"


def markdown(text: object, longest: int = LONGEST) -> str:
    """`plain`, with everything that Markdown or HTML would read as markup escaped. Links are not made."""
    return _MARKDOWN.sub(lambda m: _ESCAPED.get(m.group(), "\\" + m.group()), plain(text, longest))


def cell(text: object, longest: int = LONGEST_CELL) -> str:
    """`plain`, and no spreadsheet takes it for a formula."""
    found = plain(text, longest)
    # An apostrophe of its own before a formula gets another, so that `uncell` can tell them apart.
    return "'" + found if found.lstrip("'").startswith(_FORMULA) else found


def uncell(text: str) -> str:
    """What `cell` was given."""
    return text[1:] if text.startswith("'") and text.lstrip("'").startswith(_FORMULA) else text


def superscript(number: int) -> str:
    return str(number).translate(_SUPERSCRIPT)


def count(n: int, one: str) -> str:
    """`1 run`, `2 runs`: no number stands before the wrong form of a word."""
    number = f"{n:,}" if n >= 10_000 else str(n)
    return f"{number} {one}{'s' * (n != 1)}"


def value(x: Any) -> str:
    """A parameter's value as tables and labels say it: `mse`, `true`, `100`, `0.25`; no digit is lost."""
    if isinstance(x, str):
        return x
    if isinstance(x, float) and (short := f"{x:g}") and float(short) == x:
        return short
    return json.dumps(x)


def spell(values: Mapping[str, Any]) -> str:
    """`clip=true, scale=mse`: by name, so that the same values are spelled in one way."""
    return ", ".join(f"{name}={value(x)}" for name, x in sorted(values.items()))


def number(x: float, digits: int) -> str:
    """With so many digits after the point; in scientific notation where that would show nothing, or too much."""
    if x != x:
        return "nan"
    small = x != 0 and abs(x) < 0.5 * 10.0**-digits
    return f"{x:.1e}" if small else f"{x:.3g}" if abs(x) >= 1e5 else f"{x + 0.0:.{digits}f}"


def half_width(half: float, value: float, digits: int) -> str:
    """Half an interval's width as `number` shows the value; one that its digits cannot show is `<0.001`, never a bare zero."""
    if half <= 1e-12 * abs(value):
        return number(0.0, digits)
    if abs(value) >= 1e5 or number(value, digits)[-4:-2] == "e-":
        return f"{half:.1e}"
    return f"<{10.0**-digits:.{digits}f}" if half < 0.5 * 10.0**-digits else number(half, digits)


def seconds(x: float) -> str:
    """`0.8 s`, `42 s`, `3:20`, `1:05:00`."""
    if x < 9.95:
        return f"{x:.1f} s"
    if x < 59.5:
        return f"{x:.0f} s"
    minutes, rest = divmod(round(x), 60)
    return (
        f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
    )


def size(count: float) -> str:
    """`512 B`, `3.4 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 99.5 else f"{count:.2g} {unit}"
        count /= 1000
    raise AssertionError


def span(values: tuple[float, ...], form: str = "g") -> str:
    """One number, or the least and the most: `2.25`, `2.25–2.5`."""
    return "–".join(dict.fromkeys(f"{v:{form}}" for v in (values[0], values[-1]))) if values else ""
