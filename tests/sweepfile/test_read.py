"""Sweep files and plans: what a file may say, and the runs that it plans."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest

from qbench.errors import UsageError
from qbench.runs.config import RunConfig
from qbench.sweepfile.config import SweepConfig
from qbench.sweepfile.read import (
    list_builtin_boards,
    list_plugin_modules,
    load_builtin_board,
    parse_sweep,
)
from qbench.sweeps.plan import make_plan
from tests.stage import ROOT, set_up, stage
from tests.sweepfile.sweep_texts import PUBLISHED, RICH, SMALL, plan_text

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")
GOLDEN = Path(__file__).parents[1] / "golden" / "plan.json"
"""`python -m tests.sweepfile.test_read` makes it again, after a change of KEY_VERSION."""


def test_a_file_of_six_lines_makes_a_plan() -> None:
    plan = plan_text(SMALL)
    assert [run.title for run in plan.runs.values()] == [
        f"{name} stage/xs seed {seed}"
        for seed in (0, 1)
        for name in ("plain", "after int2", "after int4")
    ]
    full = {run.seed: run.key for run in plan.runs.values() if run.cell.label == "plain"}
    followers = [run for run in plan.runs.values() if run.cell.label == "after"]
    assert all(run.base == full[run.seed] for run in followers)


def test_short_and_long_form_mean_the_same() -> None:
    long = (
        'board = "other"\nseeds = [0, 1]\n'
        '[formats]\nweights = ["int2", "int4"]\ngranularity = "channel"\nactivations = []\n'
        '[[method]]\nname = "plain"\n[[method]]\nname = "after"\n'
        '[[task]]\nname = "stage"\nsizes = ["xs"]\ntilt = 1\nladder = [1, 2]\n'
    )
    assert list(plan_text(SMALL).runs) == list(plan_text(long).runs)


def test_every_axis_multiplies_cells_except_formats_of_full_precision() -> None:
    plan = plan_text(RICH)
    cells = Counter((c.label, c.example.task_params["tilt"], c.extra) for c in plan.cells)
    settings = 2  # two sizes; the task's own lr replaces the two of the sweep
    assert cells["actor (role=good)", 1.0, False] == settings * 2, (
        "int4 in two granularities; int1 is refused"
    )
    assert cells["Fast actor", 2.0, False] == settings * 2 * 2, "its own two rates"
    assert cells["Fast actor", 3.0, False] == 2, "int8, and granularity falls back to a channel"
    assert cells["after", 3.0, False] == 2, "the sweep's two rates"
    starts = Counter(c.example.recipe.steps for c in plan.cells if c.label == "plain" and c.extra)
    assert starts == {10: 6, 5: 6 + 10}, (
        "bases of `after`, and starts at half the budget: one a recipe, ten for Fast actor's rates"
    )
    assert {c.variant for c in plan.cells if c.label == "Fast actor"} == {
        f"lr={lr}{t}" for lr in (1, 2) for t in (", tilt=1", ", tilt=2", "")
    }
    assert {cell.refusal for cell in plan.skipped if cell.refusal} == {"too coarse for an actor"}
    assert all(run.seed in (4, 1) for run in plan.runs.values())


def test_keys_are_those_of_the_configurations_and_bases_come_first() -> None:
    for plan in (plan_text(SMALL), plan_text(RICH)):
        earlier: set[str] = set()
        for key, run in plan.runs.items():
            restored = RunConfig.from_json(json.loads(json.dumps(run.config.to_json())))
            assert key == run.key == run.config.key == restored.key
            assert run.base is None or run.base in earlier
            earlier.add(key)


def test_a_post_training_method_adds_the_run_that_it_starts_from() -> None:
    alone = plan_text(SMALL.replace('"plain", ', ""))
    assert set(alone.runs) == set(plan_text(SMALL).runs)
    assert [c.label for c in alone.cells if c.extra] == ["plain"]


def test_the_order_of_keys_and_tables_changes_no_key() -> None:
    lines = [block for block in RICH.strip().split("\n[[") if block]
    head, tables = lines[0], [f"[[{t}" for t in lines[1:]]
    random.Random(1).shuffle(tables)
    assert sorted(plan_text("\n".join([head, *tables])).runs) == sorted(plan_text(RICH).runs)


@pytest.mark.parametrize(
    "change", ["version = 2", 'start = "plain:.5"', "recipe.steps = 13", "recipe.lr = 0.02"]
)
def test_settings_that_can_change_a_score_change_the_keys(change: str) -> None:
    assert not set(plan_text(SMALL).runs) & set(plan_text(SMALL + change).runs)


@pytest.mark.parametrize(
    "change", ['title = "Other"', "recipe.steps = 12", 'formats = ["int4", "int2"]']
)
def test_settings_that_cannot_change_a_score_do_not_change_the_keys(change: str) -> None:
    text = SMALL.replace('formats = ["int2", "int4"]\n', "") if "formats" in change else SMALL
    assert set(plan_text(SMALL).runs) == set(plan_text(text + change).runs)


def test_a_preset_brings_its_own_recipe_start_and_parameters() -> None:
    cells = plan_text(PUBLISHED).cells
    (cell,) = (c for c in cells if c.example.method == "actor" and c.example.format_label == "int2")
    usual = next(c for c in cells if c.label == "plain" and not c.extra).example.recipe
    assert cell.label == "actor as published (debut)" and cell.example.start == "plain:0.5"
    recipe = cell.example.recipe
    assert recipe == dataclasses.replace(usual, optimizer="sgd", lr=0.5)
    assert (cell.example.method_params["at"], cell.example.method_params["role"]) == (7, "quiet")
    assert cell.base and cell.base.example.recipe == dataclasses.replace(recipe, steps=6)
    other = plan_text(PUBLISHED + "lr = 0.25\nat = 3\n").cells
    assert {
        (c.example.recipe.lr, c.example.method_params["at"])
        for c in other
        if c.example.method == "actor"
    } == {(0.25, 3)}


def test_activations_are_an_axis_and_a_task_without_them_skips_the_cell() -> None:
    formats = '[formats]\nweights = ["int4", "none"]\nactivations = ["none", "int8"]\n'
    plan = plan_text(SMALL.replace('formats = ["int2", "int4"]', "") + formats)
    assert {c.title for c in plan.skipped} == {
        "after int4 a:int8 stage/xs",
        "after a:int8 stage/xs",
    }
    assert all("activations" in str(c.refusal) for c in plan.skipped)
    assert {c.title for c in plan.cells} == {"plain stage/xs", "after int4 stage/xs"}


def test_the_golden_plan() -> None:
    assert json.loads(GOLDEN.read_text()) == list_planned_keys()


def list_planned_keys() -> dict[str, str]:
    """Return the keys of two plans by the titles of their runs."""
    return {run.title: key for text in (SMALL, RICH) for key, run in plan_text(text).runs.items()}


def test_the_quick_board_ships_and_equals_the_tracked_one() -> None:
    assert "quick" in list_builtin_boards()
    config = load_builtin_board("quick")
    assert config.text == (ROOT / "results" / "quick" / "sweep.toml").read_text()
    assert config.board == "quick" and len(config.seeds) == 3
    assert config.formats.weights == ("int2", "int4")
    assert list_plugin_modules(config)[0] == "qbench_methods.fp"
    plan = make_plan(config)
    assert len(plan.runs) == 3 * len(plan.cells) and not any(c.extra for c in plan.cells)
    with pytest.raises(UsageError, match="did you mean quick"):
        load_builtin_board("quik")


def test_the_time_of_planning_grows_linearly() -> None:
    """Twenty thousand runs take about a second, so that a hundred thousand stay below five."""
    config = parse_sweep(SMALL.replace("seeds = 2", "seeds = 7000"), "s.toml")
    make_plan(parse_sweep(SMALL, "s.toml"))
    began = time.process_time()
    assert len(make_plan(config).runs) == 21_000
    assert time.process_time() - began < 5


def test_a_config_holds_what_was_written() -> None:
    config = parse_sweep(RICH, "s.toml")
    assert isinstance(config, SweepConfig)
    assert config.text == RICH
    assert config.start == "plain:0.5" and config.seeds == (4, 1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, set_up(Path(folder)):
        GOLDEN.write_text(json.dumps(list_planned_keys(), indent=1) + "\n")
