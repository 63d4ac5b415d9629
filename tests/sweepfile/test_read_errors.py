"""Every mistake in a sweep file is one line that says what is wrong and where."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qbench.errors import UsageError
from qbench.sweepfile.read import parse_sweep, read_sweep_file
from qbench.sweeps.plan import make_plan
from tests.stage import ROOT, stage
from tests.sweepfile.sweep_texts import PUBLISHED, SMALL, plan_text

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")

BAD = {
    "not TOML": ("board = ", "s.toml: not TOML: invalid value (at end of document)"),
    "the place of an error in TOML": ("board = 'x'\nseeds = = 3", "at line 2, column 9"),
    "no board": ("seeds = 3", 'board is missing: write board = "s"'),
    "unknown key": (SMALL + "metods = 1", "s.toml: unknown key 'metods'; did you mean method"),
    "no methods": ('board = "b"\ntasks = ["stage"]', "no methods"),
    "no tasks": ('board = "b"\nmethods = ["plain"]', "no tasks"),
    "empty methods": ('board = "b"\nmethods = []\ntasks = ["stage"]', "no methods"),
    "unknown method": (
        SMALL.replace("plain", "plane"),
        "s.toml: methods: unknown method 'plane'; did you mean plain",
    ),
    "unknown task": (
        SMALL.replace('"stage"', '"stag"'),
        "tasks: unknown task 'stag'; did you mean stage",
    ),
    "unknown format": (SMALL.replace("int2", "int9"), "formats: unknown format 'int9'"),
    "unknown granularity": (
        SMALL.replace("formats =", 'formats.granularity = "chanel"\nformats.weights ='),
        "did you mean channel",
    ),
    "a key of the sweep in [formats]": (
        SMALL.replace("formats =", "[formats]\nweights ="),
        "[formats]: seeds belongs to the sweep: move it above",
    ),
    "unknown size": (
        SMALL.replace('tasks = ["stage"]', "") + '[[task]]\nname = "stage"\nsizes = ["xxs"]',
        "[[task]] 1 (stage): unknown size 'xxs'; did you mean xs",
    ),
    "preset in a fair track": (
        PUBLISHED.replace('track = "as-published"', ""),
        "[[method]] 1: preset 'debut' is a recipe of its own: "
        'it needs track = "as-published" at the top',
    ),
    "unknown track": (
        SMALL + 'track = "published"',
        "s.toml: track: unknown track 'published'; did you mean as-published",
    ),
    "unknown preset": (
        PUBLISHED.replace("debut", "debu"),
        "[[method]] 1 (actor): unknown preset 'debu'; did you mean debut",
    ),
    "preset with an unknown key": (
        PUBLISHED.replace("debut", "flop"),
        "preset flop): unknown word of a recipe 'optimiser'; did you mean optimizer",
    ),
    "preset out of its domain": (
        PUBLISHED.replace("debut", "farce"),
        "preset farce): lr must be positive",
    ),
    "unknown key of a task": (
        SMALL + '[[task]]\nname = "stage"\nsize = "xs"',
        "s.toml: [[task]] 1: unknown key 'size'; did you mean sizes",
    ),
    "unknown parameter": (
        SMALL + '[[method]]\nname = "actor"\nrolle = "good"',
        "[[method]] 1: unknown key 'rolle'; did you mean role",
    ),
    "a key of the sweep in a table": (
        SMALL.replace("seeds = 2", "") + '[[task]]\nname = "stage"\nseeds = 2',
        "seeds belongs to the sweep: move it above",
    ),
    "unknown key of a recipe": (
        SMALL + "[recipe]\nstep = 3",
        "s.toml: [recipe]: unknown key 'step'; did you mean steps",
    ),
    "unknown axis of formats": (
        SMALL.replace('formats = ["int2", "int4"]', "[formats]\nweight = 'int4'"),
        "[formats]: unknown key 'weight'; did you mean weights",
    ),
    "negative budget": (
        SMALL + "[recipe]\nsteps = -5",
        "[recipe]: steps must be at least 1, not -5",
    ),
    "a learning rate of zero": (SMALL + "[recipe]\nlr = [0.1, 0]", "lr must be positive"),
    "not a number": (SMALL + "[recipe]\nlr = nan", "not a finite number"),
    "wrong type in a recipe": (
        SMALL + '[recipe]\nsteps = "many"',
        "steps: expected int, not str 'many'",
    ),
    "wrong type of seeds": (
        SMALL.replace("seeds = 2", 'seeds = "two"'),
        "seeds: expected int, not str",
    ),
    "a half seed": (SMALL.replace("seeds = 2", "seeds = [0.5]"), "expected int, not float"),
    "no seeds": (SMALL.replace("seeds = 2", "seeds = []"), "seeds: from 1 to"),
    "zero seeds": (SMALL.replace("seeds = 2", "seeds = 0"), "seeds: expected an integer from 1"),
    "a billion seeds": (
        SMALL.replace("seeds = 2", "seeds = 1000000000"),
        "seeds: expected an integer from 1",
    ),
    "negative seed": (
        SMALL.replace("seeds = 2", "seeds = [-1]"),
        "seeds: expected an integer from 0",
    ),
    "seed twice": (SMALL.replace("seeds = 2", "seeds = [1, 2, 1]"), "seeds: 1 occurs twice"),
    "format twice": (SMALL.replace("int2", "int4"), "s.toml: formats: 'int4' occurs twice"),
    "method twice": (
        SMALL + '[[method]]\nname = "plain"',
        "[[method]] 1: method 'plain' is listed twice, here and in methods: remove one",
    ),
    "value twice": (SMALL + '[[method]]\nname = "actor"\nat = [1, 1]', "at: 1 occurs twice"),
    "empty axis": (
        SMALL + '[[method]]\nname = "actor"\nrole = []',
        "[[method]] 1: role is an empty list",
    ),
    "empty formats": (
        SMALL.replace('["int2", "int4"]', "[]"),
        "s.toml: formats: the list is empty",
    ),
    "empty rates": (SMALL + "[recipe]\nlr = []", "lr: the list is empty"),
    "no formats": (
        SMALL.replace('formats = ["int2", "int4"]', ""),
        'no format is named: write formats = ["int4"]',
    ),
    "a method without a name": (
        SMALL + '[[method]]\nrole = "good"',
        "[[method]] 1: name is missing",
    ),
    "a table for a list": (SMALL + '[method]\nname = "actor"', "write [[method]]"),
    "a list for a table": (SMALL + "recipe = [1]", "a recipe is a table"),
    "a table for a value": (
        SMALL + '[[method]]\nname = "actor"\nrole = { x = 1 }',
        "expected str, not dict",
    ),
    "a date": (
        SMALL + '[[method]]\nname = "actor"\nseconds = 2020-01-01',
        "expected float, not date",
    ),
    "a value out of its domain": (
        SMALL + '[[method]]\nname = "actor"\nat = -1',
        "[[method]] 1: actor: at must not be negative",
    ),
    "another board's folder": (SMALL.replace('"small"', '"../small"'), "board: it names a folder"),
    "a title of two lines": (SMALL + 'title = "a\\nb"', "title: expected one line"),
    "a start of more than the budget": (SMALL + 'start = "plain:1.5"', 'start: "scratch", or'),
    "an unknown start": (
        SMALL + 'start = "plan:0.5"',
        "start: unknown method 'plan'; did you mean plain",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_an_error_is_one_line_that_says_what_and_where(name: str) -> None:
    text, expected = BAD[name]
    with pytest.raises(UsageError) as caught:
        plan_text(text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("s.toml") and "\n" not in message and len(message) < 300
    assert caught.value.code == 2


def test_errors_about_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    for path, expected in (
        (tmp_path / "none.toml", "no such sweep file"),
        (tmp_path / "binary.toml", "not UTF-8"),
        (tmp_path, "cannot be read"),
    ):
        with pytest.raises(UsageError, match=expected):
            read_sweep_file(path)


def test_a_plugin_that_cannot_be_imported_is_one_line() -> None:
    with pytest.raises(Exception, match="method 'broken' of qbench-stage 1 cannot be loaded"):
        plan_text(SMALL.replace('"plain"', '"broken"'))


def test_a_bad_file_is_refused_without_importing_torch() -> None:
    code = (
        "import sys\n"
        "from qbench.sweepfile.read import parse_sweep\n"
        "try: parse_sweep('board = ', 'x')\n"
        "except Exception as e: print(e, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert "False" in done.stdout


def test_two_entrants_cannot_share_a_label() -> None:
    text = (
        'board = "b"\nmethods = ["fp", "rtn"]\ntasks = ["toy"]\nformats = ["int4"]\n'
        '[[method]]\nname = "ste"\nlabel = "rtn"\n'
    )
    with pytest.raises(
        UsageError, match="'rtn' is what another entrant is called: give it a label of its own"
    ):
        make_plan(parse_sweep(text, "s.toml"))
