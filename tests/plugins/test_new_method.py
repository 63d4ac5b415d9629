"""`qbench new method` writes a package that installs, keeps the contract and passes its own test.

A name or a folder that cannot be used leaves nothing behind.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from qbench.errors import QbenchError, UsageError
from qbench.plugins.new_method import explain_refusal, write_method_package

NAME = "half_way"
FILES = ["pyproject.toml", "qbench_half_way.py", "tests/test_half_way.py", "README.md"]


def run_module(
    folder: Path, *words: str, site: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `python -m` in a folder, with the packages installed in `site` before all others."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "QBENCH_RESULTS")}
    environment |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    if site:
        environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-P", "-m", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "mine"
    assert write_method_package(NAME, folder) == [folder / name for name in FILES]
    return folder


@pytest.fixture(scope="module")
def site(written: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the package into a folder of its own, and return the folder."""
    site = tmp_path_factory.mktemp("site")
    words = (
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        "--disable-pip-version-check",
        "--target",
        str(site),
    )
    done = run_module(written, "pip", "install", *words, str(written))
    assert done.returncode == 0, done.stderr
    return site


def test_four_short_files_and_nothing_else_are_written(written: Path) -> None:
    assert sorted(str(p.relative_to(written)) for p in written.rglob("*") if p.is_file()) == sorted(
        FILES
    )
    lines = {name: len((written / name).read_text().splitlines()) for name in FILES}
    assert lines["qbench_half_way.py"] < 60 and lines["README.md"] < 25
    assert not any(
        "{{" in (written / name).read_text() or "{%" in (written / name).read_text()
        for name in FILES
    )
    project = tomllib.loads((written / "pyproject.toml").read_text())["project"]
    assert project["name"] == "qbench-half-way" and project["entry-points"]["qbench.methods"] == {
        NAME: "qbench_half_way:HalfWay"
    }
    assert os.listdir(written.parent) == ["mine"], "no draft is left"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(
        (written / "tests").stat().st_mode
    ), "the folder is as readable as any other"


def test_the_package_installs_and_is_listed(site: Path, tmp_path: Path) -> None:
    done = run_module(tmp_path, "qbench", "methods", "--json", site=site)
    listed = {m["name"]: m for m in json.loads(done.stdout)}[NAME]
    assert (listed["distribution"], listed["target"], listed["error"]) == (
        "qbench-half-way 0.1",
        "qbench_half_way:HalfWay",
        None,
    )
    assert listed["options"] == {"share": 1.0} and listed["provenance"] == "own"
    assert listed["title"] == "Half way" and listed["summary"]
    assert sorted(p.name for p in site.glob("qbench*")) == [
        "qbench_half_way-0.1.dist-info",
        "qbench_half_way.py",
    ]
    assert {p.name for p in site.iterdir()} <= {
        "qbench_half_way-0.1.dist-info",
        "qbench_half_way.py",
        "__pycache__",
    }, "tests are not installed"


def test_the_method_keeps_the_contract(site: Path, tmp_path: Path) -> None:
    done = run_module(tmp_path, "qbench", "check", NAME, "--quick", site=site)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        f"{NAME}: " in done.stdout
        and done.stdout.rstrip().endswith(" 0 failed")
        and "int4 a:int4" in done.stdout
    )


def test_the_written_test_passes_and_can_fail(written: Path, site: Path, tmp_path: Path) -> None:
    words = (
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        "-W",
        "ignore:.*torch.jit.script.*:DeprecationWarning",
    )
    good = run_module(written, *words, site=site)
    assert good.returncode == 0 and "6 passed" in good.stdout, good.stdout + good.stderr

    shutil.copytree(site, tmp_path / "site")
    module = tmp_path / "site" / "qbench_half_way.py"
    whole = module.read_text()
    module.write_text(
        whole.replace(
            "straight_through(x, x.lerp(level, self.share))",
            "level + 0 * x",
        )
    )
    assert module.read_text() != whole
    bad = run_module(written, *words, "-k", "training", site=tmp_path / "site")
    assert (
        bad.returncode == 1
        and "FAILED tests/test_half_way.py::test_training_goes_a_share_of_the_way" in bad.stdout
    )


