"""Shards: merged, they are the same as one sweep, whatever overlaps or is missing."""

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
from hypothesis import given
from hypothesis import strategies as st

from qbench.analysis.results import Results
from qbench.cli.options import cli
from qbench.engines.local import LocalEngine
from qbench.errors import QbenchError, UsageError
from qbench.execution.assignment import Execution
from qbench.runs.attempts import Attempt, iterate_attempts, list_attempts
from qbench.store.consistency import check_store
from qbench.store.lock import acquire_lock
from qbench.store.merge_folder import merge_results_folder
from qbench.store.snapshot import open_snapshot
from qbench.sweepfile.read import parse_sweep
from qbench.sweeps.cells import WHOLE_SWEEP, Shard
from qbench.sweeps.coordinator import run_sweep
from qbench.sweeps.listener import SweepSummary
from qbench.sweeps.plan import make_plan
from qbench.sweeps.status import read_sweep_status
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


def run_sweep_text(text: str, results: Path, shard: Shard = WHOLE_SWEEP) -> SweepSummary:
    with closing(LocalEngine(2, "cpu")) as engine:
        return run_sweep(parse_sweep(text, "s.toml"), results, engine, CPU, shard=shard)


def run_all_shards(text: str, folder: Path, count: int) -> list[Path]:
    """Run the shards of a sweep, each in a folder of its own, and return the folders."""
    folders = [folder / f"shard-{index}" for index in range(count)]
    for index, shard_folder in enumerate(folders):
        assert run_sweep_text(text, shard_folder, Shard(index, count)).code == 0
    return folders


def read_stored_runs(results: Path) -> dict[str, Any]:
    """Return the runs in the store without times and memory, which differ from run to run."""
    with open_snapshot(results) as connection:
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


def read_board_scores(results: Path, board: str = "b") -> Any:
    """Return the scores of a board as tables show them."""
    shown = Results(results).board(board).to_json()
    return [
        [row["entrant"], *[(cell or {}).get("mean") for cell in row["cells"]]]
        for section in shown["sections"]
        for row in section["rows"]
    ]


# ---- shards ----


@given(count=st.integers(1, 9), text=st.sampled_from([BOARD, STARTED]))
def test_shards_are_disjoint_and_complete_and_contain_the_bases_of_their_runs(
    count: int, text: str
) -> None:
    plan = make_plan(parse_sweep(text, "s.toml"))
    for key, run in plan.runs.items():
        mine = [index for index in range(count) if Shard(index, count).contains(plan, key)]
        assert len(mine) == 1
        assert run.base is None or Shard(mine[0], count).contains(plan, run.base)


