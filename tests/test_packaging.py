"""What ships: the wheel, installed in a clean place and run from another directory."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked as an installer would, beside nothing of the checkout."""
    site = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return site


def run(installed: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p and ('site-packages' in p or not p.startswith({str(ROOT)!r}))]\n"
    code += "sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
    code += "import qbench; assert qbench.__file__.startswith(sys.path[0]), qbench.__file__\n"
    code += f"sys.argv = ['qbench', *{list(words)!r}]\nfrom qbench.cli import main\nmain()"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QBENCH_RESULTS")}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=env
    )


def test_the_wheel_holds_three_packages_and_the_quick_board(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {t for t in tops if not t.endswith(".dist-info")} == {
        "qbench",
        "qbench_methods",
        "qbench_tasks",
    }
    assert {
        "qbench/boards/quick.toml",
        "qbench/py.typed",
        "qbench/schemas/site.schema.json",
        "qbench_methods/ste.py",
        "qbench_tasks/grammar.py",
    } <= set(names)
    assert {
        f"qbench/publish/templates/{name}"
        for name in ("index.html.jinja", "page.css", "page.js", "model.js", "details.js")
    } <= set(names)
    assert not [n for n in names if "__pycache__" in n or n.startswith(("tests", "results"))]


def test_an_installed_qbench_sweeps_and_shows_where_it_is_told(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "my.toml").write_text(
        'board = "my"\nmethods = ["fp", "rtn"]\ntasks = ["toy"]\nformats = ["int4"]\nrecipe.steps = 5\n'
    )
    swept = run(installed, tmp_path, "sweep", "my.toml", "--workers", "1")
    assert swept.returncode == 0, swept.stderr
    assert "toy/xs" in swept.stdout and (tmp_path / "results" / "qbench.duckdb").exists()
    shown = run(installed, tmp_path, "show", "--markdown")
    assert shown.returncode == 0 and "| rtn |" in shown.stdout


def test_the_built_in_board_is_the_tracked_one() -> None:
    assert (ROOT / "results/quick/sweep.toml").read_text() == (
        ROOT / "qbench/boards/quick.toml"
    ).read_text()