def test_the_readme_shows_how_to_sweep_the_method(
    written: Path, site: Path, tmp_path: Path
) -> None:
    """The sweep file of the README is planned as it stands, on a faster task."""
    (sweep,) = re.findall(r"```toml\n(.*?)```", (written / "README.md").read_text(), re.DOTALL)
    assert tomllib.loads(sweep)["method"] == [{"name": NAME, "share": [0.5, 1.0]}]
    (tmp_path / "mine.toml").write_text(sweep.replace("digits", "toy"))
    words = ("sweep", "mine.toml", "--results", "results", "--dry-run", "--json")
    done = run_module(tmp_path, "qbench", *words, site=site)
    assert done.returncode == 0, done.stderr
    assert {"half_way", "share=0.5"} <= set(re.findall(r"half_way|share=0\.5", done.stdout))


# ---- refusals ----


@pytest.mark.parametrize(
    "name",
    [
        "",
        "Mine",
        "2fast",
        "a-b",
        "a b",
        "a.b",
        "a__b",
        "a_",
        "_a",
        "é",
        "a/b",
        "../a",
        "a\n",
        "x" * 41,
    ],
)
def test_a_bad_name_is_refused(name: str, tmp_path: Path) -> None:
    assert_refused(name, tmp_path, "cannot name a method: a name has lower-case letters")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "its class would be None"),
        ("tensor", "its class would be Tensor"),
        ("scaled_quantizer", "its class would be ScaledQuantizer"),
        ("ste", "a method 'ste' is registered already, by qbench"),
        ("methods", "a module qbench_methods is installed already"),
    ],
)
def test_a_name_that_means_something_else_is_refused(
    name: str, message: str, tmp_path: Path
) -> None:
    assert_refused(name, tmp_path, message)


def assert_refused(name: str, folder: Path, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        write_method_package(name, folder / "new")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_an_existing_folder_or_file_is_left_alone(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "mine"
    {
        "folder": place.mkdir,
        "file": lambda: place.write_text("old"),
        "dangling link": lambda: place.symlink_to("nowhere"),
    }[kind]()
    with pytest.raises(UsageError, match="mine exists already: name another folder with --folder"):
        write_method_package("mine", place)
    assert os.listdir(tmp_path) == ["mine"] and (kind != "folder" or list(place.iterdir()) == [])
    assert kind != "file" or place.read_text() == "old"


def test_the_parent_folder_must_exist_and_be_writable(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .*nowhere to write mine into"):
        write_method_package("mine", tmp_path / "nowhere" / "mine")
    with pytest.raises(QbenchError, match=r"cannot write .*: File name too long"):
        write_method_package("mine", tmp_path / ("x" * 250))
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    """No file may exceed a thousand bytes: the first can be written, the second cannot."""
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "sys.argv = ['qbench', 'new', 'method', 'mine']\n"
        "from qbench.cli import main; main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-Bc", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "qbench: cannot write qbench-mine: File too large\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "x1", "my_method_2", "true_north", "z" * 40])
def test_good_names_are_accepted(name: str, tmp_path: Path) -> None:
    assert explain_refusal(name, tmp_path / "new") is None
    for path in write_method_package(name, tmp_path / "new"):
        if path.suffix == ".py":
            compile(path.read_text(), str(path), "exec")


# ---- the command ----


def test_the_command_writes_into_the_current_directory(tmp_path: Path) -> None:
    done = run_module(tmp_path, "qbench", "new", "method", "my_own")
    assert done.returncode == 0
    assert done.stdout.split() == [
        f"qbench-my-own/{n}"
        for n in ("pyproject.toml", "qbench_my_own.py", "tests/test_my_own.py", "README.md")
    ]
    assert done.stderr == "next: pip install -e qbench-my-own && qbench check my_own\n"
    again = run_module(tmp_path, "qbench", "new", "method", "my_own")
    assert (again.returncode, again.stdout) == (2, "")
    assert (
        again.stderr == "qbench: qbench-my-own exists already: name another folder with --folder\n"
    )
    elsewhere = run_module(
        tmp_path, "qbench", "new", "method", "my_own", "--folder", "other", "--json"
    )
    assert (
        json.loads(elsewhere.stdout)[0] == "other/pyproject.toml"
        and (tmp_path / "other" / "README.md").exists()
    )
