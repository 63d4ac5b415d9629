"""Sweep files and plans: what may be written, what it comes to, and one line for everything that may not."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from qbench.errors import UsageError
from qbench.runs.config import RunConfig
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import load_builtin_board, list_builtin_boards, list_plugin_modules, read_sweep_file, parse_sweep
from qbench.sweeps.cells import Plan
from qbench.sweeps.plan import make_plan
from tests.stage import ROOT, set_up, stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
GOLDEN = Path(__file__).parents[1] / "golden" / "plan.json"
"""Made again by `python -m tests.test_sweepfile`, after a change of KEY_VERSION."""

SMALL = """
board = "small"
methods = ["plain", "after"]
tasks = ["stage"]
formats = ["int2", "int4"]
seeds = 2
"""
RICH = """
board = "rich"
version = 3
title = "Everything that can be said"
seeds = [4, 1]
start = "plain:0.5"
methods = ["after"]
[formats]
weights = ["int1", "int4"]
granularity = ["channel", "block-32"]
[recipe]
steps = 10
lr = [0.01, 0.1]
[[task]]
name = "stage"
sizes = "all"
tilt = [1, 2]
recipe = { batch = 4, lr = 0.5 }
[[task]]
name = "stage"
tilt = 3
formats = "int8"
[[method]]
name = "actor"
role = ["good", "nan"]
[[method]]
name = "actor"
label = "Fast actor"
lr = [1.0, 2.0]
steps_seen = [1, 2]
"""


def plan_of(text: str) -> Plan:
    return make_plan(parse_sweep(text, "s.toml"))


def test_a_file_in_six_lines() -> None:
    plan = plan_of(SMALL)
    assert [run.title for run in plan.runs.values()] == [
        f"{name} stage/xs seed {seed}" for seed in (0, 1) for name in ("plain", "after int2", "after int4")
    ]  # fmt: skip
    full = {run.seed: run.key for run in plan.runs.values() if run.cell.label == "plain"}
    assert all(
        run.base == full[run.seed] for run in plan.runs.values() if run.cell.label == "after"
    )


def test_the_short_and_the_long_form_mean_the_same() -> None:
    long = (
        'board = "other"\nseeds = [0, 1]\n[formats]\nweights = ["int2", "int4"]\ngranularity = "channel"\nactivations = []\n'
        + (
            '[[method]]\nname = "plain"\n[[method]]\nname = "after"\n[[task]]\nname = "stage"\nsizes = ["xs"]\ntilt = 1\nladder = [1, 2]\n'
        )
    )
    assert list(plan_of(SMALL).runs) == list(plan_of(long).runs)


def test_every_axis_multiplies_and_full_precision_is_not_multiplied_by_formats() -> None:
    plan = plan_of(RICH)
    cells = Counter((c.label, c.example.task_params["tilt"], c.extra) for c in plan.cells)
    beds = 2  # two sizes; the task's own lr takes the place of the sweep's two
    assert cells["actor (role=good)", 1.0, False] == beds * 2, (
        "int4 in two granularities; int1 is refused"
    )
    assert cells["Fast actor", 2.0, False] == beds * 2 * 2, "its own two rates"
    assert cells["Fast actor", 3.0, False] == 2, "int8, and granularity falls back to a channel"
    assert cells["after", 3.0, False] == 2, "the sweep's two rates"
    starts = Counter(c.example.recipe.steps for c in plan.cells if c.label == "plain" and c.extra)
    assert starts == {10: 6, 5: 6 + 10}, (
        "what `after` takes, and the starts at half the budget: one a recipe, and ten of Fast actor's rates"
    )
    assert {c.variant for c in plan.cells if c.label == "Fast actor"} == {
        f"lr={lr}{t}" for lr in (1, 2) for t in (", tilt=1", ", tilt=2", "")
    }
    assert {cell.refusal for cell in plan.skipped if cell.refusal} == {"too coarse for an actor"}
    assert all(run.seed in (4, 1) for run in plan.runs.values())


def test_keys_are_those_of_the_configurations_and_bases_come_first() -> None:
    for plan in (plan_of(SMALL), plan_of(RICH)):
        seen: set[str] = set()
        for key, run in plan.runs.items():
            assert (
                key
                == run.key
                == run.config.key
                == RunConfig.from_json(json.loads(json.dumps(run.config.to_json()))).key
            )
            assert run.base is None or run.base in seen
            seen.add(key)


def test_a_post_training_method_brings_the_run_that_it_takes() -> None:
    alone = plan_of(SMALL.replace('"plain", ', ""))
    assert set(alone.runs) == set(plan_of(SMALL).runs)
    assert [c.label for c in alone.cells if c.extra] == ["plain"]


def test_the_order_of_words_and_tables_is_not_in_the_keys() -> None:
    lines = [block for block in RICH.strip().split("\n[[") if block]
    head, tables = lines[0], [f"[[{t}" for t in lines[1:]]
    random.Random(1).shuffle(tables)
    assert sorted(plan_of("\n".join([head, *tables])).runs) == sorted(plan_of(RICH).runs)


@pytest.mark.parametrize(
    "change", ["version = 2", 'start = "plain:.5"', "recipe.steps = 13", "recipe.lr = 0.02"]
)
def test_what_can_move_a_score_is_in_the_keys(change: str) -> None:
    assert not set(plan_of(SMALL).runs) & set(plan_of(SMALL + change).runs)


@pytest.mark.parametrize(
    "change", ['title = "Other"', "recipe.steps = 12", 'formats = ["int4", "int2"]']
)
def test_what_cannot_is_not(change: str) -> None:
    text = SMALL.replace('formats = ["int2", "int4"]\n', "") if "formats" in change else SMALL
    assert set(plan_of(SMALL).runs) == set(plan_of(text + change).runs)


PUBLISHED = (
    SMALL + 'track = "as-published"\n[[method]]\nname = "actor"\npreset = "debut"\nrole = "quiet"\n'
)


def test_a_preset_brings_its_own_recipe_start_and_parameters() -> None:
    (cell,) = (
        c
        for c in plan_of(PUBLISHED).cells
        if c.example.method == "actor" and c.example.weights.format == "int2"
    )
    usual = next(
        c for c in plan_of(PUBLISHED).cells if c.label == "plain" and not c.extra
    ).example.recipe
    assert cell.label == "actor as published (debut)" and cell.example.start == "plain:0.5"
    assert cell.example.recipe == dataclasses.replace(usual, optimizer="sgd", lr=0.5)
    assert (cell.example.method_params["at"], cell.example.method_params["role"]) == (7, "quiet")
    assert cell.base and cell.base.example.recipe == dataclasses.replace(
        cell.example.recipe, steps=6
    )
    other = plan_of(PUBLISHED + "lr = 0.25\nat = 3\n").cells
    assert {
        (c.example.recipe.lr, c.example.method_params["at"])
        for c in other
        if c.example.method == "actor"
    } == {(0.25, 3)}


def test_activations_are_an_axis_and_a_task_without_them_skips_the_cell() -> None:
    text = (
        SMALL.replace('formats = ["int2", "int4"]', "")
        + '[formats]\nweights = ["int4", "none"]\nactivations = ["none", "int8"]\n'
    )
    plan = plan_of(text)
    assert {c.title for c in plan.skipped} == {
        "after int4 a:int8 stage/xs",
        "after a:int8 stage/xs",
    }
    assert all("activations" in str(c.refusal) for c in plan.skipped)
    assert {c.title for c in plan.cells} == {"plain stage/xs", "after int4 stage/xs"}


def test_the_golden_plan() -> None:
    assert json.loads(GOLDEN.read_text()) == golden()


def golden() -> dict[str, str]:
    return {run.title: key for text in (SMALL, RICH) for key, run in plan_of(text).runs.items()}


BAD = {
    "not TOML": ("board = ", "s.toml: not TOML: invalid value (at end of document)"),
    "where it is not": ("board = 'x'\nseeds = = 3", "at line 2, column 9"),
    "no board": ("seeds = 3", 'board is missing: write board = "s"'),
    "unknown word": (SMALL + "metods = 1", "s.toml: unknown key 'metods'; did you mean method"),
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
    "the sweep's word in [formats]": (
        SMALL.replace("formats =", "[formats]\nweights ="),
        "[formats]: seeds belongs to the sweep: move it above",
    ),
    "unknown size": (
        SMALL.replace('tasks = ["stage"]', "") + '[[task]]\nname = "stage"\nsizes = ["xxs"]',
        "[[task]] 1 (stage): unknown size 'xxs'; did you mean xs",
    ),
    "preset in a fair track": (
        PUBLISHED.replace('track = "as-published"', ""),
        """[[method]] 1: preset 'debut' is a recipe of its own: it needs track = "as-published" at the top""",
    ),
    "unknown track": (
        SMALL + 'track = "published"',
        "s.toml: track: unknown track 'published'; did you mean as-published",
    ),
    "unknown preset": (
        PUBLISHED.replace("debut", "debu"),
        "[[method]] 1 (actor): unknown preset 'debu'; did you mean debut",
    ),
    "preset with an unknown word": (
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
    "the sweep's word in a table": (
        SMALL.replace("seeds = 2", "") + '[[task]]\nname = "stage"\nseeds = 2',
        "seeds belongs to the sweep: move it above",
    ),
    "unknown word of a recipe": (
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
    "a rate of nothing": (SMALL + "[recipe]\nlr = [0.1, 0]", "lr must be positive"),
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
    "zero seeds": (SMALL.replace("seeds = 2", "seeds = 0"), "seeds: a whole number from 1"),
    "a billion seeds": (
        SMALL.replace("seeds = 2", "seeds = 1000000000"),
        "seeds: a whole number from 1",
    ),
    "negative seed": (SMALL.replace("seeds = 2", "seeds = [-1]"), "seeds: a whole number from 0"),
    "seed twice": (SMALL.replace("seeds = 2", "seeds = [1, 2, 1]"), "seeds: 1 is there twice"),
    "format twice": (SMALL.replace("int2", "int4"), "s.toml: formats: 'int4' is there twice"),
    "method twice": (
        SMALL + '[[method]]\nname = "plain"',
        "[[method]] 1: method 'plain' is already there",
    ),
    "value twice": (SMALL + '[[method]]\nname = "actor"\nat = [1, 1]', "at: 1 is there twice"),
    "empty axis": (
        SMALL + '[[method]]\nname = "actor"\nrole = []',
        "[[method]] 1: role is an empty list",
    ),
    "empty formats": (SMALL.replace('["int2", "int4"]', "[]"), "s.toml: formats: an empty list"),
    "empty rates": (SMALL + "[recipe]\nlr = []", "lr: an empty list"),
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
    "a title of two lines": (SMALL + 'title = "a\\nb"', "title: one line"),
    "a start of more than the budget": (SMALL + 'start = "plain:1.5"', 'start: "scratch", or'),
    "an unknown start": (
        SMALL + 'start = "plan:0.5"',
        "start: unknown method 'plan'; did you mean plain",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_line_that_says_what_and_where(name: str) -> None:
    text, expected = BAD[name]
    with pytest.raises(UsageError) as caught:
        plan_of(text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("s.toml") and "\n" not in message and len(message) < 300
    assert caught.value.code == 2


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
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
        plan_of(SMALL.replace('"plain"', '"broken"'))


def test_the_quick_board_ships_and_is_the_tracked_one() -> None:
    assert "quick" in list_builtin_boards()
    config = load_builtin_board("quick")
    assert config.text == (ROOT / "results" / "quick" / "sweep.toml").read_text()
    assert (
        config.board == "quick"
        and len(config.seeds) == 3
        and config.formats.weights == ("int2", "int4")
    )
    assert list_plugin_modules(config)[0] == "qbench_methods.fp"
    plan = make_plan(config)
    assert len(plan.runs) == 3 * len(plan.cells) and not any(c.extra for c in plan.cells)
    with pytest.raises(UsageError, match="did you mean quick"):
        load_builtin_board("quik")


def test_a_bad_file_is_refused_without_torch() -> None:
    code = "import sys; from qbench.sweepfile.read import parse_sweep\ntry: read_text('board = ', 'x')\nexcept Exception as e: print(e, 'torch' in sys.modules)"
    assert (
        "False"
        in subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        ).stdout
    )


def test_planning_is_linear() -> None:
    """Twenty thousand runs in a second or so: a hundred thousand stay far below five."""
    config = parse_sweep(SMALL.replace("seeds = 2", "seeds = 7000"), "s.toml")
    make_plan(parse_sweep(SMALL, "s.toml"))
    began = time.process_time()
    assert len(make_plan(config).runs) == 21_000
    assert time.process_time() - began < 5


def test_a_config_holds_what_was_written() -> None:
    config = parse_sweep(RICH, "s.toml")
    assert (
        isinstance(config, SweepConfig)
        and config.text == RICH
        and config.start == "plain:0.5"
        and config.seeds == (4, 1)
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, set_up(Path(folder)):
        GOLDEN.write_text(json.dumps(golden(), indent=1) + "\n")


def test_two_entrants_cannot_share_a_label() -> None:
    text = 'board = "b"\nmethods = ["fp", "rtn"]\ntasks = ["toy"]\nformats = ["int4"]\n[[method]]\nname = "ste"\nlabel = "rtn"\n'
    with pytest.raises(
        UsageError, match="'rtn' is what another entrant is called: give it a label of its own"
    ):
        make_plan(parse_sweep(text, "s.toml"))
