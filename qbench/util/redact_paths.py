"""Where somebody keeps his files is nobody's business: what is stored of a run, or published, loses the absolute paths of the machine.

Of such a path its last name is left, which says enough to whoever knows the machine; of a run's own files, the part from `runs/` on.
Addresses of the web, relative paths and fractions stay what they are.
"""

from __future__ import annotations

import re

__all__ = ["unplaced"]


_PART = r"[^\s/\\'\"`:;,<>|*?()\[\]{}]"
_QUOTED = re.compile(
    r"(?P<quote>['\"`])(?P<word>[\w+.-]+:)?(?P<path>(?:file://)?(?:~?/|[A-Za-z]:[\\/])[^'\"`\n]*[/\\][^'\"`\n]*)(?P=quote)"
)
"""Only between quotation marks may a path have blanks in it."""
_BARE = re.compile(
    rf"(?<![\w/.~\\])(?:file://)?(?:~/|/(?=[^/]+/)|[A-Za-z]:[\\/])(?!/){_PART}+(?:[/\\]+{_PART}+)*[/\\]?"
)
_OWN = re.compile(r"runs[/\\][0-9a-f]{2}[/\\][0-9a-f]{32}(?:[/\\].*)?$")
_SEPARATORS = re.compile(r"[/\\]+")


def unplaced(message: str) -> str:
    """A message whose absolute paths are no longer than their last name."""
    quoted = _QUOTED.sub(
        lambda m: f"{m['quote']}{m['word'] or ''}{_last(m['path'])}{m['quote']}", message
    )
    return _BARE.sub(lambda m: _last(m.group()), quoted)


def _last(path: str) -> str:
    if own := _OWN.search(path):
        return own.group()
    return next((part for part in reversed(_SEPARATORS.split(path)) if part), "")