def test_a_run_stays_in_its_shard_when_the_file_grows() -> None:
    few, many = (
        make_plan(parse_sweep(text, "s.toml"))
        for text in (BOARD, BOARD.replace("seeds = 6", "seeds = 60"))
    )
    assert all(
        Shard(n, 5).contains(few, key) == Shard(n, 5).contains(many, key)
        for key in few.runs
        for n in range(5)
    )
    sizes = Counter(n for n in range(5) for key in many.runs if Shard(n, 5).contains(many, key))
    assert min(sizes.values()) > 0.5 * len(many.runs) / 5, "shards have about the same size"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("8/8", "--shard 8/8: shards are counted from 0: 0/8 to 7/8, as in sbatch --array=0-7"),
        ("0/0", "--shard 0/0: shards are counted from 0: 0/1 is the whole sweep"),
        ("1", "--shard 1: write i/n, such as 0/8"),
        ("-1/3", "--shard -1/3: write i/n, such as 0/8"),
        ("/", "--shard /: write i/n, such as 0/8"),
    ],
)
def test_an_invalid_shard_is_a_one_line_error(words: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        Shard.parse(words)
    assert str(error.value) == line


# ---- merged shards ----


@pytest.fixture(scope="module")
def whole_sweep(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    results = tmp_path_factory.mktemp("whole")
    assert run_sweep_text(BOARD, results).ok == 30
    return results


@pytest.fixture(scope="module")
def three_shards(stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Sequence[Path]:
    return run_all_shards(BOARD, tmp_path_factory.mktemp("three"), 3)


def test_three_merged_shards_equal_one_sweep(
    whole_sweep: Path, three_shards: Sequence[Path], tmp_path: Path
) -> None:
    assert sum(len(list(iterate_attempts(part))) for part in three_shards) == 30, (
        "nothing was trained twice"
    )
    merged = [merge_results_folder(tmp_path / "all", part) for part in three_shards]
    assert [one.present for one in merged] == [0, 0, 0] and merged[-1].boards[0].missing == 0
    assert read_stored_runs(tmp_path / "all") == read_stored_runs(
        whole_sweep
    ) and read_board_scores(tmp_path / "all") == read_board_scores(whole_sweep)
    assert check_store(tmp_path / "all").agrees
    assert not any(attempt.merged for attempt in iterate_attempts(tmp_path / "all")), (
        "runs of own shards stay own runs"
    )
    assert run_sweep_text(BOARD, tmp_path / "all").cached == 30
    again = merge_results_folder(tmp_path / "all", three_shards[0])
    assert (again.runs, again.twice) == (0, 0) and read_stored_runs(
        tmp_path / "all"
    ) == read_stored_runs(whole_sweep)
    assert {p.name for p in (tmp_path / "all").iterdir()} == {p.name for p in whole_sweep.iterdir()}


def test_a_shard_counts_the_runs_of_others_and_a_missing_shard_is_reported(
    three_shards: Sequence[Path], tmp_path: Path
) -> None:
    own = len(list(iterate_attempts(three_shards[1])))
    summary = run_sweep_text(BOARD, three_shards[1], Shard(1, 3))
    assert (summary.ok, summary.cached, summary.left, summary.elsewhere, summary.code) == (
        own,
        own,
        0,
        30 - own,
        0,
    )
    assert len(read_sweep_status(parse_sweep(BOARD, "s.toml"), three_shards[1], Shard(1, 3))) == own
    merged = merge_results_folder(tmp_path / "two", three_shards[0])
    merged = merge_results_folder(tmp_path / "two", three_shards[1])
    missing = len(list(iterate_attempts(three_shards[2])))
    assert (
        str(merged.boards[0])
        == f"board b: {missing} of 30 runs missing: merge the other shards, or sweep its file here"
    )
    summary = run_sweep_text(BOARD, tmp_path / "two")
    assert (summary.ok, summary.cached) == (30, 30 - missing), (
        "the same command without a shard trains the missing runs"
    )


def test_overlapping_shards_are_reported_and_the_first_run_is_kept(
    whole_sweep: Path, three_shards: Sequence[Path], tmp_path: Path
) -> None:
    merge_results_folder(tmp_path, three_shards[0])
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*") if p.is_file()}
    merged = merge_results_folder(tmp_path, whole_sweep)
    own = len(list(iterate_attempts(three_shards[0])))
    assert merged.lines == [
        f"{whole_sweep}: {30 - own} runs merged, {own} here already, {own} of them trained in both:"
        " the shards overlap; nothing replaced"
    ]
    assert (
        all(p.read_bytes() == data for p, data in before.items()) and check_store(tmp_path).agrees
    )


def test_a_tuned_board_continues_after_each_merge(tmp_path: Path) -> None:
    """Trials are trained in shards. After the merge each shard trains its final runs."""
    once = tmp_path / "once"
    run_sweep_text(TUNED, once)
    together = tmp_path / "together"
    for phase in range(2):
        parts = [tmp_path / f"{phase}-{index}" for index in range(2)]
        for index, part in enumerate(parts):
            if phase:
                shutil.copytree(together, part)
            summary = run_sweep_text(TUNED, part, Shard(index, 2))
            assert summary.code == 0 and (summary.elsewhere >= 2 or phase)
        shares = [merge_results_folder(together, part).boards[0] for part in parts]
        if not phase:
            assert (
                str(shares[-1])
                == "board tuned: all 4 runs here; 1 cell waiting for a choice: sweep its file again"
            )
    assert run_sweep_text(TUNED, together).cached == 6
    assert read_stored_runs(together) == read_stored_runs(once) and read_board_scores(
        together, "tuned"
    ) == read_board_scores(once, "tuned")


def test_a_checkpoint_is_merged_with_its_unfinished_run(
    three_shards: Sequence[Path], tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(three_shards[0], part)
    attempt = next(iterate_attempts(part))
    (attempt.folder / "result.json").unlink()
    attempt.checkpoint.write_bytes(b"saved state")
    assert merge_results_folder(tmp_path / "all", part).refused == []
    assert list_attempts(tmp_path / "all", attempt.key)[0].checkpoint.read_bytes() == b"saved state"


def test_a_run_that_failed_here_and_succeeded_in_the_shard_is_merged(
    three_shards: Sequence[Path], tmp_path: Path
) -> None:
    merge_results_folder(tmp_path, three_shards[0])
    key = next(iterate_attempts(three_shards[0])).key
    (attempt,) = list_attempts(tmp_path, key)
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
    assert merge_results_folder(tmp_path, three_shards[0]).runs == 1
    assert [
        (a.number, (a.read("result") or {})["state"]) for a in list_attempts(tmp_path, key)
    ] == [
        (1, "failed"),
        (2, "ok"),
    ]


# ---- bad input ----


def test_damaged_runs_are_refused_and_the_others_merged(
    three_shards: Sequence[Path], tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(three_shards[0], part)
    first, second, third, *rest = iterate_attempts(part)
    first.artefact.write_bytes(first.artefact.read_bytes()[:-1] + b"?")
    (second.folder / "result.json").write_text('{"state": "ok"')
    (third.folder / "spec.json").write_bytes(rest[0].folder.joinpath("spec.json").read_bytes())
    merged = merge_results_folder(tmp_path / "all", part)
    assert merged.runs == len(rest) and merged.refused == [
        f"{first.key[:12]} attempt 1: its artefact is damaged",
        f"{second.key[:12]} attempt 1: its result.json is damaged",
        f"{third.key[:12]} attempt 1: its spec.json is missing, or another run's",
    ]
    assert merge_results_folder(tmp_path / "all", three_shards[0]).runs == 3, (
        "undamaged runs can be merged later"
    )


def test_folders_that_cannot_be_merged_are_one_line_errors(
    three_shards: Sequence[Path], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="there is no runs/ in it"):
        merge_results_folder(tmp_path / "all", tmp_path / "empty")
    with pytest.raises(UsageError, match="is the folder to merge into"):
        merge_results_folder(three_shards[0], three_shards[0])
    part = tmp_path / "busy"
    shutil.copytree(three_shards[0], part)
    with closing(acquire_lock(part)), pytest.raises(QbenchError, match="a sweep is writing there"):
        merge_results_folder(tmp_path / "all", part)
    assert not (tmp_path / "all").exists()
    done = CliRunner().invoke(cli, ["merge", str(part), "--results", str(tmp_path / "all")])
    assert isinstance(done.exception, UsageError) and str(done.exception).endswith(
        "is a folder; one of your own is merged with --own"
    )


def test_the_command_merges_several_folders(three_shards: Sequence[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli,
        ["merge", *map(str, three_shards), "--own", "--results", str(tmp_path)],
        standalone_mode=False,
    )
    assert done.return_value == 0, done
    assert (
        done.output.splitlines()[-1] == "board b: all 30 runs here"
        and len(done.output.splitlines()) == 4
    )
    assert Attempt(next(iter((tmp_path / "runs").glob("*/*/1")))).read("trust") is None
