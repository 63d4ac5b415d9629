"""The sweep files in a bundle: they let whoever receives the runs sweep the same boards.

A sweep file is untrusted: it must be TOML, printable text, and belong to the board under whose name
it is listed. It never overwrites an existing file, and merging does not act on it: what it asks for
is checked and trained when somebody sweeps it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qbench.errors import UsageError
from qbench.store.board_members import read_all_board_members
from qbench.submissions.bundle import BOARD_FILE, Bundle
from qbench.submissions.strict_json import SubmissionError
from qbench.sweepfile.read import list_builtin_boards, load_builtin_board, parse_sweep
from qbench.util.redact_paths import redact_paths
from qbench.util.text import clean_line

SweepFileState = Literal["written", "same", "differs", "built in", "not written"]
RESERVED_BOARD_NAMES = ("runs", "boards")
"""Names of folders in a results folder that do not belong to a board."""


@dataclass(frozen=True)
class ReceivedSweepFile:
    """What happened to the sweep file of one board, and what the user can do next."""

    board: str
    state: SweepFileState
    file: str
    next: str
    """The next command."""
    problem: str | None = None
    """Why the file was not written, or why it cannot be swept here yet."""

    def __str__(self) -> str:
        text = {
            "written": f"its sweep file is now {self.file}",
            "same": f"its sweep file is {self.file or 'the one that was swept here'}",
            "differs": f"your {self.file or 'sweep file'} differs from theirs and is kept",
            "built in": "built in",
            "not written": f"its sweep file could not be written to {self.file}",
        }[self.state]
        problem = f" ({self.problem})" if self.problem else ""
        return f"board {self.board}: {text}{problem}; next: {self.next}"


def decode_sweep_file(data: bytes, board: str) -> str:
    """Return the text of a sweep file; refuse one that does not belong to the board."""
    where = BOARD_FILE.format(board)
    try:
        text = data.decode("utf-8")
        sweep = tomllib.loads(text)
    except (ValueError, RecursionError):
        raise SubmissionError(f"{where}: not valid TOML") from None
    # Escape codes and direction marks could deceive somebody who reads the file in a terminal.
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise SubmissionError(f"{where}: it contains characters that are not printable")
    if sweep.get("board") != board:
        raise SubmissionError(f"{where}: it belongs to another board")
    # In lower case, because some file systems ignore case.
    if board.lower() in RESERVED_BOARD_NAMES:
        raise SubmissionError(f"{where}: a board cannot have the reserved name {board!r}")
    return text


def save_sweep_files(results: Path, bundle: Bundle) -> list[ReceivedSweepFile]:
    """Write the sweep files of a merged bundle to their boards' folders, where there are none.

    The runs are already merged, so a file that cannot be written is reported and is no failure.
    """
    swept = {
        str(members["board"]): str(members["sweep"]) for members in read_all_board_members(results)
    }
    return [
        _save_sweep_file(
            results, board, decode_sweep_file(bundle.read_board(board), board), swept.get(board)
        )
        for board in bundle.boards
    ]


def _save_sweep_file(
    results: Path, board: str, text: str, swept_text: str | None
) -> ReceivedSweepFile:
    """Save one file; `swept_text` is what a board of that name was swept with here, if any was."""
    file = results / board / "sweep.toml"
    if swept_text is not None:
        state: SweepFileState = "same" if _is_same_text(swept_text, text) else "differs"
        own_file = str(file) if file.exists() else ""
        return ReceivedSweepFile(board, state, own_file, f"qbench show {board}")
    if board in list_builtin_boards() and load_builtin_board(board).text == text:
        return ReceivedSweepFile(board, "built in", "", f"qbench sweep {board}")
    try:
        state = _write_new_file(file, text)
    except OSError as error:
        advice = f"ask the sender for the file, then qbench sweep {file}"
        return ReceivedSweepFile(board, "not written", str(file), advice, error.strerror)
    problem = _find_sweep_problem(text, board)
    return ReceivedSweepFile(board, state, str(file), f"qbench sweep {file}", problem)


def _write_new_file(file: Path, text: str) -> SweepFileState:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # Mode "x" fails if the file exists, even as a dangling link, so nothing is overwritten.
        with open(file, "x", encoding="utf-8", newline="\n") as out:
            out.write(text)
    except FileExistsError:
        own_text = file.read_text(encoding="utf-8", errors="replace")
        return "same" if _is_same_text(own_text, text) else "differs"
    return "written"


def _is_same_text(own_text: str, text: str) -> bool:
    # `qbench submit` shortens absolute paths in the text that it sends.
    return text in (own_text, "\n".join(map(redact_paths, own_text.split("\n"))))


def _find_sweep_problem(text: str, board: str) -> str | None:
    """Return why the file cannot be swept here now, for instance a method that is not installed."""
    try:
        parse_sweep(text, f"{board}.toml")
    except UsageError as error:
        return clean_line(error)
    return None
