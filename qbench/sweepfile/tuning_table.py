"""The table [tuning] of a sweep file.

Every method, controls included, gets the same number of trials. A trial is a point of a space. Its
dimensions are keys of the recipe, which all methods share, and at most two hyper-parameters of a
method's own. Every method gets the same points in the shared dimensions. Its own hyper-parameters
lie in further dimensions of the same sequence, which are drawn even for methods without any, so an
axis of one method does not change another's trials. A method without own axes spends as many
trials on the shared dimensions alone.

    trial → runs with the tuning seeds → [rungs: shorter runs first, the better part goes on]
          → choice by validation score → runs with the board's seeds

Values are rounded to four digits. They are part of keys, so they must not depend on the last bit of
a machine's logarithm, and they should be easy to type.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qbench.errors import UsageError, unknown_name_error
from qbench.runs.config import Recipe
from qbench.sweepfile.tuning_space import (
    FIRST_TUNING_SEED,
    MAX_OWN_PARAMS,
    RECIPE_TYPES,
    Halving,
    Tuning,
    TuningAxis,
)
from qbench.util.checked_values import check_integer, check_type

__all__ = ["read_tuning_table", "refuse_shared_seeds"]


MAX_TRIALS, MAX_SEEDS, MAX_SEED = 4096, 100, 2**31 - 1
SAMPLERS = ("sobol", "grid")
RESERVED_KEYS = ("trials", "sampler", "seed", "seeds", "halving", "own")
TUNABLE_KEYS = tuple(
    key for key in RECIPE_TYPES if key not in ("steps", "batch", "precision", "objective")
)
"""The keys of a recipe that may be tuned. Budget and objective are the same for all methods."""
EXAMPLE_RANGE = "{ low = 1e-4, high = 1e-1, log = true }"


def read_tuning_table(
    table: Any, methods: Sequence[str], seeds: Sequence[int], where: str
) -> Tuning:
    """Return the contents of the table [tuning].

    Args:
        table: The table as TOML gives it.
        methods: The names of the sweep's methods.
        seeds: The seeds of the board, which no trial may use.
        where: The place in the file, for error messages.
    """
    if not isinstance(table, dict):
        raise UsageError(
            f"{where}: a table such as [tuning] with trials = 16 and lr = {EXAMPLE_RANGE}"
        )
    axes = {
        name: _read_shared_axis(name, value, where)
        for name, value in table.items()
        if name not in RESERVED_KEYS
    }
    if not axes:
        raise UsageError(
            f"{where}: nothing is tuned: "
            f"write a range for a key of the recipe, lr = {EXAMPLE_RANGE}"
        )
    sampler = _read_sampler(table.get("sampler", SAMPLERS[0]), f"{where}: sampler")
    own = _read_own_axes(table.get("own", {}), methods, f"{where}: own")
    halving = table.get("halving")
    return Tuning(
        axes=axes,
        trials=_read_trial_count(table, axes, sampler, own, where),
        sampler=sampler,
        seed=check_integer(table.get("seed", 0), 0, MAX_SEED, f"{where}: seed"),
        seeds=_read_seeds(table.get("seeds", 1), seeds, f"{where}: seeds"),
        halving=_read_halving(halving, f"{where}: halving") if "halving" in table else None,
        own=own,
    )


def refuse_shared_seeds(seeds: Iterable[int], reported: Iterable[int], where: str) -> None:
    """Raise a UsageError if a seed is used both for tuning and for reported runs."""
    if clash := sorted(set(seeds) & set(reported)):
        raise UsageError(
            f"{where}: {clash[0]} is also a seed of the board, and runs that choose must not be "
            f"reported: tuning seeds start at {FIRST_TUNING_SEED}"
        )


# ---- trials and seeds ----


def _read_trial_count(
    table: Mapping[str, Any],
    axes: Mapping[str, TuningAxis],
    sampler: str,
    own: Mapping[str, Any],
    where: str,
) -> int:
    """Return the number of trials: as it is written, or the number of points of a grid."""
    ranges = [name for name, axis in axes.items() if not axis.values]
    if sampler == "grid":
        return _count_grid_points(table, axes, ranges, own, where)
    if "trials" not in table:
        raise UsageError(f"{where}: trials is missing: write trials = 16")
    if not ranges:
        raise UsageError(
            f"{where}: no key of the recipe has a range, so trials would repeat: "
            'write sampler = "grid", or a range'
        )
    return check_integer(table["trials"], 1, MAX_TRIALS, f"{where}: trials")


def _count_grid_points(
    table: Mapping[str, Any],
    axes: Mapping[str, TuningAxis],
    ranges: Sequence[str],
    own: Mapping[str, Any],
    where: str,
) -> int:
    if ranges:
        raise UsageError(
            f"{where}: {ranges[0]}: a grid needs lists: write {ranges[0]} = {{ values = [...] }}"
        )
    if own:
        raise UsageError(
            f"{where}: own: on a grid, own hyper-parameters would give a method more trials than "
            'the others: use sampler = "sobol"'
        )
    points = math.prod(len(axis.values) for axis in axes.values())
    if table.get("trials", points) != points:
        raise UsageError(
            f"{where}: trials: the grid has {points} points, not {table['trials']!r}: "
            "leave trials out"
        )
    return check_integer(points, 1, MAX_TRIALS, f"{where}: trials")


def _read_sampler(value: Any, where: str) -> str:
    if value not in SAMPLERS:
        raise unknown_name_error("sampler", value, SAMPLERS, where)
    return str(value)


def _read_seeds(value: Any, reported: Sequence[int], where: str) -> tuple[int, ...]:
    count = check_integer(value, 1, MAX_SEEDS, where)
    seeds = tuple(range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count))
    refuse_shared_seeds(seeds, reported, where)
    return seeds


def _read_halving(value: Any, where: str) -> Halving:
    if not isinstance(value, dict) or value.keys() != {"rungs", "keep"}:
        raise UsageError(f"{where}: {{ rungs = [0.25, 0.5], keep = 0.5 }}, not {value!r}")
    shares = _read_values(value["rungs"], f"{where}: rungs")
    rungs = tuple(float(check_type(share, float, f"{where}: rungs")) for share in shares)
    keep = float(check_type(value["keep"], float, f"{where}: keep"))
    if not all(a < b for a, b in itertools.pairwise((0.0, *rungs, 1.0))):
        raise UsageError(
            f"{where}: rungs: rising shares of the steps between 0 and 1, not {list(rungs)}"
        )
    if not 0 < keep < 1:
        raise UsageError(f"{where}: keep: a share between 0 and 1, not {keep:g}")
    return Halving(rungs, keep)


# ---- axes ----


def _read_shared_axis(name: str, value: Any, where: str) -> TuningAxis:
    """Return the axis of a key of the recipe, whose type and domain are checked."""
    if name not in TUNABLE_KEYS:
        if name in RECIPE_TYPES:
            raise UsageError(f"{where}: {name} cannot be tuned: it is the same for all methods")
        raise unknown_name_error("key", name, (*RESERVED_KEYS, *TUNABLE_KEYS), where)
    axis, kind = _read_axis(value, f"{where}: {name}"), RECIPE_TYPES[name]
    if not axis.values and kind is not float:
        raise UsageError(f"{where}: {name} has no range: write {name} = {{ values = [...] }}")
    values = tuple(check_type(item, kind, f"{where}: {name}") for item in axis.values)
    axis = dataclasses.replace(axis, values=values)
    for end in axis.ends:
        if problem := dataclasses.replace(Recipe(), **{name: end}).find_problem():
            raise UsageError(f"{where}: {problem}")
    return axis


def _read_own_axes(
    table: Any, methods: Sequence[str], where: str
) -> dict[str, dict[str, TuningAxis]]:
    """Return the axes of the methods' own hyper-parameters; plugins check their values later."""
    if not isinstance(table, dict) or not all(isinstance(own, dict) for own in table.values()):
        raise UsageError(f"{where}: a table for each method: [tuning.own.NAME]")
    for method, own in table.items():
        if method not in methods:
            raise unknown_name_error("method of the sweep", method, methods, where)
        if not 1 <= len(own) <= MAX_OWN_PARAMS:
            raise UsageError(
                f"{where}.{method}: one or {MAX_OWN_PARAMS} hyper-parameters, so that no method's "
                f"search space is much larger, not {len(own)}"
            )
        if invalid := [name for name in own if not name.isidentifier()]:
            raise UsageError(
                f"{where}.{method}: {invalid[0]!r} is not the name of a hyper-parameter"
            )
    return {
        method: {name: _read_axis(value, f"{where}.{method}.{name}") for name, value in own.items()}
        for method, own in table.items()
    }


