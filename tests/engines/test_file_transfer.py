"""Files on their way between machines: whole or not at all, in an order that can be believed, and only what is new."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.engines.file_transfer import Piece, Receiver, Sender, files, read
from qbench.errors import QbenchError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "there" / "export").mkdir(parents=True)
    return tmp_path / "there"


def taken(pieces: Iterable[Piece], folder: Path) -> list[str]:
    """The names of the files that arrived, as they arrived."""
    receiver, names = Receiver(folder), []
    for piece in pieces:
        receiver.take(piece)
        names += [piece.name] if piece.last else []
    receiver.close()
    return names


@given(data=st.binary(max_size=50), size=st.integers(1, 20))
def test_any_file_in_pieces_of_any_size_arrives(
    data: bytes, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("parcels")
    (folder / "file").write_bytes(data)
    pieces = list(read(folder, "file", size))
    assert max(len(piece.data) for piece in pieces) <= size and [p.last for p in pieces] == [
        False
    ] * (len(pieces) - 1) + [True]
    assert (
        taken(pieces, folder / "to") == ["file"] and (folder / "to" / "file").read_bytes() == data
    )


def test_what_says_that_a_run_is_over_comes_last(home: Path, tmp_path: Path) -> None:
    for name in (
        "result.json",
        "spec.json",
        "export/weights.safetensors",
        "curve.jsonl",
        ".result.json.12",
    ):
        (home / name).write_text(name)
    assert taken(Sender(home).rest(), tmp_path / "here") == [
        "curve.jsonl",
        "export/weights.safetensors",
        "spec.json",
        "result.json",
    ]
    assert files(tmp_path / "here") == files(home)


def test_a_checkpoint_is_sent_when_it_is_new_and_is_gone_when_the_run_is_over(
    home: Path, tmp_path: Path
) -> None:
    here, sender = tmp_path / "here", Sender(home)
    (home / "curve.jsonl").write_text("1\n")
    assert taken(sender.checkpoint(), here) == []
    for step in range(2):
        (home / "new").write_text(f"step {step}")
        (home / "new").replace(home / "checkpoint")
        (home / "curve.jsonl").write_text("1\n" * (step + 2))
        assert taken(sender.checkpoint(), here) == ["checkpoint", "curve.jsonl"]
        assert taken(sender.checkpoint(), here) == []
        assert (here / "checkpoint").read_text() == f"step {step}"
    (home / "checkpoint").unlink()
    (home / "result.json").write_text("{}")
    assert taken(sender.rest(), here) == ["result.json"] and not (here / "checkpoint").exists()


def test_a_file_that_is_replaced_while_it_is_read_arrives_as_it_was(
    home: Path, tmp_path: Path
) -> None:
    (home / "checkpoint").write_bytes(b"a" * 10)
    pieces = read(home, "checkpoint", 4)
    first = next(pieces)
    (home / "new").write_bytes(b"b" * 10)
    (home / "new").replace(home / "checkpoint")
    taken([first, *pieces], tmp_path)
    assert (tmp_path / "checkpoint").read_bytes() == b"a" * 10


def test_a_file_that_does_not_come_to_its_end_leaves_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("before")
    taken([Piece("checkpoint", b"half of ", False)], tmp_path)
    taken([Piece("checkpoint", b"half of ", False), Piece("spec.json", b"{}", True)], tmp_path)
    assert (tmp_path / "checkpoint").read_text() == "before" and {
        p.name for p in tmp_path.iterdir()
    } == {"checkpoint", "spec.json"}


@pytest.mark.parametrize("name", ["../result.json", "/etc/x", "a/../../b", ""])
def test_no_file_lands_outside_of_its_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="by the name of"):
        Receiver(tmp_path / "run").take(Piece(name, b"x", True))
    assert not list(tmp_path.iterdir())
