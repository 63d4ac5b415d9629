"""Remove absolute paths of this machine from texts that are stored or published.

Where users keep their files is private. Only the last name of an absolute path is kept, which is
enough for someone who knows the machine. Of a run's own files, the part from `runs/` on is kept.
Web addresses, relative paths and fractions such as 1/2 are not changed.
"""

from __future__ import annotations

import re

__all__ = ["redact_paths"]


# One character of a file name outside quotation marks, where a blank or punctuation ends the path.
_NAME_CHARACTER = r"[^\s/\\'\"`:;,<>|*?()\[\]{}]"

# A path in quotation marks may contain blanks. A word with a colon, as in "file:/a/b", may precede
# it.
_QUOTED_PATH = re.compile(
    r"(?P<quote>['\"`])(?P<word>[\w+.-]+:)?"
    r"(?P<path>(?:file://)?(?:~?/|[A-Za-z]:[\\/])[^'\"`\n]*[/\\][^'\"`\n]*)(?P=quote)"
)

# Outside quotation marks, a path starts with ~/, a drive letter, or a slash before a name that is
# followed by another slash.
_BARE_PATH = re.compile(
    r"(?<![\w/.~\\])(?:file://)?(?:~/|/(?=[^/]+/)|[A-Za-z]:[\\/])(?!/)"
    rf"{_NAME_CHARACTER}+(?:[/\\]+{_NAME_CHARACTER}+)*[/\\]?"
)

# The part of a path that points into a run's folder, which is the same on every machine.
_RUN_PATH = re.compile(r"runs[/\\][0-9a-f]{2}[/\\][0-9a-f]{32}(?:[/\\].*)?$")
_SEPARATORS = re.compile(r"[/\\]+")


def redact_paths(message: str) -> str:
    """Return the message with every absolute path shortened to its last name."""
    quoted = _QUOTED_PATH.sub(
        lambda m: f"{m['quote']}{m['word'] or ''}{_shorten_path(m['path'])}{m['quote']}", message
    )
    return _BARE_PATH.sub(lambda m: _shorten_path(m.group()), quoted)


def _shorten_path(path: str) -> str:
    if own := _RUN_PATH.search(path):
        return own.group()
    return next((part for part in reversed(_SEPARATORS.split(path)) if part), "")