def _read_axis(value: Any, where: str) -> TuningAxis:
    """Return the axis that a range or a list of values describes."""
    if not isinstance(value, dict) or not ({"low", "high"} <= value.keys() or "values" in value):
        raise UsageError(
            f"{where}: a range {EXAMPLE_RANGE} or {{ values = [0.0, 0.1] }}, not {value!r}"
        )
    known = ("values",) if "values" in value else ("low", "high", "log")
    for key in value:
        if key not in known:
            raise unknown_name_error("key", key, known, where)
    if "values" in value:
        return TuningAxis(values=_read_values(value["values"], f"{where}: values"))
    low, high = (float(check_type(value[end], float, f"{where}: {end}")) for end in ("low", "high"))
    log = bool(check_type(value.get("log", False), bool, f"{where}: log"))
    if low >= high:
        raise UsageError(f"{where}: low must be below high, not {low:g} and {high:g}")
    if log and low <= 0:
        raise UsageError(f"{where}: a logarithmic range needs positive numbers, not {low:g}")
    return TuningAxis(low, high, log)


def _read_values(value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: a list of values, not {value!r}")
    if repeated := [item for i, item in enumerate(value) if item in value[:i]]:
        raise UsageError(f"{where}: {repeated[0]!r} occurs twice")
    return tuple(value)
