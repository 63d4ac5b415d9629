"""A bundle brings the sweep files of its boards, which are checked and never overwrite a file."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qbench.engines.local import local_engine
from qbench.execution.assignment import Execution
from qbench.submissions import bundle
from qbench.submissions.bundle import MANIFEST, encode_manifest
from qbench.submissions.canonical_zip import CanonicalZip
from qbench.submissions.merge import MergeOutcome, merge_bundle
from qbench.submissions.report import VerificationReport
from qbench.submissions.strict_json import SubmissionError
from qbench.submissions.submit import submit_runs
from qbench.submissions.sweep_files import decode_sweep_file
from qbench.submissions.verify import verify_open_bundle
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import load_builtin_board, parse_sweep
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.status import read_sweep_status
from tests.bundles import encode_members, open_bundle_data

# With a comment, a tab and a trailing line: the text must arrive byte for byte.
SWEEP_TEXT = (
    '# who\tknows\nboard = "b"\nmethods = ["fp"]\ntasks = ["toy"]\nformats = ["int2"]\n'
    "recipe.steps = 5\n"
)


def sweep_on_cpu(config: SweepConfig, results: Path) -> None:
    execution = Execution(device="cpu")
    with local_engine(config, execution, 1) as engine:
        assert run_sweep(config, results, engine, execution).code == 0


@pytest.fixture(scope="module")
def swept_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The submitter's results folder with the one finished run of board `b`."""
    results = tmp_path_factory.mktemp("swept")
    sweep_on_cpu(parse_sweep(SWEEP_TEXT, "s.toml"), results)
    return results


@pytest.fixture(scope="module")
def board_bundle(swept_results: Path) -> Path:
    """The bundle of board `b` with its sweep file."""
    written = submit_runs(swept_results, ["b"], swept_results / "b.zip")
    assert written.boards == ("b",) and "1 run and the sweep file of b, " in str(written)
    return swept_results / "b.zip"


def read_members(file: Path) -> dict[str, bytes]:
    archive = CanonicalZip(io.BytesIO(file.read_bytes()))
    return {name: archive.read_member(name, 1 << 30) for name in archive.members}


def replace_sweep_file(file: Path, out: Path, data: bytes, name: str = "b") -> Path:
    """Write the bundle with another sweep file and a manifest that fits."""
    members = read_members(file)
    manifest = json.loads(members[MANIFEST])
    digest = hashlib.sha256(data).hexdigest()
    manifest["boards"] = [{"name": name, "sha256": digest, "size": len(data)}]
    board = (f"boards/{name}.toml", data)
    runs = [member for member in members.items() if member[0].startswith("runs/")]
    out.write_bytes(encode_members([(MANIFEST, encode_manifest(manifest)), board, *runs]))
    return out


# ---- What a merge does with a sweep file ----


def test_a_recipient_can_sweep_the_board_and_trains_nothing(
    board_bundle: Path, tmp_path: Path
) -> None:
    (received,) = merge_bundle(tmp_path, board_bundle).boards
    file = tmp_path / "b" / "sweep.toml"
    assert (received.board, received.state) == ("b", "written")
    assert (received.file, received.next) == (str(file), f"qbench sweep {file}")
    assert file.read_text() == SWEEP_TEXT
    lines = read_sweep_status(parse_sweep(file.read_text(), "s.toml"), tmp_path)
    assert [line.run_state.state for line in lines] == ["cached"]
    again = merge_bundle(tmp_path, board_bundle)
    assert states_and_commands(again) == [("same", f"qbench sweep {file}")]
    last_line = f"board b: its sweep file is {file}; next: qbench sweep {file}"
    assert str(again).splitlines()[1] == last_line
    sweep_on_cpu(parse_sweep(SWEEP_TEXT, "s.toml"), tmp_path)
    after_sweep = merge_bundle(tmp_path, board_bundle)
    assert states_and_commands(after_sweep) == [("same", "qbench show b")]


def states_and_commands(outcome: MergeOutcome) -> list[tuple[str, str]]:
    return [(board.state, board.next) for board in outcome.boards]


def test_an_existing_sweep_file_is_kept(board_bundle: Path, tmp_path: Path) -> None:
    file, own_text = tmp_path / "b" / "sweep.toml", SWEEP_TEXT.replace("5", "6")
    file.parent.mkdir()
    file.write_text(own_text)
    outcome = merge_bundle(tmp_path, board_bundle)
    assert file.read_text() == own_text and outcome.added == 1
    message = f"board b: your {file} differs from theirs and is kept; next: qbench sweep {file}"
    assert str(outcome.boards[0]) == message


def test_links_are_not_followed_and_a_file_that_cannot_be_written_is_no_failure(
    board_bundle: Path, tmp_path: Path
) -> None:
    linked, blocked = tmp_path / "linked", tmp_path / "blocked"
    (linked / "b").mkdir(parents=True)
    (linked / "b" / "sweep.toml").symlink_to(tmp_path / "elsewhere")
    blocked.mkdir()
    (blocked / "b").write_text("")  # where the board's folder would be
    for results in (linked, blocked):
        outcome = merge_bundle(results, board_bundle)
        assert outcome.added == 1 and outcome.boards[0].state == "not written", outcome.boards
    assert not (tmp_path / "elsewhere").exists()


def test_a_shortened_board_sends_no_file(tmp_path: Path) -> None:
    sweep_on_cpu(parse_sweep(SWEEP_TEXT, "s.toml").shorten(2, None), tmp_path / "short")
    written = submit_runs(tmp_path / "short", ["b-2-steps"], tmp_path / "short.zip")
    assert written.boards == (), "its file belongs to another board"


