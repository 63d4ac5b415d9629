"""Texts that somebody could put into a name or a message to do harm, as a Hypothesis strategy."""

from __future__ import annotations

import re

from hypothesis import strategies as st

# Formulas of spreadsheets, words that read as other types, escape codes of terminals.
_FOR_FILES = (
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
)
# Characters that change the direction of writing, and markup of HTML, Markdown and rich.
_FOR_READERS = (
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
)
_SPECIAL_CHARACTERS = st.text(
    st.sampled_from("=+-@\"'`*_[]()<>|&#~!$\\/:.\n\r\t\x1b\x9b\x00\u202e\u2028w1＝"), max_size=20
)
HOSTILE = st.one_of(
    st.text(max_size=40), _SPECIAL_CHARACTERS, st.sampled_from((*_FOR_FILES, *_FOR_READERS))
)

_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]"
)


def has_only_visible_characters(text: str) -> bool:
    """Return whether a text has no control characters but newlines, and none like them."""
    return not _INVISIBLE.search(text)
