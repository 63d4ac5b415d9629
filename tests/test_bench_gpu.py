"""Tests of `make gpu` on a CPU, with tiny sizes.

So only what depends on the device itself is left to test on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qbench.execution import stacking, step_recording
from tests import SOAK
from tests.bench import gpu, gpu_groups

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "--device",
    "cpu",
    "--sizes",
    "xs",
    "--steps",
    "2",
    "--tokens",
    "256",
    "--train",
    "xs",
    "--train-steps",
    "4",
    "--beds",
    "linreg, d = 12 000",
    "--side-by-side",
    "4",
]


def bench(out: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.bench.gpu", "--out", str(out), *TINY, *words]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.mark.slow
def test_every_part_leaves_its_rows_in_one_json_and_one_markdown_file(tmp_path: Path) -> None:
    done = bench(tmp_path, "--methods", "fp,ste,rtn", "--eager")
    assert done.returncode == 0, done.stdout + done.stderr
    found, text = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    peak, *steps = found["steps"]
    assert peak["peak_bf16_flops"] > 0 and [row["method"] for row in steps] == [
        "fp",
        "ste",
        "fp, again",
    ]
    for row in steps:
        assert (
            row["q25_s"] <= row["median_s"] <= row["q75_s"]
            and not row["compiled"]
            and row["tokens"] == 256
        )
        assert (
            row["tokens_per_s"] == pytest.approx(256 / row["median_s"])
            and 0 < row["peak_share"] < 1
            and row["over_fp"] > 0
        )
    assert [(row["method"], row["audit"], row["apart"] < 1e-3) for row in found["compiled"]] == [
        ("fp", True, True),
        ("ste", True, True),
    ]
    assert [(row["method"], row["audit"]) for row in found["runs"]] == [
        ("fp", True),
        ("ste", True),
        ("rtn", True),
    ]
    assert all(1 < row["bits_per_byte"] < 9 for row in found["runs"])
    rows = [(row["runs"], row["compiled"], row["recorded"]) for row in found["groups"]]
    assert rows == [(1, False, False), (4, False, False), (1, False, True), (4, False, True)]
    losses = [row["loss"] for row in found["groups"]]
    assert losses[2:] == losses[:2]
    rows = [
        (row["method"], row["runs"], row["apart"], row["recorded apart"], row["audit"])
        for row in found["company"]
    ]
    assert rows == [("fp", 3, 0, 0, True), ("ste", 3, 0, 0, True)]
    assert all(row["alone"] == row["in company"] for row in found["company"]), (
        "on a CPU they have the same bits"
    )
    assert found["tests"][0]["files"] == ["test_gpu.py"] and "CPU" in text.splitlines()[0]
    assert all(
        f"## {part}" in text for part in ("steps", "compiled", "runs", "groups", "company", "tests")
    )


@pytest.mark.skipif(not SOAK, reason="make soak")
@pytest.mark.slow
def test_company_is_compiled_and_held_against_a_loop(tmp_path: Path) -> None:
    """Check that stacked runs are compiled but not recorded: on a CPU, compiled steps cannot be."""
    done = bench(tmp_path, "--parts", "groups")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    alone, four = found["groups"]
    assert (alone["runs"], four["runs"]) == (1, 4) and not alone["compiled"] and four["compiled"]
    assert four["loss"] == pytest.approx(alone["loss"], rel=0.5)
    assert four["run_steps_per_s"] == pytest.approx(4 / four["median_s"]) and four[
        "times"
    ] == pytest.approx(four["run_steps_per_s"] / alone["run_steps_per_s"])
    assert max(len(row["curve"]) for row in found["groups"]) == 24
    assert max((alone, four), key=lambda row: row["times"])["target"] == 50


@pytest.mark.slow
def test_what_fails_or_finds_no_time_is_a_line_of_the_report(tmp_path: Path) -> None:
    done = bench(tmp_path, "--methods", "fp,ste", "--parts", "steps,compiled,runs", "--limit", "0")
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert done.returncode == 1
    assert all(
        row["failed"] == "no time left"
        for part in ("steps", "compiled", "runs")
        for row in found[part]
        if "method" in row
    )
    assert "no time left" in (tmp_path / "gpu.md").read_text()


def test_a_run_that_company_moves_too_far_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = gpu.Bench(
        tmp_path, torch.device("cpu"), [], 1, "xs", 1, ["fp", "gptq"], compile=False, limit_s=600
    )
    assert ["failed" in row for row in gpu_groups.company(asked)] == [False], (
        "and what is made after training is not tried"
    )
    monkeypatch.setattr(stacking, "GPU_TOLERANCE", -1.0)
    (row,) = gpu_groups.company(asked)
    assert row["apart"] == 0 and "apart by more" in row["failed"]


def test_steps_that_could_not_be_recorded_are_no_row_of_recorded_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_recording, "DEVICE_QUESTIONS", (torch.ops.aten.baddbmm.default,))
    (row,) = gpu_groups.company(
        gpu.Bench(tmp_path, torch.device("cpu"), [], 1, "xs", 1, ["fp"], compile=False, limit_s=600)
    )
    assert "could not be recorded" in row["failed"]


@pytest.mark.skipif(not SOAK, reason="make soak")
@pytest.mark.slow
def test_it_needs_neither_an_installation_nor_the_store_nor_lm_eval(tmp_path: Path) -> None:
    """Run the benchmark as on a machine that has torch and little else.

    The metadata of qbench is hidden, and imports of the libraries that it must not need fail.
    """
    guard = tmp_path / "guard"
    guard.mkdir()
    hidden = [
        "duckdb",
        "lm_eval",
        "click",
        "rich",
        "sklearn",
        "pyarrow",
        "transformers",
        "datasets",
        "tokenizers",
        "fastjsonschema",
        "jinja2",
    ]
    (guard / "sitecustomize.py").write_text(
        "import sys, importlib.metadata as m\n"
        f"sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "real = m.distributions\n"
        "m.distributions = lambda **k: (d for d in real(**k) if d.metadata['Name'] != 'qbench' or d.version == '0')\n"
    )
    path = os.pathsep.join(map(str, (guard, ROOT, ROOT / "methods", ROOT / "tasks")))
    done = bench(
        tmp_path / "out", "--methods", "fp,ste", "--parts", "steps,runs", "--eager", PYTHONPATH=path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert [row["method"] for row in found["runs"]] == ["fp", "ste"]
