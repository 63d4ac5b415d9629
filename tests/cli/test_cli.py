"""The command line as its users see it: what is printed where, and what every exit code means."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click import Context, Group

from qbench import cli
from qbench.runs.attempts import iterate_attempts
from qbench.store.database import Store
from tests.run_folders import fake_board_members, make_attempt, make_run_config

SMALL = """board = "small"
seeds = 2
methods = ["fp", "rtn", "ste"]
tasks = ["toy"]
formats = ["int2"]
recipe.steps = 10
"""
Qbench = Callable[..., tuple[int, str, str]]


@pytest.fixture
def qbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Qbench:
    """Return a function that runs a command in an empty directory.

    It returns exit code, standard output and standard error.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QBENCH_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["qbench", *map(str, words)])
        with pytest.raises(SystemExit) as exit_info:
            cli.main()
        out, err = capfd.readouterr()
        return int(exit_info.value.code or 0), out, err

    return run


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a results folder in which the small sweep was trained."""
    folder = tmp_path_factory.mktemp("swept")
    (folder / "small.toml").write_text(SMALL)
    command = [
        sys.executable,
        "-m",
        "qbench",
        "sweep",
        "small.toml",
        "--results",
        "results",
        "--workers",
        "2",
    ]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder / "results"


# ---- errors ----


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("board = ", "not TOML"),
        ('board = "b"\nmethod = ["fp"]\ntasks = ["toy"]', "method"),
        (SMALL + "sede = 3", "sede"),
        (SMALL.replace("seeds = 2", "sees = 2"), "unknown key 'sees'; did you mean seeds"),
        (SMALL.replace("seeds = 2", 'seeds = "two"'), "seeds: expected int, not str 'two'"),
        (SMALL.replace('"ste"', '"stee"'), "unknown method 'stee'; did you mean ste"),
        (SMALL.replace('"toy"', '"tov"'), "unknown task 'tov'; did you mean toy"),
        (SMALL.replace('"int2"', '"int9"'), "int9"),
        (SMALL.replace('["int2"]', "[]"), "list is empty"),
        (
            SMALL.replace("recipe.steps = 10", "recipe.steps = -10"),
            "steps must be at least 1, not -10",
        ),
        (SMALL + "recipe.lr = nan", "not a finite number"),
        (SMALL + '[[method]]\nname = "ste"\nscal = "mse"', "scal"),
    ],
)
def test_a_wrong_sweep_file_is_an_error_of_one_line_and_leaves_nothing(
    qbench: Qbench, tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    code, out, err = qbench("sweep", "wrong.toml")
    assert (
        (code, out) == (2, "")
        and err.count("\n") == 1
        and err.startswith("qbench: wrong.toml")
        and says in err
    )
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["swep"], 2, "unknown command 'swep'; did you mean sweep"),
        (["sweep", "absent.toml"], 2, "absent.toml: no such sweep file"),
        (["sweep", "--device", "tpu"], 2, "tpu"),
        (["show"], 1, "no runs here yet"),
        (["show", "ffffff"], 1, "no runs here yet"),
        (["check", "sta"], 2, "unknown method 'sta'; did you mean ste"),
        (["status", "absent.toml"], 2, "no such sweep file"),
        (["db", "rebuild"], 1, "nothing to rebuild from"),
    ],
)
def test_errors_of_users_are_one_line(
    qbench: Qbench, tmp_path: Path, words: list[str], code: int, says: str
) -> None:
    found, out, err = qbench(*words)
    assert found == code and not out and err.count("\n") == 1 and says in err
    assert not (tmp_path / "results" / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["sweep", "--workers", "0"],
            "sweep: invalid value for '--workers': 0 is not in the range x>=1; "
            "see qbench sweep --help",
        ),
        (["sweep", "--worker", "1"], "--workers"),
        (["show", "--steps", "3"], "show: no such option"),
        (["check"], "check: missing argument 'METHOD'; see qbench check --help"),
        (["new", "method"], "new method: missing argument 'NAME'"),
        (["completion", "csh"], "'csh' is not one of 'bash', 'zsh', 'fish'"),
        (["--nonsense"], "no such option"),
    ],
)
def test_errors_of_click_are_one_line_too(qbench: Qbench, words: list[str], says: str) -> None:
    code, out, err = qbench(*words)
    assert (
        (code, out) == (2, "")
        and err.count("\n") == 1
        and err.startswith("qbench: ")
        and says in err
    )


def test_without_a_command_the_help_is_printed(qbench: Qbench) -> None:
    code, out, err = qbench()
    assert code == 2 and "Commands:" in out + err


@pytest.mark.skipif(torch.cuda.is_available(), reason="the test needs a machine without CUDA")
def test_a_missing_cuda_device_is_an_error(qbench: Qbench, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    code, _, err = qbench("sweep", "small.toml", "--device", "cuda")
    assert (
        code == 2
        and err
        == "qbench: --device cuda: this machine has no usable CUDA device; use --device cpu or auto\n"
    )
    assert not (tmp_path / "results" / "runs").exists()


def test_a_results_folder_that_cannot_be_written_is_an_error(
    qbench: Qbench, tmp_path: Path
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    (tmp_path / "taken").write_text("a file")
    code, _, err = qbench("sweep", "small.toml", "--results", "taken/below")
    assert (
        code != 0
        and "taken" in err
        and err.count("\n") == 1
        and (tmp_path / "taken").read_text() == "a file"
    )


def test_a_locked_folder_exits_with_6(qbench: Qbench, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    with Store(tmp_path / "results"):
        code, _, err = qbench("sweep", "small.toml")
    assert code == 6 and str(os.getpid()) in err


# ---- sweeping ----


def test_progress_goes_to_stderr_and_the_board_to_stdout(qbench: Qbench, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    code, out, err = qbench("sweep", "small.toml", "--workers", "2")
    assert code == 0 and "toy/xs" in out and "6 runs" in err and "toy/xs" not in err
    again = qbench("sweep", "small.toml")
    assert again[0] == 0 and again[1] == out and "6 done before" in again[2]


def test_with_json_stdout_holds_nothing_else(qbench: Qbench, tmp_path: Path, swept: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    code, out, err = qbench("sweep", "small.toml", "--results", swept, "--json")
    data = json.loads(out)
    assert (
        code == 0
        and err == ""
        and (data["ok"], data["cached"]) == (6, 6)
        and data["board"]["sections"]
    )


def test_a_shortened_sweep_is_another_board(qbench: Qbench, tmp_path: Path) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    code, out, _ = qbench("sweep", "small.toml", "--steps", 3, "--seeds", 1, "--workers", 1)
    assert code == 0 and "cut to 3 steps and 1 seed" in out and "3 steps" in out
    assert [p.stem for p in (tmp_path / "results" / "boards").iterdir()] == ["small-3-steps-1-seed"]


def test_a_dry_run_and_status_train_and_write_nothing(
    qbench: Qbench, tmp_path: Path, swept: Path
) -> None:
    (tmp_path / "small.toml").write_text(SMALL.replace("seeds = 2", "seeds = 3"))
    before = sorted(swept.rglob("*"))
    code, out, _ = qbench("sweep", "small.toml", "--dry-run", "--results", swept)
    assert code == 0 and "ste int2 toy/xs seed 2" in out and "new" in out
    code, out, _ = qbench("status", "small.toml", "--json", "--results", swept)
    states = [line["state"] for line in json.loads(out)]
    assert code == 0 and states.count("cached") == 6 and states.count("new") == 3
    assert sorted(swept.rglob("*")) == before


def test_failed_cells_exit_with_3(qbench: Qbench, tmp_path: Path) -> None:
    text = SMALL.replace('["fp", "rtn", "ste"]', '["fp"]').replace(
        "recipe.steps = 10", "recipe = { steps = 10, lr = 1e30, clip = 0.0 }"
    )
    (tmp_path / "wild.toml").write_text(text)
    code, out, err = qbench("sweep", "wild.toml", "--workers", "2")
    assert code == 3 and "diverged" in out and "2 failed" in err


# ---- reading ----


def test_tables_are_not_wrapped_unless_columns_is_set(tmp_path: Path) -> None:
    long = "a label that goes on and on beyond any column of a terminal"
    cells = [
        (make_run_config(seed, method, fmt), None)
        for method, fmt in (("fp", None), ("rtn", "int4"))
        for seed in (0,)
    ]
    for spec, _ in cells:
        make_attempt(tmp_path, spec)
    members = fake_board_members("wide", cells, 1)
    members["cells"][1]["label"] = long
    with Store(tmp_path) as store:
        store.ingest_attempts(iterate_attempts(tmp_path))
        store.save_board(members)
        store.write_snapshot()

    def lines(**env: str) -> list[str]:
        command = [sys.executable, "-m", "qbench", "show", "wide", "--results", str(tmp_path)]
        outside = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
        return subprocess.run(
            command, env=outside | env, check=True, capture_output=True, text=True
        ).stdout.splitlines()

    assert any(line.startswith(long) for line in lines()) and any(
        len(line) > 200 for line in lines()
    )
    assert max(map(len, lines(COLUMNS="70"))) <= 70


def test_a_board_is_printed_in_every_form(qbench: Qbench, swept: Path) -> None:
    where = ("--results", swept)
    assert "| ste |" in qbench("show", "--markdown", *where)[1]
    table = qbench("show", "small", "--csv", *where)[1].splitlines()
    assert table[0].startswith("task,size") and len(table) == 1 + 3
    runs = qbench("show", "--runs", *where)[1].splitlines()
    assert len(runs) == 1 + 6 and "packed" in runs[0]
    assert json.loads(qbench("show", "--json", *where)[1])["runs"] == 6
    assert "rr" in qbench("show", "--randomised", *where)[1]
    assert (
        qbench("show", "smal", *where)[2]
        == f"qbench: {swept}: unknown board 'smal'; did you mean small?\n"
    )


def test_a_run_is_printed(qbench: Qbench, swept: Path) -> None:
    key = next(d.name for d in swept.glob("runs/*/*"))
    code, out, _ = qbench("show", key[:10], "--results", swept)
    assert code == 0 and key in out and "audit" in out and "machine" in out
    assert json.loads(qbench("show", key, "--json", "--results", swept)[1])["spec"]["task"] == "toy"


def test_two_entrants_are_compared(qbench: Qbench, swept: Path) -> None:
    code, out, _ = qbench("compare", "ste", "rtn", "--results", swept)
    assert code == 0 and out.startswith("ste − rtn\ntoy/xs: loss, lower is better; int2; 2 seeds\n")
    (found,) = json.loads(
        qbench("compare", "ste", "rtn", "--board", "small", "--json", "--results", swept)[1]
    )
    assert found["seeds"] == 2 and found["verdict"]
    assert qbench("compare", "ste", "rtm", "--results", swept)[::2] == (
        2,
        "qbench: unknown entrant 'rtm'; did you mean rtn? known: fp, rtn, ste\n",
    )


def test_a_run_is_reproduced(qbench: Qbench, swept: Path) -> None:
    key = next(d.name for d in swept.glob("runs/*/*"))
    code, out, _ = qbench("reproduce", key[:10], "--results", swept)
    assert code == 0 and out.startswith(f"{key}: ")
    (found,) = json.loads(qbench("reproduce", key, "--json", "--results", swept)[1])
    assert found["verdict"] in ("same", "within tolerance")


def test_a_cell_is_reproduced(qbench: Qbench, swept: Path) -> None:
    code, out, _ = qbench("reproduce", " ste  int2 toy/xs ", "--results", swept)
    assert code == 0 and out.endswith("2 runs: 2 same\n") and out.count("recorded") == 2
    assert (
        qbench("reproduce", "ste int2 toy/xs", "--seeds", "1", "--results", swept)[1].count(
            "recorded"
        )
        == 1
    )
    code, _, err = qbench("reproduce", "ste int3 toy/xs", "--board", "small", "--results", swept)
    assert code == 2 and "did you mean ste int2 toy/xs" in err
    assert qbench("reproduce", "ste int2 toy/xs", "--board", "smal", "--results", swept)[
        2
    ].endswith("unknown board 'smal'; did you mean small?\n")


def test_a_beginning_of_a_key_may_be_too_short(qbench: Qbench, swept: Path) -> None:
    key = next(d.name for d in swept.glob("runs/*/*"))
    for words in (
        ["show", key[:4]],
        ["reproduce", key[:4]],
        ["submit", key[:4], "--out", "x.qbench.zip"],
    ):
        code, out, err = qbench(*words, "--results", swept)
        assert (code, out) == (
            2,
            "",
        ) and f"'{key[:4]}' is too short for a run's key: write at least 6" in err
    code, _, err = qbench("submit", "smal", "--out", "x.qbench.zip", "--results", swept)
    assert code == 2 and "unknown board or run 'smal'; did you mean small?" in err


def test_a_failed_run_is_reproduced_without_its_traceback(qbench: Qbench, tmp_path: Path) -> None:
    text = SMALL.replace('["fp", "rtn", "ste"]', '["fp"]').replace(
        "recipe.steps = 10", "recipe = { steps = 10, lr = 1e30, clip = 0.0 }"
    )
    (tmp_path / "wild.toml").write_text(text.replace("seeds = 2", "seeds = 1"))
    assert qbench("sweep", "wild.toml", "--workers", "1", "--quiet")[0] == 3
    key = next(d.name for d in (tmp_path / "results").glob("runs/*/*"))
    code, out, err = qbench("reproduce", key)
    assert (
        code == 0
        and not err
        and out.splitlines()[0] == f"{key}: same"
        and "recorded  failed: diverged: " in out
    )


def test_an_unknown_name_is_answered_with_the_nearest_of_many(
    qbench: Qbench, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    with Store(results) as store:
        store.save_board(
            fake_board_members(
                "many",
                [
                    (make_run_config(0, "ste", f"int{bits}", size=size), None)
                    for bits in (1, 2, 3, 4, 8)
                    for size in ("xs", "s", "m")
                ],
                1,
            )
        )
    code, _, err = qbench("reproduce", "zzz")
    assert code == 2 and err.count("digits/") == 8 and err.endswith(" and 7 more\n")


def test_the_store_can_be_checked_and_rebuilt(qbench: Qbench, tmp_path: Path) -> None:
    results = tmp_path / "results"
    make_attempt(results, make_run_config())
    (run,) = iterate_attempts(results)
    assert "without its artefact" in qbench("db", "check")[1]
    run.export.mkdir()
    run.artefact.write_bytes(b"packed")
    with Store(results) as store:
        store.save_board(fake_board_members("b", [(make_run_config(), None)], 1))
        store.write_snapshot()
    assert qbench("db", "check")[:2] == (
        0,
        "1 finished attempt, 0 unfinished\nthe store agrees with the files\n",
    )
    make_attempt(results, make_run_config(1))
    code, out, _ = qbench("db", "check", "--json")
    assert code == 5 and json.loads(out)["missing"] == [f"{make_run_config(1).key}/1"]
    assert qbench("db", "rebuild")[0] == 0 and qbench("db", "check")[0] == 0


def test_methods_and_tasks_are_listed(qbench: Qbench) -> None:
    methods = {m["name"]: m for m in json.loads(qbench("methods", "--json")[1])}
    assert (
        {"fp", "rtn", "ste"} <= set(methods)
        and methods["ste"]["options"]
        and not methods["ste"]["error"]
    )
    tasks = {t["name"]: t for t in json.loads(qbench("tasks", "--json")[1])}
    assert {"linreg", "twolayer", "digits", "grammar"} <= set(tasks) and "xs" in tasks["grammar"][
        "sizes"
    ]
    assert "ste" in qbench("methods")[1] and "digits" in qbench("tasks")[1]


def test_doctor_checks_the_machine(qbench: Qbench) -> None:
    code, out, _ = qbench("doctor", "--json")
    assert code == int(not all(f["fine"] for f in json.loads(out))) and {"torch", "results"} <= {
        f["what"].split()[0] for f in json.loads(out)
    }


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script(qbench: Qbench, shell: str) -> None:
    code, out, _ = qbench("completion", shell)
    assert code == 0 and f"_QBENCH_COMPLETE={shell}_complete" in out.replace(" ", "")


def test_completion_proposes_commands() -> None:
    env = {
        **os.environ,
        "_QBENCH_COMPLETE": "bash_complete",
        "COMP_WORDS": "qbench comp",
        "COMP_CWORD": "1",
    }
    code = "import sys; sys.argv[0] = 'qbench'; from qbench.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert {line.split(",")[1] for line in done.stdout.split()} == {"compare", "completion"}, (
        done.stderr
    )


def test_check_prints_one_line_for_each_check(qbench: Qbench) -> None:
    code, out, _ = qbench("check", "RTN", "--quick")
    assert code == 0 and re.search(r"RTN: \d+ passed, 0 failed", out) and "FAILED" not in out


# ---- the whole surface ----


def list_commands(group: Group, *path: str) -> list[tuple[str, ...]]:
    """Return the words of every command below a group."""
    words: list[tuple[str, ...]] = []
    for name in group.list_commands(Context(group)):
        command = group.commands[name]
        is_group = isinstance(command, Group)
        words += list_commands(command, *path, name) if is_group else [(*path, name)]
    return words


@pytest.mark.parametrize("words", list_commands(cli.cli), ids=" ".join)
def test_every_command_and_option_has_help(qbench: Qbench, words: tuple[str, ...]) -> None:
    code = qbench(*words, "--help")[0]
    command = cli.cli
    for word in words:
        command = command.commands[word]  # type: ignore[assignment,attr-defined]
    assert code == 0 and command.help
    assert all(
        getattr(p, "help", "")
        for p in command.params
        if p.param_type_name == "option" and p.name != "help"
    )


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m qbench methods --json | head -1",
        shell=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("[") and "Traceback" not in done.stderr
