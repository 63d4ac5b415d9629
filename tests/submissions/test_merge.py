"""Taking others' runs in: all or none, never over what is there, and the board says whose they are and what is believed of them."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import qbench
from qbench import cli
from qbench.boards.csv_files import read_runs_csv, runs_csv, to_csv
from qbench.boards.markdown import to_markdown
from qbench.checks.reproduce import reproduce
from qbench.errors import LockedError, QbenchError
from qbench.runs.attempts import Attempt, all_attempts, attempts
from qbench.runs.lookup import latest
from qbench.runs.state import standing
from qbench.store.check import check, rebuild
from qbench.store.database import Store
from qbench.store.file_rows import row_of
from qbench.submissions import merge as merging
from qbench.submissions.merge import STAGE, merge, settle
from qbench.submissions.submit import submit
from qbench.util import text
from tests.bundles import assemble, packed, train_runs, unpack, write_roster
from tests.made_runs import config, make, result

Snapshot = dict[str, bytes]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("trained")
    train_runs(results)
    return results


@pytest.fixture(scope="module")
def good(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(trained, tmp_path_factory.mktemp("bundle") / "b.qbench.zip")


@pytest.fixture
def empty(trained: Path, tmp_path: Path) -> Path:
    """A results folder that asks for the board and has no run of it."""
    shutil.copytree(trained / "boards", tmp_path / "results" / "boards")
    return tmp_path / "results"


def ste(results: Path) -> str:
    return next(a.key for a in all_attempts(results) if (a.read("spec") or {})["method"] == "ste")


def files(folder: Path) -> Snapshot:
    """Every file below a folder but the store's own."""
    found = (
        p for p in folder.rglob("*") if p.is_file() and not p.name.startswith((".lock", "qbench"))
    )
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def changed(bundle: Path, key: str, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another result for one run, which agrees with itself; without its artefact, for which it would be found out."""
    manifest, own = unpack(bundle.read_bytes())
    data = json.loads(own[key]["result.json"])
    change(data)
    own[key] = {name: x for name, x in own[key].items() if name != "weights.safetensors"} | {
        "result.json": json.dumps(data).encode()
    }
    out.write_bytes(assemble(manifest, own))
    return out


def better(data: dict[str, Any]) -> None:
    data["scores"] |= {name: data["scores"][name] - 0.5 for name in ("packed", "simulated")}
    data["metrics"]["loss"] -= 0.5


def cells(results: Path, method: str = "ste") -> tuple[Any, list[str]]:
    """The cell of a method on the board, and the notes that it refers to."""
    section = qbench.results(results).board("b").sections[0]
    cell = next(row for row in section.rows if row.method == method).cells[0]
    return cell, [section.notes[n - 1] for n in cell.notes]


# ---- taking in ----


def test_a_bundle_comes_in_and_the_board_says_that_it_was_evaluated(
    empty: Path, good: Path, trained: Path
) -> None:
    found = merge(empty, good)
    assert (found.added, found.present, dict(found.levels)) == (3, 0, {"verified": 3})
    cell, notes = cells(empty)
    assert cell.score.value == cells(trained)[0].score.value
    assert notes == [
        "1 of 1 run merged: their artefacts were evaluated here, nobody trained them here"
    ]
    assert cells(trained)[1] == []
    assert check(empty).agrees and set(qbench.results(empty).runs["trust"]) == {"verified"}
    copied = {
        name for name in files(empty) if name.startswith("runs") and not name.endswith("trust.json")
    }
    assert copied == {name for name in files(trained) if name.startswith("runs")}
    assert all(files(empty)[name] == files(trained)[name] for name in copied)


def test_without_evaluation_the_board_says_claimed(empty: Path, good: Path) -> None:
    assert dict(merge(empty, good, score=False).levels) == {"claimed": 3}
    assert cells(empty)[1] == ["1 of 1 run claimed, not verified here"]


def test_the_same_bundle_again_adds_nothing_and_may_raise_what_is_believed(
    empty: Path, good: Path
) -> None:
    merge(empty, good, score=False)
    before = files(empty)
    again = merge(empty, good, score=False)
    assert (again.added, again.present, again.raised) == (0, 3, 0) and files(empty) == before
    raised = merge(empty, good)
    assert (raised.added, raised.present, raised.raised) == (0, 3, 3)
    assert {name for name, data in files(empty).items() if before[name] != data} == {
        n for n in before if n.endswith("trust.json")
    }
    assert set(qbench.results(empty).runs["trust"]) == {"verified"} and check(empty).agrees
    merge(empty, good, score=False)
    assert set(qbench.results(empty).runs["trust"]) == {"verified"}


def test_own_runs_stay_own_when_their_bundle_comes_back(
    trained: Path, good: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    before = files(results)
    found = merge(results, good, score=False)
    assert (found.added, found.present, found.raised) == (0, 3, 0) and files(results) == before
    assert qbench.results(results).runs["trust"].isna().all()


def test_the_store_made_again_believes_the_same(empty: Path, good: Path) -> None:
    merge(empty, good, score=False)
    before = qbench.results(empty).runs
    rebuild(empty)
    pd.testing.assert_frame_equal(qbench.results(empty).runs, before)


def test_where_a_run_came_from_is_written_down_here(
    empty: Path, trained: Path, tmp_path: Path
) -> None:
    submit(trained, ["b"], tmp_path / "b.zip", note="from the lab", by="A. Author")
    merge(empty, tmp_path / "b.zip", score=False)
    trust = Attempt(Path(latest(empty, ste(empty))["folder"])).read("trust") or {}
    assert (trust["level"], trust["by"], trust["note"], trust["attempt"]) == (
        "claimed",
        "A. Author",
        "from the lab",
        1,
    )
    assert trust["qbench"] == qbench.__version__ and len(trust["manifest_sha256"]) == 64


# ---- all or none ----


def test_a_bundle_that_fails_leaves_no_trace(empty: Path, good: Path, tmp_path: Path) -> None:
    before = files(empty)
    forged = changed(
        good, ste_of(good), tmp_path / "forged.zip", lambda data: data["scores"].update(packed=0.0)
    )
    found = merge(empty, forged, score=False)
    assert not found.report.passed and str(found) == "nothing merged"
    assert (
        found.added == 0
        and files(empty) == before
        and [p.name for p in empty.iterdir()] == ["boards"]
    )


def ste_of(bundle: Path) -> str:
    own = unpack(bundle.read_bytes())[1]
    return next(key for key, f in own.items() if json.loads(f["spec.json"])["method"] == "ste")


@pytest.mark.parametrize("after", range(0, 22, 3))
def test_a_full_disk_takes_none_and_is_one_line(
    empty: Path, good: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    with Store(empty) as store:
        store.snapshot()
    before, left = files(empty), [after]
    honest = Path.write_bytes

    def write(path: Path, data: bytes) -> int:
        if STAGE not in path.parts:
            return honest(path, data)
        left[0] -= 1
        if left[0] < 0:
            honest(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return honest(path, data)

    monkeypatch.setattr(Path, "write_bytes", write)
    if after >= 15:
        assert merge(empty, good, score=False).added == 3
        return
    with pytest.raises(QbenchError, match="No space left on device; nothing of") as caught:
        merge(empty, good, score=False)
    assert "\n" not in str(caught.value) and files(empty) == before
    monkeypatch.undo()
    assert merge(empty, good, score=False).added == 3


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_move_that_fails_takes_the_others_back(
    empty: Path, good: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    before, left, honest = files(empty), [number], Path.rename

    def rename(path: Path, target: Path) -> Path:
        left[0] -= STAGE in path.parts
        if not left[0]:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(target))
        return honest(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(QbenchError, match="nothing of"):
        merge(empty, good, score=False)
    assert (
        files(empty) == before
        and not list((empty / "runs").iterdir())
        and not (empty / STAGE).exists()
    )


def test_a_store_that_cannot_take_them_takes_the_runs_back(
    empty: Path, good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(empty / "qbench.duckdb"))

    monkeypatch.setattr(Store, "_insert", full)
    with Store(tmp := empty.parent / "made"):
        pass
    shutil.copy(tmp / "qbench.duckdb", empty / "qbench.duckdb")
    with pytest.raises(QbenchError, match="No space left"):
        merge(empty, good, score=False)
    assert not list(all_attempts(empty))


def test_a_merge_that_was_killed_is_done_again(empty: Path, good: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from qbench.submissions import merge\n"
        "honest, left = Path.rename, [2]\n"
        "def rename(path, target):\n"
        "    left[0] -= merge.STAGE in path.parts\n"
        "    return honest(path, target) if left[0] else os._exit(9)\n"
        "Path.rename = rename\n"
        f"merge.merge(Path({str(empty)!r}), Path({str(good)!r}), score=False)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert (empty / STAGE).exists() and len(list(all_attempts(empty))) == 1
    found = merge(empty, good, score=False)
    assert (
        (found.added, found.present) == (2, 1)
        and not (empty / STAGE).exists()
        and check(empty).agrees
    )
    assert len(qbench.results(empty).runs) == 3


def test_a_folder_that_is_being_written_to_is_left_alone(empty: Path, good: Path) -> None:
    with Store(empty), pytest.raises(LockedError):
        merge(empty, good, score=False)
    assert not list(all_attempts(empty))


# ---- conflicts ----


def test_other_numbers_under_one_key_are_a_conflict_and_the_first_is_shown(
    empty: Path, good: Path, tmp_path: Path
) -> None:
    merge(empty, good, score=False)
    key, (cell, _) = ste(empty), cells(empty)
    before = files(empty)
    found = merge(empty, changed(good, key, tmp_path / "other.zip", better), score=False)
    assert (found.added, found.present) == (1, 2)
    assert before.items() <= files(empty).items(), "something was overwritten"
    assert [(a.number, (a.read("result") or {})["attempt"]) for a in attempts(empty, key)] == [
        (1, 1),
        (2, 2),
    ]
    assert cells(empty)[0].score == cell.score
    assert qbench.results(empty).board("b").notes == (
        f"conflict: 1 run with another attempt of other numbers: qbench show {key[:12]}",
    )
    shown = latest(empty, key)
    assert shown["attempt"] == 1 and [a["trust"] for a in shown["attempts"]] == [
        "claimed",
        "claimed",
    ]
    again = merge(empty, tmp_path / "other.zip", score=False)
    assert (again.added, again.present) == (0, 3)


@pytest.mark.parametrize("own_state", ["ok", "diverged"])
def test_a_submission_never_takes_the_place_of_an_own_run(
    trained: Path, good: Path, tmp_path: Path, own_state: str
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    key = ste(results)
    if own_state == "diverged":
        attempt = attempts(results, key)[0]
        short = {
            k: (attempt.read("result") or {})[k]
            for k in ("result_version", "key", "attempt", "started", "finished")
        }
        attempt.write(
            "result",
            {**short, "state": "failed", "reason": "diverged", "message": "the loss is nan"},
        )
        rebuild(results)
    merge(results, changed(good, key, tmp_path / "other.zip", better), score=False)
    cell, notes = cells(results)
    assert cell.state == ("ok" if own_state == "ok" else "failed") and not any(
        "claimed" in note for note in notes
    )
    assert qbench.results(results).board("b").notes[0].startswith("conflict: 1 run")
    decides = standing(results, key).attempt
    assert decides and decides.number == 1 and latest(results, key)["attempt"] == 1


def test_a_difference_below_the_minimum_effect_is_no_conflict(
    empty: Path, good: Path, tmp_path: Path
) -> None:
    def slightly(data: dict[str, Any]) -> None:
        data["scores"] |= {name: data["scores"][name] + 1e-4 for name in ("packed", "simulated")}
        data["metrics"]["loss"] += 1e-4

    merge(empty, good, score=False)
    merge(empty, changed(good, ste(empty), tmp_path / "other.zip", slightly), score=False)
    assert len(attempts(empty, ste(empty))) == 2 and qbench.results(empty).board("b").notes == ()


def test_a_submission_fills_the_place_of_an_own_mishap(
    trained: Path, good: Path, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    shutil.copytree(trained, results)
    attempt = attempts(results, ste(results))[0]
    short = {
        k: (attempt.read("result") or {})[k]
        for k in ("result_version", "key", "attempt", "started", "finished")
    }
    attempt.write("result", {**short, "state": "failed", "reason": "oom", "message": "no room"})
    rebuild(results)
    merge(results, good, score=False)
    cell, notes = cells(results)
    assert cell.state == "ok" and notes == ["1 of 1 run claimed, not verified here"]
    assert [a.number for a in attempts(results, ste(results))] == [1, 2] and qbench.results(
        results
    ).board("b").notes == ()


# ---- trust that is earned ----


def test_a_run_that_is_trained_again_here_is_reproduced(empty: Path, good: Path) -> None:
    merge(empty, good, score=False)
    key = ste(empty)
    found = reproduce(empty, key)
    assert (
        found.verdict == "same"
        and settle(empty, key, found.verdict) == "reproduced"
        and settle(empty, key, "same") is None
    )
    assert cells(empty)[1] == ["1 of 1 run merged, and reproduced here"]
    assert check(empty).agrees and latest(empty, key)["trust"]["level"] == "reproduced"
    merge(empty, good, score=False)
    assert latest(empty, key)["trust"]["level"] == "reproduced"


def test_a_run_that_comes_to_something_else_is_not(empty: Path, good: Path, tmp_path: Path) -> None:
    key = ste_of(good)
    merge(
        empty,
        changed(
            good, key, tmp_path / "b.zip", lambda d: [better(d), d.update(artefact_sha256="0" * 64)]
        ),
        score=False,
    )
    found = reproduce(empty, key)
    assert found.verdict == "different" and settle(empty, key, found.verdict) is None
    assert cells(empty)[1] == ["1 of 1 run claimed, not verified here"]


def test_trust_in_a_bundle_is_worth_nothing(
    trained: Path, empty: Path, good: Path, tmp_path: Path
) -> None:
    """Whoever submits runs that are `reproduced` in his own folder submits claims."""
    theirs = tmp_path / "theirs"
    shutil.copytree(empty, theirs)
    merge(theirs, good, score=False)
    for attempt in all_attempts(theirs):
        attempt.write("trust", {**(attempt.read("trust") or {}), "level": "reproduced"})
    merge(empty, packed(theirs, tmp_path / "b.zip"), score=False)
    assert set(qbench.results(empty).runs["trust"]) == {"claimed"}


# ---- what a stranger may write ----

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;owned\x07",
    "=HYPERLINK(1)",
    "@SUM(1)",
    "<script>alert(1)</script>",
    "a|b",
    "\u202egnp.exe",
    "nul\x00",
    "x\r\ny",
    "[a](javascript:b)",
)


def test_hostile_words_reach_no_terminal_page_or_spreadsheet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = dict(enumerate(HOSTILE))
    specs = [config(seed) for seed in words]
    for seed, word in words.items():
        attempt = make(tmp_path, specs[seed])
        if seed % 2:
            attempt.write(
                "result",
                result(0.5, state="failed", reason="plugin", message=word)
                | {"key": attempt.key, "attempt": 1},
            )
        attempt.write(
            "env",
            {
                "device_name": word,
                "cpu": word,
                "platform": word,
                "qbench": word,
                "commit": word,
                "threads": 1,
            },
        )
        attempt.write("trust", {"level": "claimed", "by": word, "merged": word})
        assert row_of(attempt)
    write_roster(tmp_path, [(specs[0], [spec.key for spec in specs])], len(specs))
    found = qbench.results(tmp_path)
    board, frame = found.board("b"), found.board_runs("b")
    printed = {"csv": to_csv(board), "markdown": to_markdown(board), "runs": runs_csv(frame)}
    for command in (("show", "b"), *(("show", spec.key) for spec in specs)):
        printed[" ".join(command)] = shown(capsys, tmp_path, *command)
    for name, page in printed.items():
        assert all(c == "\n" or c.isprintable() for c in page), name
        assert "<script" not in printed["markdown"] and "](javascript" not in printed["markdown"]
    back = read_runs_csv(io.StringIO(printed["runs"]))
    assert set(back["device_name"].fillna("")) == {text.plain(word, 10_000) for word in HOSTILE}
    for line in printed["runs"].splitlines() + printed["csv"].splitlines():
        assert not any(part.startswith(("=", "@")) for part in line.replace('"', "").split(","))


def shown(capsys: pytest.CaptureFixture[str], results: Path, *words: str) -> str:
    capsys.readouterr()
    cli.cli.main([*words, "--results", str(results)], standalone_mode=False)
    return capsys.readouterr().out


def test_an_old_table_of_runs_without_the_column_still_makes_the_board(trained: Path) -> None:
    frame = qbench.results(trained).board_runs("b")
    from qbench.boards.build import build_board

    assert build_board(frame.drop(columns="trust")) == build_board(frame)
    assert build_board(frame.assign(trust="claimed")).sections[0].notes


# ---- the commands ----


def command(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "qbench", *map(str, words)], capture_output=True, text=True, cwd="/"
    )


def test_the_three_commands(trained: Path, empty: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.qbench.zip"
    done = command("submit", "b", "--out", out, "--results", trained, "--note", "hello")
    assert done.returncode == 0 and done.stdout.startswith(f"{out}: 3 runs") and not done.stderr
    checked = command("verify", out, "--rerun", "1", "--json")
    assert checked.returncode == 0 and json.loads(checked.stdout)["passed"]
    merged = command("merge", out, "--results", empty)
    assert (
        merged.returncode == 0
        and merged.stdout.splitlines()[-2] == "3 runs merged (3 verified), 0 here already"
    )
    key = ste(empty)
    assert command("reproduce", key, "--results", empty).returncode == 0
    assert "reproduced: merged" in command("show", key, "--results", empty).stdout
    out.write_bytes(out.read_bytes()[:-1])
    for words in (("verify", out), ("merge", out, "--results", empty)):
        refused = command(*words)
        assert (
            refused.returncode == 5
            and refused.stdout.startswith("FAILED archive")
            and not refused.stderr
        ), refused.stderr
    assert command("verify", out, "--rerun", "many").returncode == 2


@pytest.mark.parametrize(
    "words",
    [
        ("verify", "nothing.zip"),
        ("verify", "/"),
        ("merge", "nothing.zip"),
        ("submit", "nothing", "--out", "x.zip"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], tmp_path: Path) -> None:
    where = ("--results", tmp_path) if words[0] != "verify" else ()
    done = command(*words, *where)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and not done.stdout, (
        done.stderr
    )


# ---- many ----


def test_a_thousand_runs_come_in_within_seconds(trained: Path, tmp_path: Path) -> None:
    """Of this process, so that a busy machine is not blamed; `python -m tests.test_merge` takes ten thousand and reads the clock on the wall."""
    began = time.process_time()
    many(trained, tmp_path, 1000)
    assert time.process_time() - began < 6.0


def many(trained: Path, folder: Path, count: int) -> float:
    """Seconds that it takes to verify and merge so many runs with their curves."""
    source = attempts(trained, ste(trained))[0]
    spec, found = source.read("spec") or {}, source.read("result") or {}
    first = qbench.runs.config.RunConfig.from_json(spec)
    manifest: dict[str, Any] = {
        "bundle_version": 1,
        "made": {"qbench": "0", "by": None},
        "note": None,
        "runs": [],
    }
    own: dict[str, dict[str, bytes]] = {}
    for seed in range(1000, 1000 + count):
        one = dataclasses.replace(first, seed=seed)
        own[one.key] = {
            "spec.json": json.dumps(one.to_json(), indent=1).encode(),
            "env.json": (source.folder / "env.json").read_bytes(),
            "result.json": json.dumps({**found, "key": one.key}, indent=1).encode(),
            "curve.jsonl": source.curve.read_bytes(),
        }
    (folder / "many.zip").write_bytes(assemble(manifest, own))
    began = time.monotonic()
    assert merging.merge(folder / "many", folder / "many.zip", score=False).added == count
    return time.monotonic() - began


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        train_runs(Path(scratch) / "trained")
        print(
            f"10 000 runs merged in {many(Path(scratch) / 'trained', Path(scratch), 10_000):.1f} s"
        )
