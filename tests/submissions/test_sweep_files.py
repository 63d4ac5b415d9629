"""Boards travel with their runs: whoever receives them knows what to ask for next, and nothing that is there is written over."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.local import local_engine
from qbench.execution.assignment import Execution
from qbench.submissions import canonical_zip
from qbench.submissions.bundle import MANIFEST, Bundle, spell
from qbench.submissions.merge import merge
from qbench.submissions.report import Report
from qbench.submissions.strict_json import Refused
from qbench.submissions.submit import submit
from qbench.submissions.sweep_files import checked
from qbench.submissions.verify import examine
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import builtin_board, read_text
from qbench.sweeps.coordinator import sweep
from qbench.sweeps.status import status

TEXT = '# who\tknows\nboard = "b"\nmethods = ["fp"]\ntasks = ["toy"]\nformats = ["int2"]\nrecipe.steps = 5\n'


def swept(config: SweepConfig, results: Path) -> None:
    with local_engine(config, Execution(device="cpu"), 1) as engine:
        assert sweep(config, results, engine, Execution(device="cpu")).code == 0


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("theirs")
    swept(read_text(TEXT, "s.toml"), results)
    return results


@pytest.fixture(scope="module")
def good(theirs: Path) -> Path:
    found = submit(theirs, ["b"], theirs / "b.zip")
    assert found.boards == ("b",) and "1 run and the sweep file of b, " in str(found)
    return theirs / "b.zip"


def members(file: Path) -> dict[str, bytes]:
    archive = canonical_zip.Archive(io.BytesIO(file.read_bytes()))
    return {name: archive.read(name, 1 << 30) for name in archive.members}


def with_board(file: Path, out: Path, data: bytes, name: str = "b") -> Path:
    """The bundle with another sweep file in it, in a manifest that fits."""
    import hashlib

    found = members(file)
    manifest = json.loads(found[MANIFEST])
    manifest["boards"] = [
        {"name": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    ]
    runs = {path: own for path, own in found.items() if path.startswith("runs/")}
    with open(out, "wb") as archive:
        canonical_zip.write(
            archive, [(MANIFEST, spell(manifest)), (f"boards/{name}.toml", data), *runs.items()]
        )
    return out


def test_who_receives_runs_sweeps_their_board_and_trains_nothing(
    good: Path, tmp_path: Path
) -> None:
    (taken,) = merge(tmp_path, good).boards
    file = tmp_path / "b" / "sweep.toml"
    assert (taken.board, taken.state, taken.file, taken.next) == (
        "b",
        "written",
        str(file),
        f"qbench sweep {file}",
    )
    assert file.read_text() == TEXT
    assert [
        line.standing.state for line in status(read_text(file.read_text(), "s.toml"), tmp_path)
    ] == ["cached"]
    again = merge(tmp_path, good)
    assert [(board.state, board.next) for board in again.boards] == [
        ("same", f"qbench sweep {file}")
    ]
    swept(read_text(TEXT, "s.toml"), tmp_path)
    assert [(board.state, board.next) for board in merge(tmp_path, good).boards] == [
        ("same", "qbench show b")
    ]
    assert (
        str(again).splitlines()[1]
        == f"board b: its sweep file is {file}; next: qbench sweep {file}"
    )


def test_a_sweep_file_that_is_there_stays(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "b" / "sweep.toml"
    file.parent.mkdir()
    file.write_text(TEXT.replace("5", "6"))
    found = merge(tmp_path, good)
    assert file.read_text() == TEXT.replace("5", "6") and found.added == 1
    assert (
        str(found.boards[0])
        == f"board b: your {file} differs from theirs and stays; next: qbench sweep {file}"
    )


def test_a_link_is_not_followed_and_a_folder_that_cannot_be_made_fails_nothing(
    good: Path, tmp_path: Path
) -> None:
    linked, blocked = tmp_path / "linked", tmp_path / "blocked"
    (linked / "b").mkdir(parents=True)
    (linked / "b" / "sweep.toml").symlink_to(tmp_path / "elsewhere")
    blocked.mkdir()
    (blocked / "b").write_text("")
    for results in (linked, blocked):
        found = merge(results, good)
        assert found.added == 1 and found.boards[0].state == "not written", found.boards
    assert not (tmp_path / "elsewhere").exists()


def test_a_board_that_was_cut_short_or_needs_what_is_not_here(
    theirs: Path, good: Path, tmp_path: Path
) -> None:
    swept(read_text(TEXT, "s.toml").shortened(2, None), tmp_path / "short")
    assert submit(tmp_path / "short", ["b-2-steps"], tmp_path / "short.zip").boards == (), (
        "its file is another board's"
    )
    strange = TEXT.replace('["fp"]', '["fp", "unheard"]').encode()
    (taken,) = merge(tmp_path / "ours", with_board(good, tmp_path / "strange.zip", strange)).boards
    assert taken.state == "written" and "unknown method 'unheard'" in (taken.problem or "")


def test_the_built_in_board_needs_no_file(theirs: Path, good: Path, tmp_path: Path) -> None:
    quick = builtin_board("quick").text.encode()
    (taken,) = merge(tmp_path, with_board(good, tmp_path / "q.zip", quick, "quick")).boards
    assert (taken.state, taken.next) == ("built in", "qbench sweep quick") and not (
        tmp_path / "quick"
    ).exists()


def test_places_of_the_machine_do_not_travel(theirs: Path, tmp_path: Path) -> None:
    roster = json.loads((theirs / "boards" / "b.json").read_text())
    (tmp_path / "boards").mkdir()
    (tmp_path / "runs").symlink_to(theirs / "runs")
    roster["sweep"] = TEXT + '[[task]]\nname = "text"\ncorpus = "path:/home/ada/texts/c.txt"\n'
    (tmp_path / "boards" / "b.json").write_text(json.dumps(roster))
    submit(tmp_path, ["b"], tmp_path / "b.zip")
    assert b'corpus = "path:c.txt"' in members(tmp_path / "b.zip")["boards/b.toml"]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff", "not TOML"),
        (b"board = ", "not TOML"),
        (b"a = " + b"[" * 60_000, "not TOML"),
        (b"a = " + b"9" * 5000, "not TOML"),
        (b'board = "c"', "of another board"),
        (b"title = 3", "of another board"),
        ('board = "b" # \u202e'.encode(), "not to be printed"),
        ('board = "b"\ntitle = "\u2028"'.encode(), "not to be printed"),
    ],
)
def test_what_is_no_sweep_file_of_the_board_is_refused(
    data: bytes, sentence: str, good: Path, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=sentence):
        checked(data, "b")
    found = merge(tmp_path / "ours", with_board(good, tmp_path / "b.zip", data))
    assert (
        not found.report.passed
        and sentence in found.report.failures()[0]
        and not (tmp_path / "ours").exists()
    )


@pytest.mark.parametrize("name", ["runs", "boards", "Boards"])
def test_a_board_cannot_be_called_like_a_folder_of_ours(name: str) -> None:
    with pytest.raises(Refused, match="cannot be called so"):
        checked(f'board = "{name}"'.encode(), name)


@pytest.mark.parametrize("name", ["../b", ".b", "a/b", "b" * 65, "", "b\n"])
def test_a_name_that_is_no_boards_is_refused(name: str, good: Path, tmp_path: Path) -> None:
    found = merge(tmp_path / "ours", with_board(good, tmp_path / "b.zip", TEXT.encode(), name))
    assert not found.report.passed and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("meddle", ["hash", "twice", "unlisted", "missing", "large"])
def test_a_manifest_that_lies_about_boards_is_found_out(
    meddle: str, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qbench.submissions import bundle

    found = members(good)
    manifest = json.loads(found[MANIFEST])
    files: list[tuple[str, bytes]] = [
        (name, data) for name, data in found.items() if name != MANIFEST
    ]
    (listed,) = manifest["boards"]
    if meddle == "hash":
        listed["sha256"] = "0" * 64
    elif meddle == "twice":
        manifest["boards"] = [listed, listed]
    elif meddle == "unlisted":
        manifest["boards"] = []
    elif meddle == "missing":
        files = files[1:]
    else:
        monkeypatch.setitem(bundle.MOST, bundle.BOARD, 8)
    out = io.BytesIO()
    canonical_zip.write(out, [(MANIFEST, spell(manifest)), *files])
    report = Report()
    try:
        examine(Bundle(out), report, score=False)
    except Refused:
        return
    assert not report.passed and meddle in ("hash", "large")


def test_every_byte_of_a_sweep_file_counts(good: Path) -> None:
    data = good.read_bytes()
    start = data.index(TEXT.encode())
    for place in range(start, start + len(TEXT)):
        report = Report()
        try:
            examine(
                Bundle(io.BytesIO(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])),
                report,
                score=False,
            )
        except Refused:
            continue
        assert not report.passed


def test_a_bundle_without_boards_of_the_first_format_is_still_read(
    good: Path, tmp_path: Path
) -> None:
    found = members(good)
    manifest: dict[str, Any] = {**json.loads(found[MANIFEST]), "bundle_version": 1}
    del manifest["boards"]
    with open(tmp_path / "old.zip", "wb") as archive:
        runs = [(name, data) for name, data in found.items() if name.startswith("runs/")]
        canonical_zip.write(archive, [(MANIFEST, spell(manifest)), *runs])
    merged = merge(tmp_path / "ours", tmp_path / "old.zip")
    assert (merged.added, merged.boards) == (1, [])


def test_the_command_says_what_to_do_next(good: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qbench", "merge", str(good), "--results", "ours"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ},
    )  # fmt: skip
    file = Path("ours") / "b" / "sweep.toml"
    assert (
        done.returncode == 0
        and done.stdout.splitlines()[-1]
        == f"board b: its sweep file is now {file}; next: qbench sweep {file}"
    )
