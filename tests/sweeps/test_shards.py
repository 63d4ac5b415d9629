"""A sweep in parts, each on a machine of its own, and the parts put together: the same as one sweep, whatever overlaps or is missing."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.analysis.results import Results
from qbench.cli.options import cli
from qbench.engines.local import LocalEngine
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt, all_attempts, attempts
from qbench.store.check import check
from qbench.store.lock import hold
from qbench.store.merge_folder import gather
from qbench.store.snapshot import view
from qbench.sweepfile.read import read_text
from qbench.sweeps.coordinator import sweep
from qbench.sweeps.listener import Summary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.shard import WHOLE, Shard
from qbench.sweeps.status import status
from tests.stage import stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
CPU = Execution(device="cpu")
BOARD = """
board = "b"
methods = ["plain", "after", "actor"]
tasks = ["stage"]
formats = ["int4", "int8"]
seeds = 6
"""
STARTED = BOARD.replace("seeds = 6", 'seeds = 6\nstart = "plain:0.5"')
TUNED = """
board = "tuned"
methods = ["actor"]
tasks = ["stage"]
formats = ["int4"]
seeds = 2
[tuning]
trials = 4
lr = { low = 1e-3, high = 1e-1, log = true }
"""
TIMES = [
    *(f"{name}_s" for name in ("build", "train", "eval", "wall", "step", "step_q25", "step_q75")),
    "samples_per_s",
    "tokens_per_s",
    "peak_share",
]


def play(text: str, results: Path, shard: Shard = WHOLE) -> Summary:
    with closing(LocalEngine(2, "cpu")) as engine:
        return sweep(read_text(text, "s.toml"), results, engine, CPU, shard=shard)


def swept(text: str, folder: Path, parts: int) -> list[Path]:
    """The parts of a sweep, each in a folder of its own."""
    folders = [folder / f"part-{index}" for index in range(parts)]
    for index, part in enumerate(folders):
        assert play(text, part, Shard(index, parts)).code == 0
    return folders


def said(results: Path) -> dict[str, Any]:
    """What the runs in the store came to, without what a clock or a counter says."""
    with view(results) as connection:
        frame = connection.execute("SELECT * FROM runs ORDER BY key, attempt").df()
    kept = [
        c
        for c in frame.columns
        if not (
            c.endswith("_s")
            or c.startswith("step_s")
            or c in ("started", "finished", *TIMES, "peak_memory_bytes")
        )
    ]
    return json.loads(frame[kept].to_json(orient="records"))  # type: ignore[no-any-return]


def table(results: Path, board: str = "b") -> Any:
    """The scores of a board as tables show them."""
    shown = Results(results).board(board).to_json()
    return [
        [row["entrant"], *[(cell or {}).get("mean") for cell in row["cells"]]]
        for section in shown["sections"]
        for row in section["rows"]
    ]


# ---- parts ----


@settings(max_examples=30)
@given(parts=st.integers(1, 9), start=st.sampled_from([BOARD, STARTED]))
def test_parts_are_disjoint_and_whole_and_bases_are_in_the_part_of_what_goes_on_from_them(
    parts: int, start: str
) -> None:
    plan = make_plan(read_text(start, "s.toml"))
    for key, run in plan.runs.items():
        mine = [index for index in range(parts) if Shard(index, parts).has(plan, key)]
        assert len(mine) == 1
        assert run.base is None or Shard(mine[0], parts).has(plan, run.base)


def test_a_run_stays_in_its_part_whatever_is_added_to_the_file() -> None:
    few, many = (
        make_plan(read_text(text, "s.toml"))
        for text in (BOARD, BOARD.replace("seeds = 6", "seeds = 60"))
    )
    assert all(
        Shard(n, 5).has(few, key) == Shard(n, 5).has(many, key)
        for key in few.runs
        for n in range(5)
    )
    sizes = Counter(n for n in range(5) for key in many.runs if Shard(n, 5).has(many, key))
    assert min(sizes.values()) > 0.5 * len(many.runs) / 5, "and parts are of one size, or nearly"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("8/8", "--shard 8/8: parts are counted from 0: 0/8 to 7/8, as in sbatch --array=0-7"),
        ("0/0", "--shard 0/0: parts are counted from 0: 0/1 is the whole"),
        ("1", "--shard 1: write i/n, such as 0/8"),
        ("-1/3", "--shard -1/3: write i/n, such as 0/8"),
        ("/", "--shard /: write i/n, such as 0/8"),
    ],
)
def test_a_part_that_is_none_is_one_line(words: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        Shard.read(words)
    assert str(error.value) == line


# ---- together ----


@pytest.fixture(scope="module")
def whole(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    assert play(BOARD, results).ok == 30
    return results


@pytest.fixture(scope="module")
def three(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    return swept(BOARD, tmp_path_factory.mktemp("three"), 3)


def test_three_parts_together_are_one_sweep(
    whole: Path, three: Sequence[Path], tmp_path: Path
) -> None:
    assert sum(len(list(all_attempts(part))) for part in three) == 30, "nothing was trained twice"
    merged = [gather(tmp_path / "all", part) for part in three]
    assert [one.present for one in merged] == [0, 0, 0] and merged[-1].boards[0].missing == 0
    assert said(tmp_path / "all") == said(whole) and table(tmp_path / "all") == table(whole)
    assert check(tmp_path / "all").agrees
    assert not any(attempt.merged for attempt in all_attempts(tmp_path / "all")), (
        "own runs stay own"
    )
    assert play(BOARD, tmp_path / "all").cached == 30
    again = gather(tmp_path / "all", three[0])
    assert (again.runs, again.twice) == (0, 0) and said(tmp_path / "all") == said(whole)
    assert {p.name for p in (tmp_path / "all").iterdir()} == {p.name for p in whole.iterdir()}


def test_a_part_tells_what_others_have_to_do_and_a_gap_is_one_line(
    three: Sequence[Path], tmp_path: Path
) -> None:
    own = len(list(all_attempts(three[1])))
    summary = play(BOARD, three[1], Shard(1, 3))
    assert (summary.ok, summary.cached, summary.left, summary.elsewhere, summary.code) == (
        own,
        own,
        0,
        30 - own,
        0,
    )
    assert len(status(read_text(BOARD, "s.toml"), three[1], Shard(1, 3))) == own
    merged = gather(tmp_path / "two", three[0])
    merged = gather(tmp_path / "two", three[1])
    missing = len(list(all_attempts(three[2])))
    assert (
        str(merged.boards[0])
        == f"board b: {missing} of 30 runs missing: merge the other shards, or sweep its file here"
    )
    summary = play(BOARD, tmp_path / "two")
    assert (summary.ok, summary.cached) == (30, 30 - missing), (
        "and the same command without a part fills it"
    )


def test_parts_that_overlap_are_one_line_and_the_first_stays(
    whole: Path, three: Sequence[Path], tmp_path: Path
) -> None:
    gather(tmp_path, three[0])
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    merged = gather(tmp_path, whole)
    own = len(list(all_attempts(three[0])))
    assert merged.lines == [
        f"{whole}: {30 - own} runs merged, {own} here already, {own} of them trained in both: the shards overlap, and the first stays"
    ]
    assert all(p.read_bytes() == data for p, data in before.items()) and check(tmp_path).agrees


def test_a_tuned_board_goes_on_after_each_merge(tmp_path: Path) -> None:
    """Trials in parts; then, together, the choice; the runs at the chosen values in parts again."""
    once = tmp_path / "once"
    play(TUNED, once)
    together = tmp_path / "together"
    for phase in range(2):
        parts = [tmp_path / f"{phase}-{index}" for index in range(2)]
        for index, part in enumerate(parts):
            if phase:
                shutil.copytree(together, part)
            summary = play(TUNED, part, Shard(index, 2))
            assert summary.code == 0 and (summary.elsewhere >= 2 or phase)
        shares = [gather(together, part).boards[0] for part in parts]
        if not phase:
            assert (
                str(shares[-1])
                == "board tuned: all 4 runs here; 1 cell waiting for a choice: sweep its file again"
            )
    assert play(TUNED, together).cached == 6
    assert said(together) == said(once) and table(together, "tuned") == table(once, "tuned")


def test_what_was_begun_in_a_part_goes_on_from_its_checkpoint_after_the_merge(
    three: Sequence[Path], tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(three[0], part)
    attempt = next(all_attempts(part))
    (attempt.folder / "result.json").unlink()
    attempt.checkpoint.write_bytes(b"where it was")
    assert gather(tmp_path / "all", part).refused == []
    assert attempts(tmp_path / "all", attempt.key)[0].checkpoint.read_bytes() == b"where it was"


def test_a_run_that_failed_here_and_succeeded_there_is_taken(
    three: Sequence[Path], tmp_path: Path
) -> None:
    gather(tmp_path, three[0])
    key = next(all_attempts(three[0])).key
    (attempt,) = attempts(tmp_path, key)
    shutil.rmtree(attempt.export, ignore_errors=True)
    failed = {
        **(attempt.read("result") or {}),
        "state": "failed",
        "reason": "signal",
        "message": "the worker was killed",
    }
    attempt.write(
        "result",
        {
            k: failed[k]
            for k in (
                "result_version",
                "key",
                "attempt",
                "state",
                "reason",
                "message",
                "started",
                "finished",
            )
        },
    )
    assert gather(tmp_path, three[0]).runs == 1
    assert [(a.number, (a.read("result") or {})["state"]) for a in attempts(tmp_path, key)] == [
        (1, "failed"),
        (2, "ok"),
    ]


# ---- bad input ----


def test_damaged_runs_are_not_taken_and_the_others_are(
    three: Sequence[Path], tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(three[0], part)
    first, second, third, *rest = all_attempts(part)
    first.artefact.write_bytes(first.artefact.read_bytes()[:-1] + b"?")
    (second.folder / "result.json").write_text('{"state": "ok"')
    (third.folder / "spec.json").write_bytes(rest[0].folder.joinpath("spec.json").read_bytes())
    merged = gather(tmp_path / "all", part)
    assert merged.runs == len(rest) and merged.refused == [
        f"{first.key[:12]} attempt 1: its artefact is damaged",
        f"{second.key[:12]} attempt 1: its result.json is damaged",
        f"{third.key[:12]} attempt 1: its spec.json is missing, or another run's",
    ]
    assert gather(tmp_path / "all", three[0]).runs == 3, "and whole ones come later"


def test_folders_that_cannot_be_merged_are_one_line(three: Sequence[Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="it has no runs/ in it"):
        gather(tmp_path / "all", tmp_path / "empty")
    with pytest.raises(UsageError, match="is the folder to merge into"):
        gather(three[0], three[0])
    part = tmp_path / "busy"
    shutil.copytree(three[0], part)
    with closing(hold(part)), pytest.raises(QbenchError, match="a sweep is writing there"):
        gather(tmp_path / "all", part)
    assert not (tmp_path / "all").exists()
    done = CliRunner().invoke(cli, ["merge", str(part), "--results", str(tmp_path / "all")])
    assert isinstance(done.exception, UsageError) and str(done.exception).endswith(
        "is a folder; one of your own is merged with --own"
    )


def test_the_command_merges_several_folders(three: Sequence[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["merge", *map(str, three), "--own", "--results", str(tmp_path)], standalone_mode=False
    )
    assert done.return_value == 0, done
    assert (
        done.output.splitlines()[-1] == "board b: all 30 runs here"
        and len(done.output.splitlines()) == 4
    )
    assert Attempt(next(iter((tmp_path / "runs").glob("*/*/1")))).read("trust") is None
