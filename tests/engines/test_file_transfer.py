"""File transfer: files arrive whole or not at all, in a safe order, and only if they are new."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qbench.engines.file_transfer import (
    FilePart,
    FileReceiver,
    FileSender,
    list_files,
    read_parts,
)
from qbench.errors import QbenchError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source" / "export").mkdir(parents=True)
    return tmp_path / "source"


def receive(parts: Iterable[FilePart], folder: Path) -> list[str]:
    """Write parts into a folder, and return the names of the files in the order of arrival."""
    receiver, names = FileReceiver(folder), []
    for part in parts:
        receiver.write_part(part)
        names += [part.name] if part.last else []
    receiver.close()
    return names


@given(data=st.binary(max_size=50), size=st.integers(1, 20))
def test_any_file_arrives_in_parts_of_any_size(
    data: bytes, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("transfer")
    (folder / "file").write_bytes(data)
    parts = list(read_parts(folder, "file", size))
    assert max(len(part.data) for part in parts) <= size
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert receive(parts, folder / "to") == ["file"]
    assert (folder / "to" / "file").read_bytes() == data


def test_the_result_is_sent_last(source: Path, tmp_path: Path) -> None:
    for name in (
        "result.json",
        "spec.json",
        "export/weights.safetensors",
        "curve.jsonl",
        ".result.json.12",
    ):
        (source / name).write_text(name)
    assert receive(FileSender(source).send_remaining(), tmp_path / "target") == [
        "curve.jsonl",
        "export/weights.safetensors",
        "spec.json",
        "result.json",
    ]
    assert list_files(tmp_path / "target") == list_files(source)


def test_a_new_checkpoint_is_sent_once_and_deleted_when_the_run_is_over(
    source: Path, tmp_path: Path
) -> None:
    target, sender = tmp_path / "target", FileSender(source)
    (source / "curve.jsonl").write_text("1\n")
    assert receive(sender.send_checkpoint(), target) == []
    for step in range(2):
        (source / "new").write_text(f"step {step}")
        (source / "new").replace(source / "checkpoint")
        (source / "curve.jsonl").write_text("1\n" * (step + 2))
        assert receive(sender.send_checkpoint(), target) == ["checkpoint", "curve.jsonl"]
        assert receive(sender.send_checkpoint(), target) == []
        assert (target / "checkpoint").read_text() == f"step {step}"
    (source / "checkpoint").unlink()
    (source / "result.json").write_text("{}")
    assert receive(sender.send_remaining(), target) == ["result.json"]
    assert not (target / "checkpoint").exists()


def test_a_file_that_is_replaced_while_it_is_read_arrives_as_it_was(
    source: Path, tmp_path: Path
) -> None:
    (source / "checkpoint").write_bytes(b"a" * 10)
    parts = read_parts(source, "checkpoint", 4)
    first = next(parts)
    (source / "new").write_bytes(b"b" * 10)
    (source / "new").replace(source / "checkpoint")
    receive([first, *parts], tmp_path)
    assert (tmp_path / "checkpoint").read_bytes() == b"a" * 10


def test_an_incomplete_file_leaves_the_version_before(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text("before")
    half = FilePart("checkpoint", b"half of ", False)
    receive([half], tmp_path)
    receive([half, FilePart("spec.json", b"{}", True)], tmp_path)
    assert (tmp_path / "checkpoint").read_text() == "before"
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "spec.json"}


@pytest.mark.parametrize("name", ["../result.json", "/etc/x", "a/../../b", ""])
def test_no_file_is_written_outside_the_folder_of_its_run(name: str, tmp_path: Path) -> None:
    with pytest.raises(QbenchError, match="not a path in the run's folder"):
        FileReceiver(tmp_path / "run").write_part(FilePart(name, b"x", True))
    assert not list(tmp_path.iterdir())
