"""What large boards cost: planning them, finding out which runs are done, and keeping them.

docs/scale.md does its arithmetic with these numbers. For each row, wall time and peak memory are
measured in a process of its own. The plan is made from a real sweep file with more and more seeds.
The run folders are made up as in `store`, with curves of ten points.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.store import make

FILE = """
board = "large"
methods = ["fp", "rtn", "gptq", "ste", "lsq", "rr", "lotion", "pege"]
tasks = ["linreg", "twolayer", "digits"]
formats = ["int2", "int3", "int4", "int8", "fp4"]
seeds = {seeds}
"""
PLAN = """
from qbench.sweeps.plan import make_plan
from qbench.sweepfile.read import parse_sweep
began = time.perf_counter()
plan = make_plan(parse_sweep(open(sys.argv[1]).read(), "large.toml"))
told(runs=len(plan.runs), cells=len(plan.cells), seconds=time.perf_counter() - began)
"""
SHARD = PLAN.replace(
    "told(",
    "from qbench.sweeps.cells import Shard\nmiddle = time.perf_counter()\nmine = [k for k in plan.runs if Shard(3, 8).contains(plan, k)]\ntold(part=len(mine), shard_s=time.perf_counter() - middle, ",
)
ROSTER = PLAN.replace(
    "told(",
    "import json\nfrom qbench.sweeps.board_members import make_board_members\nmiddle = time.perf_counter()\ntext = json.dumps(make_board_members(plan))\ntold(mb=len(text) / 1e6, roster_s=time.perf_counter() - middle, ",
)
STANDINGS = """
from qbench.runs.state import list_known_keys, read_run_states
began = time.perf_counter()
keys = sorted(list_known_keys(Path(sys.argv[1])))
listed = time.perf_counter()
found = read_run_states(Path(sys.argv[1]), keys)
told(runs=len(found), list_s=listed - began, seconds=time.perf_counter() - listed)
"""
SNAPSHOT = """
from qbench.store.database import Store
with Store(Path(sys.argv[1])) as store:
    store.snapshot_is_stale = True
    began = time.perf_counter()
    store.write_snapshot()
    told(seconds=time.perf_counter() - began, mb=store.path.stat().st_size / 1e6)
"""
HEAD = """
import json, resource, sys, time
from pathlib import Path
def told(**found):
    print(json.dumps({**found, "cpu": time.process_time(), "gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6}))
"""


def measured(code: str, *words: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, *words], check=True, capture_output=True, text=True
    )
    return dict(json.loads(done.stdout))


def command(*words: str) -> tuple[float, float]:
    """Return the seconds and peak gigabytes of a qbench command."""
    code = """
import subprocess
began = time.perf_counter()
subprocess.run([sys.executable, "-m", "qbench", *sys.argv[1:]], check=True, stdout=subprocess.DEVNULL)
print(json.dumps({"seconds": time.perf_counter() - began, "gb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6}))
"""
    found = measured(code, *words)
    return found["seconds"], found["gb"]


def table(runs: int = 100_000) -> Iterator[str]:
    """Yield the lines of the report."""
    yield "| what | of | seconds | memory | |"
    yield "|---|---:|---:|---:|---|"
    folder = Path(tempfile.mkdtemp(prefix="qbench-scale-"))
    try:
        yield from plans(folder)
        yield from folders(folder / "results", runs)
    finally:
        shutil.rmtree(folder)


def standing(results: Path, when: str) -> str:
    found = measured(STANDINGS, str(results))
    return f"| what is done, which every sweep asks first, {when} | {found['runs']:,} runs | {found['seconds']:.1f} | {found['gb']:.2f} GB | {found['cpu']:.0f} s of CPU; the keys alone {found['list_s']:.2f} s |"


def forget_files() -> bool:
    """Drop the system's file cache; return False if this process may not do so."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def plans(folder: Path) -> Iterator[str]:
    file = folder / "large.toml"
    for seeds in (1000, 10000):
        file.write_text(FILE.format(seeds=seeds))
        one = measured(PLAN, str(file))
        yield f"| plan | {one['runs']:,} runs, {one['cells']} cells | {one['seconds']:.1f} | {one['gb']:.2f} GB | |"
    part = measured(SHARD, str(file))
    yield f"| a shard of it, `3/8` | {part['part']:,} runs | {part['shard_s']:.1f} | {part['gb']:.2f} GB | |"
    kept = measured(ROSTER, str(file))
    yield f"| its roster | {kept['runs']:,} runs | {kept['roster_s']:.1f} | {kept['gb']:.2f} GB | a file of {kept['mb']:.0f} MB |"


def folders(results: Path, runs: int) -> Iterator[str]:
    make(results, runs, 10)
    files = sum(len(names) for _, _, names in os.walk(results / "runs"))
    used = int(
        subprocess.run(
            ["du", "-s", "-B1", str(results / "runs")], capture_output=True, text=True, check=True
        ).stdout.split()[0]
    )
    where = ("--results", str(results))
    yield f"| run folders | {runs:,} runs | | | {files / runs:.0f} files and {used / runs / 1000:.0f} kB on disk a run, without artefacts |"
    for name, words in (("`qbench db rebuild`", ("db", "rebuild")), ("`qbench show`", ("show", "large")), ("`qbench publish`", ("publish", "large", "--out", str(results.parent / "site")))):  # fmt: skip
        seconds, gb = command(*words, *where)
        yield f"| {name} | {runs:,} runs | {seconds:.1f} | {gb:.2f} GB | |"
    yield standing(results, "files in memory")
    if forget_files():
        yield standing(results, "from a disk that has forgotten them")
    copy = measured(SNAPSHOT, str(results))
    yield f"| a snapshot, every 30 s of a sweep | {runs:,} runs | {copy['seconds']:.2f} | {copy['gb']:.2f} GB | a store of {copy['mb']:.0f} MB |"
