"""The sweep files that travel with a bundle's runs: which boards they are of, so that whoever receives them can ask for the same runs.

A file is a stranger's: text without anything that moves a terminal, TOML, and of the board that it is listed under. It is never written over one
that is there, and not acted upon: what it asks for is trained, and looked at, when somebody sweeps it.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qbench.errors import UsageError
from qbench.store.board_members import read_all
from qbench.submissions.bundle import Bundle
from qbench.submissions.strict_json import Refused
from qbench.sweepfile.read import builtin_board, builtin_boards, read_text
from qbench.util.redact_paths import unplaced
from qbench.util.text import plain

State = Literal["written", "same", "differs", "built in", "not written"]
TAKEN = ("runs", "boards")
"""Folders of a results folder that are no board's."""


@dataclass(frozen=True)
class Taken:
    """What became of one board's sweep file, and what to do next."""

    board: str
    state: State
    file: str
    next: str
    problem: str | None = None
    """Why it was not written, or why it cannot be swept here yet."""

    def __str__(self) -> str:
        told = {
            "written": f"its sweep file is now {self.file}",
            "same": f"its sweep file is {self.file or 'the one that was swept here'}",
            "differs": f"your {self.file or 'sweep file'} differs from theirs and stays",
            "built in": "built in",
            "not written": f"its sweep file could not be written to {self.file}",
        }[self.state]
        return f"board {self.board}: {told}{f' ({self.problem})' if self.problem else ''}; next: {self.next}"


def checked(data: bytes, board: str) -> str:
    """The text of a sweep file, or why it is none of that board's."""
    where = f"boards/{board}.toml"
    try:
        text = data.decode("utf-8")
        found = tomllib.loads(text)
    except (ValueError, RecursionError):
        raise Refused(f"{where}: not TOML") from None
    if not all(c.isprintable() or c in "\n\t" for c in text):
        raise Refused(f"{where}: characters that are not to be printed")
    if found.get("board") != board or board.lower() in TAKEN:
        raise Refused(f"{where}: it is of another board, or of one that cannot be called so")
    return text


def take(results: Path, bundle: Bundle) -> list[Taken]:
    """Put the sweep files where boards have them. The runs are in by then: what goes wrong here is told, and fails nothing."""
    swept = {str(roster["board"]): str(roster["sweep"]) for roster in read_all(results)}
    return [
        _take(results, board, checked(bundle.read_board(board), board), swept.get(board))
        for board in bundle.boards
    ]


def _take(results: Path, board: str, text: str, swept: str | None) -> Taken:
    """`swept` is what the board of that name was swept with here."""
    show, file = f"qbench show {board}", results / board / "sweep.toml"
    if swept is not None:
        there = str(file) if file.exists() else ""
        return Taken(board, "same" if _same(swept, text) else "differs", there, show)
    if board in builtin_boards() and builtin_board(board).text == text:
        return Taken(board, "built in", "", f"qbench sweep {board}")
    try:
        return Taken(
            board, _write(file, text), str(file), f"qbench sweep {file}", _unreadable(text, board)
        )
    except OSError as error:
        return Taken(
            board, "not written", str(file), f"ask for it, then qbench sweep {file}", error.strerror
        )


def _write(file: Path, text: str) -> State:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(file, "x", encoding="utf-8", newline="\n") as out:
            out.write(text)
    except FileExistsError:
        return (
            "same" if _same(file.read_text(encoding="utf-8", errors="replace"), text) else "differs"
        )
    return "written"


def _same(own: str, text: str) -> bool:
    """Theirs has lost the places of their machine."""
    return text in (own, "\n".join(map(unplaced, own.split("\n"))))


def _unreadable(text: str, board: str) -> str | None:
    """Why it cannot be swept here as things are: a method that is not installed, for one."""
    try:
        read_text(text, f"{board}.toml")
    except UsageError as error:
        return plain(error)
    return None