def test_a_method_that_is_not_installed_is_reported(board_bundle: Path, tmp_path: Path) -> None:
    text = SWEEP_TEXT.replace('["fp"]', '["fp", "unheard"]').encode()
    changed = replace_sweep_file(board_bundle, tmp_path / "b.zip", text)
    (received,) = merge_bundle(tmp_path / "ours", changed).boards
    assert received.state == "written" and "unknown method 'unheard'" in (received.problem or "")


def test_the_file_of_a_built_in_board_is_not_written(board_bundle: Path, tmp_path: Path) -> None:
    quick = load_builtin_board("quick").text.encode()
    changed = replace_sweep_file(board_bundle, tmp_path / "q.zip", quick, "quick")
    (received,) = merge_bundle(tmp_path, changed).boards
    assert (received.state, received.next) == ("built in", "qbench sweep quick")
    assert not (tmp_path / "quick").exists()


def test_absolute_paths_are_shortened_in_the_submitted_file(
    swept_results: Path, tmp_path: Path
) -> None:
    members = json.loads((swept_results / "boards" / "b.json").read_text())
    task = '[[task]]\nname = "text"\ncorpus = "path:/home/ada/texts/c.txt"\n'
    members["sweep"] = SWEEP_TEXT + task
    (tmp_path / "boards").mkdir()
    (tmp_path / "boards" / "b.json").write_text(json.dumps(members))
    (tmp_path / "runs").symlink_to(swept_results / "runs")
    submit_runs(tmp_path, ["b"], tmp_path / "b.zip")
    assert b'corpus = "path:c.txt"' in read_members(tmp_path / "b.zip")["boards/b.toml"]


def test_a_bundle_of_version_1_without_boards_can_be_merged(
    board_bundle: Path, tmp_path: Path
) -> None:
    members = read_members(board_bundle)
    manifest: dict[str, Any] = {**json.loads(members[MANIFEST]), "bundle_version": 1}
    del manifest["boards"]
    runs = [member for member in members.items() if member[0].startswith("runs/")]
    old_bundle = tmp_path / "old.zip"
    old_bundle.write_bytes(encode_members([(MANIFEST, encode_manifest(manifest)), *runs]))
    outcome = merge_bundle(tmp_path / "ours", old_bundle)
    assert (outcome.added, outcome.boards) == (1, [])


def test_the_merge_command_says_what_to_do_next(board_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qbench", "merge", str(board_bundle), "--results", "ours"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    file = Path("ours") / "b" / "sweep.toml"
    last_line = f"board b: its sweep file is now {file}; next: qbench sweep {file}"
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == last_line


# ---- What is refused ----


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff", "not valid TOML"),
        (b"board = ", "not valid TOML"),
        (b"a = " + b"[" * 60_000, "not valid TOML"),
        (b"a = " + b"9" * 5000, "not valid TOML"),
        (b'board = "c"', "belongs to another board"),
        (b"title = 3", "belongs to another board"),
        ('board = "b" # \u202e'.encode(), "not printable"),
        ('board = "b"\ntitle = "\u2028"'.encode(), "not printable"),
    ],
)
def test_a_file_that_is_not_a_sweep_file_of_the_board_is_refused(
    data: bytes, message: str, board_bundle: Path, tmp_path: Path
) -> None:
    with pytest.raises(SubmissionError, match=message):
        decode_sweep_file(data, "b")
    changed = replace_sweep_file(board_bundle, tmp_path / "b.zip", data)
    outcome = merge_bundle(tmp_path / "ours", changed)
    assert not outcome.report.passed and message in outcome.report.failures()[0]
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize("name", ["runs", "boards", "Boards"])
def test_a_board_cannot_have_the_name_of_another_folder(name: str) -> None:
    with pytest.raises(SubmissionError, match="reserved name"):
        decode_sweep_file(f'board = "{name}"'.encode(), name)


@pytest.mark.parametrize("name", ["../b", ".b", "a/b", "b" * 65, "", "b\n"])
def test_an_invalid_board_name_is_refused(name: str, board_bundle: Path, tmp_path: Path) -> None:
    changed = replace_sweep_file(board_bundle, tmp_path / "b.zip", SWEEP_TEXT.encode(), name)
    outcome = merge_bundle(tmp_path / "ours", changed)
    assert not outcome.report.passed and not (tmp_path / "ours").exists()


@pytest.mark.parametrize("error", ["hash", "twice", "unlisted", "missing", "large"])
def test_a_manifest_that_is_wrong_about_boards_is_refused(
    error: str, board_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = read_members(board_bundle)
    manifest = json.loads(members.pop(MANIFEST))
    (listed,) = manifest["boards"]
    if error == "hash":
        listed["sha256"] = "0" * 64
    elif error == "twice":
        manifest["boards"] = [listed, listed]
    elif error == "unlisted":
        manifest["boards"] = []
    elif error == "missing":
        del members["boards/b.toml"]
    else:
        monkeypatch.setitem(bundle.MAX_BYTES_OF_FILE, bundle.BOARD_FILE, 8)
    data = encode_members([(MANIFEST, encode_manifest(manifest)), *members.items()])
    report = VerificationReport()
    try:
        verify_open_bundle(open_bundle_data(data), report, score=False)
    except SubmissionError:
        return
    # These two are found only when the file itself is read.
    assert not report.passed and error in ("hash", "large")


def test_a_change_of_any_byte_of_a_sweep_file_is_detected(board_bundle: Path) -> None:
    data = board_bundle.read_bytes()
    start = data.index(SWEEP_TEXT.encode())
    for place in range(start, start + len(SWEEP_TEXT)):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        report = VerificationReport()
        try:
            verify_open_bundle(open_bundle_data(changed), report, score=False)
        except SubmissionError:
            continue
        assert not report.passed
