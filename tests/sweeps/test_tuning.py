"""Tuning without training: the table, the drawn points, halving, choices, and the best of n."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qbench.errors import UsageError
from qbench.plugins import registry
from qbench.stats.trial_selection import expected_scores_of_best, find_leaders, rank_trials
from qbench.sweepfile.read import parse_sweep
from qbench.sweepfile.tuning_space import Tuning, TuningAxis
from qbench.sweepfile.tuning_table import read_tuning_table
from qbench.sweeps.board_members import make_board_members
from qbench.sweeps.cells import Plan, PlannedRun
from qbench.sweeps.plan import Planner, make_plan
from tests.stage import stage

__all__ = ["stage"]


pytestmark = pytest.mark.usefixtures("stage")

SMALL = """
board = "tuned"
methods = ["plain", "after", "actor"]
tasks = ["stage"]
formats = ["int2", "int4"]
seeds = 2
"""
RATES = "lr = { low = 1e-3, high = 1e-1, log = true }\n"
FOUR = f"[tuning]\ntrials = 4\n{RATES}"
OWN = "[tuning.own.actor]\nseconds = { low = 0.0, high = 0.01 }\n"
HALVED = FOUR + "halving = { rungs = [0.25, 0.5], keep = 0.5 }\n"
Judge = Callable[[PlannedRun], float | None]


def plan_text(text: str, known: Mapping[str, float | None] | None = None) -> Plan:
    return make_plan(parse_sweep(text, "s.toml"), known)


def read_tuning_of(text: str) -> Tuning:
    found = parse_sweep(SMALL + text, "s.toml").tuning
    assert found is not None
    return found


def simulate_sweep(text: str, judge: Judge) -> tuple[Plan, dict[str, float | None]]:
    """Plan a sweep whose runs end as `judge` says, until no new runs follow."""
    planner, known = Planner(parse_sweep(text, "s.toml")), dict[str, float | None]()
    while new := [run for key, run in planner.plan(known).runs.items() if key not in known]:
        known |= {run.key: judge(run) for run in new}
    return planner.plan(known), known


def score_by_rate(run: PlannedRun) -> float:
    """Return the learning rate as the validation: the lowest rate is the best."""
    return run.config.recipe.lr


# ---- what is drawn ----


def test_every_method_gets_the_same_points_and_its_own_values_in_addition() -> None:
    found = read_tuning_of(FOUR + OWN)
    shared, own = found.draw_trials("plain"), found.draw_trials("actor")
    assert len(shared) == 4 and [{"lr": point["lr"]} for point in own] == shared
    assert (
        all(0 <= point["seconds"] <= 0.01 for point in own)
        and len({point["seconds"] for point in own}) == 4
    )
    assert read_tuning_of(FOUR).draw_trials("actor") == shared, (
        "a method's own range changes no shared points"
    )


def test_the_drawn_values_are_pinned() -> None:
    """The values are in keys. Other numbers would mean that every board is tuned again."""
    assert [point["lr"] for point in read_tuning_of(FOUR).draw_trials("plain")] == [
        0.006605,
        0.03687,
        0.02659,
        0.00149,
    ]


def test_the_order_of_keys_in_the_file_changes_no_point() -> None:
    decay = "weight_decay = { values = [0.0, 0.1] }\n"
    one, other = read_tuning_of(FOUR + decay), read_tuning_of(FOUR.replace(RATES, decay + RATES))
    assert one.draw_trials("plain") == other.draw_trials("plain") and str(one) == str(other)


@given(st.integers(1, 40), st.integers(0, 2**31 - 1))
@settings(max_examples=20, deadline=None)
def test_more_trials_only_add_points(trials: int, seed: int) -> None:
    made = [
        Tuning({"lr": TuningAxis(1e-4, 1e-1, True)}, n, seed=seed).draw_trials("x")
        for n in (trials, 2 * trials)
    ]
    assert made[1][:trials] == made[0] and len({point["lr"] for point in made[1]}) == 2 * trials


def test_each_sixteenth_of_the_range_has_one_of_sixteen_sobol_points() -> None:
    points = Tuning(
        {"lr": TuningAxis(1e-4, 1e-1, True), "clip": TuningAxis(0.0, 1.0)}, 16
    ).draw_trials("x")
    places = [int(16 * math.log(point["lr"] / 1e-4) / math.log(1e3)) for point in points]
    assert sorted(places) == sorted(int(16 * point["clip"]) for point in points) == list(range(16))


@given(
    st.floats(1e-9, 1e6), st.floats(1.001, 1e6), st.booleans(), st.floats(0, 1, exclude_max=True)
)
def test_a_point_lies_in_its_range(low: float, factor: float, log: bool, share: float) -> None:
    axis = TuningAxis(low, low * factor, log)
    assert axis.low <= axis.value_at(share) <= axis.high


def test_a_grid_is_the_product_of_its_lists() -> None:
    grid = read_tuning_of(
        '[tuning]\nsampler = "grid"\nlr = { values = [0.1, 0.01] }\n'
        "beta2 = { values = [0.9, 0.99, 0.999] }\n"
    )
    assert grid.trials == 6 and [(p["lr"], p["beta2"]) for p in grid.draw_trials("actor")] == [
        (lr, b) for b, lr in itertools.product([0.9, 0.99, 0.999], [0.1, 0.01])
    ]


def test_values_near_an_end_are_at_the_edge_unless_there_are_only_two() -> None:
    rate, flat = TuningAxis(1e-4, 1.0, True), TuningAxis(0.0, 10.0)
    assert [rate.is_at_edge(x) for x in (1e-4, 1.5e-4, 1.7e-4, 1e-2, 0.6, 0.7)] == [
        True,
        True,
        False,
        False,
        False,
        True,
    ]
    assert [flat.is_at_edge(x) for x in (0.0, 0.49, 0.51, 9.4, 9.6)] == [
        True,
        True,
        False,
        False,
        True,
    ]
    assert [TuningAxis(values=(3, 1, 2)).is_at_edge(x) for x in (1, 2, 3)] == [True, False, True]
    assert not any(TuningAxis(values=(0.0, 0.1)).is_at_edge(x) for x in (0.0, 0.1))
    assert not TuningAxis(values=("absmax", "mse", "hessian")).is_at_edge("absmax")


def test_tuning_can_be_written_to_json_and_read_back() -> None:
    found = read_tuning_of(HALVED + OWN + "at = { values = [1, 2] }\n")
    assert Tuning.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert str(found) == (
        "4 trials for everyone (sobol, seed 0), at seed 1000: lr from 0.001 to 0.1 (log);"
        " and of its own for actor at in {1, 2}, seconds from 0 to 0.01; halving: 4 with 25 % of"
        " the steps, then 2 with 50 % of the steps, then 1 with 100 % of the steps"
    )


# ---- what trials come to ----

VALIDATIONS = st.lists(
    st.none() | st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5]), min_size=1, max_size=7
)


@given(VALIDATIONS, st.randoms(use_true_random=False), st.sampled_from(["lower", "higher"]))
def test_best_of_n_is_the_mean_over_all_subsets_of_n_trials(
    validation: list[float | None], chance: random.Random, better: str
) -> None:
    test = [
        None if v is None or chance.random() < 0.1 else chance.uniform(0, 9) for v in validation
    ]
    curve = expected_scores_of_best(validation, test, better)
    assert len(curve) == len(validation)
    for n, expected in enumerate(curve, 1):
        scores = [
            test[find_best_trial(drawn, validation, better)]
            for drawn in itertools.combinations(range(len(validation)), n)
        ]
        if None in scores:
            assert expected is None
        else:
            assert expected == pytest.approx(
                sum(s for s in scores if s is not None) / len(scores), rel=1e-12
            )


def find_best_trial(drawn: tuple[int, ...], validation: list[float | None], better: str) -> int:
    """Return the best trial: failed ones come last, and the lower number wins a tie."""

    def behind(i: int) -> tuple[bool, float, int]:
        value = validation[i]
        return value is None, 0.0 if value is None else -value if better == "higher" else value, i

    return min(drawn, key=behind)


def test_best_of_counts_a_failed_trial_without_giving_it_a_score() -> None:
    assert expected_scores_of_best([0.3, None, 0.1], [3.0, None, 1.0], "lower") == (
        None,
        pytest.approx(5 / 3),
        1.0,
    )
    assert expected_scores_of_best([None, None], [None, None], "lower") == (None, None)


def test_trials_are_ranked_by_failures_then_validation_then_number() -> None:
    runs = {0: [0.1, None], 1: [0.5, 0.5], 2: [0.4, 0.6], 3: [None, None], 4: [0.6, 0.6]}
    assert rank_trials(runs, "lower") == [1, 2, 4, 0] and rank_trials(runs, "higher") == [
        4,
        1,
        2,
        0,
    ]
    assert rank_trials({0: [None]}, "lower") == []


def test_a_lead_changes_only_by_the_minimum_effect() -> None:
    curves = {"a": [1.0, 0.9, 0.8, 0.8], "b": [2.0, 0.89, 0.7, 0.5], "c": [None, None, 0.79, 0.1]}
    assert find_leaders(curves, "lower", 0.05) == [("b", 3), ("c", 4)], (
        "the best of one or two trials of c may be a failed one"
    )
    assert find_leaders(curves, "lower", 5.0) == [("b", 3)]
    assert find_leaders({name: curves[name] for name in "ab"}, "lower", 0.05) == [
        ("a", 1),
        ("b", 3),
    ]
    assert (
        find_leaders({"a": [None, None], "b": [None, 1.0]}, "lower", 0.1) == [("b", 2)]
        and find_leaders({}, "lower", 0.1) == []
    )


# ---- what is planned ----


@pytest.mark.parametrize("more", ["", "halving = { rungs = [0.25], keep = 0.5 }\n"])
def test_all_trials_start_from_one_network(more: str) -> None:
    """Each seed has one network, trained at the untuned recipe with a share of all steps."""
    text = (
        'board = "b"\nseeds = 2\nmethods = ["fp", "rtn", "ste"]\ntasks = ["toy"]\n'
        'formats = ["int4"]\nstart = "fp:0.5"\nrecipe.steps = 40\n'
    )
    text += (
        "[tuning]\ntrials = 4\nlr = { low = 0.001, high = 0.1, log = true }\n"
        "weight_decay = { values = [0.0, 0.5] }\n" + more
    )
    known: dict[str, float | None] = {}
    sweep = parse_sweep(text, "s.toml")
    while (found := make_plan(sweep, known)).waiting:
        known |= {key: float(n) for n, key in enumerate(found.runs) if key not in known}
    networks = [run for run in found.runs.values() if run.config.start == "scratch"]
    usual = registry.build("tasks", "toy", {}).recipe("xs")
    assert sorted(run.seed for run in networks) == [0, 1, 1000]
    assert {
        (
            run.config.method,
            run.config.recipe.steps,
            run.config.recipe.lr,
            run.config.recipe.weight_decay,
        )
        for run in networks
    } == {("fp", 20, usual.lr, usual.weight_decay)}
    for run in found.runs.values():
        if run.config.start != "scratch" and run.config.method != "rtn":
            assert run.base == next(network.key for network in networks if network.seed == run.seed)
        elif run.config.method == "rtn":
            base = found.runs[str(run.base)]
            assert (base.config.method, base.config.recipe, base.config.start) == (
                "fp",
                run.config.recipe,
                "fp:0.5",
            )
    assert {cell.stage for cell in found.cells if cell.example.start == "scratch"} == {""} and all(
        cell.extra for cell in found.cells if cell.example.start == "scratch"
    )


def test_all_entrants_and_controls_have_the_same_trials() -> None:
    first = plan_text(SMALL + FOUR + OWN)
    trials = Counter((c.label, c.example.format_label) for c in first.cells if not c.extra)
    assert trials == dict.fromkeys(
        [("plain", "fp32"), *itertools.product(("after", "actor"), ("int2", "int4"))], 4
    )
    assert {run.seed for run in first.runs.values()} == {1000} and not any(
        cell.stage == "final" for cell in first.cells
    )
    assert len(first.waiting) == 5 and all(
        waiting.runs == 2 and len(waiting.keys) == 4 for waiting in first.waiting
    )
    rates = {
        label: {c.example.recipe.lr for c in first.cells if c.label == label}
        for label in ("plain", "after", "actor")
    }
    assert rates["plain"] == rates["after"] == rates["actor"]


def test_trials_of_a_post_training_method_tune_the_recipe_of_its_base() -> None:
    first = plan_text(SMALL + FOUR)
    for run in first.runs.values():
        if run.cell.label == "after":
            assert run.base and first.runs[run.base].config.recipe == run.config.recipe
    alone = plan_text(SMALL.replace('"plain", ', "").replace('"actor"', "") + FOUR)
    assert set(alone.runs) < set(first.runs) and {c.label for c in alone.cells if c.extra} == {
        "plain"
    }


def test_final_runs_equal_those_of_a_file_with_the_chosen_values() -> None:
    text = SMALL + FOUR
    whole, _ = simulate_sweep(text, score_by_rate)
    finals = {key: run for key, run in whole.runs.items() if run.cell.stage == "final"}
    lowest = min(point["lr"] for point in read_tuning_of(FOUR).draw_trials("plain"))
    assert set(finals) == set(plan_text(SMALL + f"recipe.lr = {lowest}").runs)
    assert {run.seed for run in finals.values()} == {0, 1} and {
        run.cell.chosen["lr"] for run in finals.values()
    } == {lowest}
    assert not whole.waiting and not whole.failed and len(whole.runs) == 4 * 5 + 2 * 5


def test_each_cell_chooses_its_own_values() -> None:
    def judge(run: PlannedRun) -> float:
        return (
            -run.config.recipe.lr
            if run.config.weights and run.config.weights.format == "int2"
            else run.config.recipe.lr
        )

    whole, _ = simulate_sweep(SMALL + FOUR, judge)
    rates = sorted(point["lr"] for point in read_tuning_of(FOUR).draw_trials("plain"))
    chosen = {
        (c.label, c.example.format_label): c.chosen["lr"]
        for c in whole.cells
        if c.stage == "final" and not c.extra
    }
    assert chosen == {
        ("plain", "fp32"): rates[0],
        ("after", "int2"): rates[-1],
        ("after", "int4"): rates[0],
        ("actor", "int2"): rates[-1],
        ("actor", "int4"): rates[0],
    }
    extra = [cell for cell in whole.cells if cell.extra]
    assert [(c.label, c.example.recipe.lr) for c in extra] == [("plain", rates[-1])], (
        "the base of after int2"
    )


@given(
    st.randoms(use_true_random=False), st.sampled_from([FOUR, HALVED + "seeds = 2\n", FOUR + OWN])
)
@settings(max_examples=15, deadline=None)
def test_the_order_in_which_trials_end_does_not_matter_and_no_run_is_dropped(
    chance: random.Random, table: str
) -> None:
    config = parse_sweep(SMALL + table, "s.toml")
    planner, known = Planner(config), dict[str, float | None]()

    def judge(key: str) -> float | None:
        return None if int(key[:2], 16) < 60 else int(key[2:8], 16) / 2**24

    runs = planner.plan(known).runs
    while open_ := [key for key in runs if key not in known]:
        known[chance.choice(open_)] = None
        last = list(known)[-1]
        known[last] = judge(last)
        grown = planner.plan(known).runs
        assert grown.keys() >= runs.keys()
        runs = grown
    again = make_plan(config, known)
    assert list(again.runs) == list(runs) and not again.waiting
    assert make_board_members(again)["cells"] == make_board_members(planner.plan(known))["cells"]


def test_halving_has_the_same_rungs_of_shorter_runs_for_all() -> None:
    first = plan_text(SMALL + HALVED)
    assert {run.config.recipe.steps for run in first.runs.values()} == {3}, "a quarter of twelve"
    assert {waiting.runs for waiting in first.waiting} == {2 + 1 + 2}
    whole, _ = simulate_sweep(SMALL + HALVED, score_by_rate)
    asked = [cell for cell in whole.cells if not cell.extra and cell.stage == "trial"]
    counts = Counter(
        (c.label, c.example.format_label, c.rung, c.example.recipe.steps) for c in asked
    )
    cells = [("plain", "fp32"), *itertools.product(("after", "actor"), ("int2", "int4"))]
    assert counts == {
        (*cell, rung, steps): n
        for cell in cells
        for rung, steps, n in ((0, 3, 4), (1, 6, 2), (2, 12, 1))
    }
    rates = sorted(point["lr"] for point in read_tuning_of(FOUR).draw_trials("plain"))
    assert {c.example.recipe.lr for c in asked if c.rung == 1} == set(rates[:2])
    assert (
        {c.example.recipe.lr for c in asked if c.rung == 2}
        == {rates[0]}
        == {c.chosen["lr"] for c in whole.cells if c.stage == "final"}
    )
    assert {c.full_budget.recipe.steps for c in asked if c.full_budget} == {12}


def test_failed_trials_are_not_promoted() -> None:
    whole, _ = simulate_sweep(SMALL + HALVED, lambda run: None if run.cell.trial else 1.0)
    assert {cell.trial for cell in whole.cells if cell.rung} == {0}, (
        "one of four trials succeeded, and halving keeps two at most"
    )


def test_failures_do_not_reduce_the_number_of_promoted_trials() -> None:
    table = "[tuning]\ntrials = 16\n" + RATES + "halving = { rungs = [0.25, 0.5], keep = 0.5 }\n"
    whole, _ = simulate_sweep(
        SMALL + table,
        lambda run: (
            None if run.cell.label == "actor" and (run.cell.trial or 0) > 4 else score_by_rate(run)
        ),
    )
    counts = Counter(
        (c.label, c.rung)
        for c in whole.cells
        if c.stage == "trial" and not c.extra and c.example.format_label == "int2"
    )
    assert [counts["after", rung] for rung in range(3)] == [16, 8, 4]
    assert [counts["actor", rung] for rung in range(3)] == [16, 5, 4], (
        "five trials succeeded, and four of them are promoted, as for every entrant"
    )


def test_rungs_with_equal_steps_are_separate_rungs() -> None:
    whole, _ = simulate_sweep(SMALL + "[recipe]\nsteps = 1\n" + HALVED, score_by_rate)
    counts = Counter(
        (c.label, c.rung)
        for c in whole.cells
        if c.stage == "trial" and not c.extra and c.example.format_label == "int2"
    )
    assert [counts["actor", rung] for rung in range(3)] == [4, 2, 1]


def test_a_cell_whose_trials_all_failed_has_no_final_runs() -> None:
    whole, _ = simulate_sweep(SMALL + FOUR, lambda run: None if run.cell.label == "actor" else 1.0)
    assert {(c.label, c.failure) for c in whole.failed} == {
        ("actor", "none of its 4 trials succeeded, so there is nothing to choose")
    }
    assert not any(
        run.cell.label == "actor" and run.cell.stage == "final" for run in whole.runs.values()
    )
    cells = [
        cell
        for cell in make_board_members(whole)["cells"]
        if cell["label"] == "actor" and cell["stage"] == "final"
    ]
    assert [(c["keys"], c["seeds"], bool(c["failure"])) for c in cells] == [([], [0, 1], True)] * 2


def test_a_cell_without_a_rule_is_skipped_once_and_has_no_trials() -> None:
    found = plan_text(SMALL.replace("int2", "int1") + FOUR)
    assert [(c.title, c.refusal) for c in found.skipped] == [
        ("actor int1 stage/xs", "too coarse for an actor")
    ]
    assert not any(c.label == "actor" and c.example.format_label == "int1" for c in found.cells)


def test_axes_that_are_not_tuned_still_multiply_cells() -> None:
    axes = (
        'recipe.batch = [4, 8]\n[[method]]\nname = "actor"\nlabel = "Actor"\n'
        'role = ["good", "nan"]\n'
    )
    found = plan_text(SMALL.replace(', "actor"', "") + axes + FOUR)
    assert Counter(c.label for c in found.cells) == {
        "plain": 4 * 2,
        "after": 4 * 2 * 2,
        "Actor (role=good)": 4 * 2 * 2,
        "Actor (role=nan)": 4 * 2 * 2,
    }


def test_titles_of_trials_are_unique() -> None:
    whole, _ = simulate_sweep(SMALL + HALVED, score_by_rate)
    titles = [run.title for run in whole.runs.values()]
    assert len(set(titles)) == len(titles)
    assert (
        "plain stage/xs lr=0.006605, trial 0, 3 steps seed 1000" in titles
        and "plain stage/xs lr=0.00149 seed 1" in titles
    )


# ---- what may not be written ----

BAD = {
    "not a table": ("tuning = 16\n", "s.toml: [tuning]: a table such as"),
    "nothing tuned": ("[tuning]\ntrials = 4\n", "nothing is tuned"),
    "unknown word": (
        "[tuning]\ntrails = 4\n" + RATES,
        "[tuning]: unknown key 'trails'; did you mean trials",
    ),
    "no trials": (f"[tuning]\n{RATES}", "trials is missing: write trials = 16"),
    "no trial": (FOUR.replace("4", "0", 1), "trials: expected an integer from 1 to 4096, not 0"),
    "half a trial": (FOUR.replace("4", "4.5", 1), "trials: expected int"),
    "unknown sampler": (
        FOUR + 'sampler = "sobel"\n',
        "sampler: unknown sampler 'sobel'; did you mean sobol",
    ),
    "a sampler of another kind": (
        FOUR + 'sampler = "halton"\n',
        "s.toml: [tuning]: sampler: unknown sampler 'halton'; known: grid, sobol",
    ),
    "low above high": (FOUR.replace("1e-3", "1.0"), "lr: low must be below high, not 1 and 0.1"),
    "log of nothing": (
        FOUR.replace("lr = { low = 1e-3", "clip = { low = 0.0"),
        "clip: a logarithmic range needs positive numbers, not 0",
    ),
    "a range without an end": (FOUR.replace("low = 1e-3, ", ""), "lr: a range { low = "),
    "an unknown word of a range": (
        FOUR.replace("log = true", "lgo = true"),
        "lr: unknown key 'lgo'; did you mean low or log",
    ),
    "out of its domain": (
        FOUR + "warmup = { low = 0.0, high = 1.0 }\n",
        "warmup must be in [0, 1), not 1.0",
    ),
    "of another type": (
        FOUR + 'clip = { values = ["much"] }\n',
        "clip: expected float, not str 'much'",
    ),
    "a range of words": (
        FOUR + "schedule = { low = 0.0, high = 1.0 }\n",
        "schedule has no range: write schedule = { values = [...] }",
    ),
    "the budget": (
        FOUR + "steps = { values = [10, 20] }\n",
        "steps cannot be tuned: it is the same for all methods",
    ),
    "a value twice": (
        FOUR + "clip = { values = [1.0, 1.0] }\n",
        "clip: values: 1.0 occurs twice",
    ),
    "no values": (FOUR + "clip = { values = [] }\n", "clip: values: a list of values, not []"),
    "lists alone": (
        "[tuning]\ntrials = 4\nlr = { values = [0.1, 0.2] }\n",
        'trials would repeat: write sampler = "grid"',
    ),
    "a grid of ranges": (FOUR + 'sampler = "grid"\n', "lr: a grid needs lists"),
    "a grid with other trials": (
        '[tuning]\ntrials = 4\nsampler = "grid"\nlr = { values = [0.1, 0.2] }\n',
        "trials: the grid has 2 points, not 4: leave trials out",
    ),
    "a grid with own hyper-parameters": (
        '[tuning]\nsampler = "grid"\nlr = { values = [0.1, 0.2] }\n' + OWN,
        "on a grid, own hyper-parameters would give",
    ),
    "rungs that fall": (
        HALVED.replace("0.25, 0.5", "0.5, 0.25"),
        "halving: rungs: rising shares of the steps between 0 and 1",
    ),
    "a whole rung": (HALVED.replace("0.25, 0.5", "0.5, 1.0"), "halving: rungs: rising shares"),
    "keep all": (
        HALVED.replace("keep = 0.5", "keep = 1.0"),
        "halving: keep: a share between 0 and 1, not 1",
    ),
    "half a halving": (
        HALVED.replace(", keep = 0.5", ""),
        "halving: { rungs = [0.25, 0.5], keep = 0.5 }, not",
    ),
    "no tuning seed": (FOUR + "seeds = 0\n", "[tuning]: seeds: expected an integer from 1"),
    "own of a stranger": (
        FOUR + OWN.replace("actor", "villain"),
        "own: unknown method of the sweep 'villain'; did you mean plain",
    ),
    "three own hyper-parameters": (
        FOUR + OWN + "at = { values = [1] }\nrole = { values = ['good'] }\n",
        "own.actor: one or 2 hyper-parameters",
    ),
    "an own value of another type": (
        FOUR + OWN.replace("seconds", "once"),
        "[tuning.own.actor]: actor.once: expected str, not float 0.0",
    ),
    "an own hyper-parameter that the method lacks": (
        FOUR + OWN.replace("actor", "plain"),
        "[tuning.own.plain]: plain: unknown parameter of method plain 'seconds'",
    ),
    "an own hyper-parameter out of its domain": (
        FOUR + OWN + "at = { values = [-1, 3] }\n",
        "[tuning.own.actor]: actor: at must not be negative",
    ),
    "a range of a whole number": (
        FOUR + OWN + "at = { low = 1, high = 5 }\n",
        "[tuning.own.actor]: actor.at: expected int, not float 1.0",
    ),
    "tuned and said": (
        FOUR + "[recipe]\nlr = 0.1\n",
        "s.toml: [recipe]: lr is tuned: take it out here or in [tuning]",
    ),
    "tuned and said of a task": (
        '[[task]]\nname = "stage"\ntilt = 2\nrecipe = { lr = 0.1 }\n' + FOUR,
        "[[task]] 1: lr is tuned: take it out",
    ),
    "tuned and an axis of a method": (
        '[[method]]\nname = "actor"\nat = 7\nlr = [0.1, 0.2]\n' + FOUR,
        "[[method]] 1: lr is tuned",
    ),
    "tuned and a parameter": (
        '[[method]]\nname = "actor"\nseconds = 0.1\n' + FOUR + OWN,
        "[[method]] 1: seconds is tuned: take it out here or in [tuning.own.actor]",
    ),
    "several rates as well": (
        "[recipe]\nlr = [0.1, 0.2]\n" + FOUR.replace("lr", "clip"),
        "[recipe]: several learning rates cannot be combined with [tuning]",
    ),
    "as published": (
        '[[method]]\nname = "actor"\nat = 7\n' + FOUR,
        "in the track as-published every recipe is its paper's",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_in_the_tuning_table_are_one_line(name: str) -> None:
    text, words = BAD[name]
    top = SMALL + ('track = "as-published"\n' if name == "as published" else "")
    with pytest.raises(UsageError) as error:
        plan_text(top + text)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("s.toml: ")


def test_tuning_seeds_must_not_be_board_seeds() -> None:
    with pytest.raises(UsageError, match="seeds: 1001 is also a seed of the board"):
        plan_text(SMALL.replace("seeds = 2", "seeds = [0, 1001]") + FOUR + "seeds = 2\n")
    assert plan_text(SMALL.replace("seeds = 2", "seeds = [0, 1001]") + FOUR).runs
    config = parse_sweep(SMALL + FOUR, "s.toml")
    assert config.shorten(None, 1000).seeds == tuple(range(1000))
    with pytest.raises(UsageError, match=r"s.toml: 1001 seeds: 1000 is also a seed of the board"):
        config.shorten(None, 1001)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
NESTED = (
    PLAIN
    | st.lists(PLAIN, max_size=3)
    | st.dictionaries(st.text(max_size=5), PLAIN | st.lists(PLAIN, max_size=3), max_size=3)
)


@given(st.dictionaries(st.text(max_size=8), NESTED))
def test_any_tuning_table_is_read_or_refused_in_one_line(table: dict[str, Any]) -> None:
    base = {"trials": 4, "lr": {"low": 1e-3, "high": 1e-1}}
    for name in (None, "trials", "lr", "halving", "own", "seeds", "sampler", "seed"):
        written = {**base, **table} if name is None else {**base, name: table}
        try:
            found = read_tuning_table(written, ["actor"], [0], "s.toml: [tuning]")
        except UsageError as error:
            assert "\n" not in str(error)
        else:
            assert len(found.draw_trials("actor")) == found.trials
