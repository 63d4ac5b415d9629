"""How a board tunes: the table [tuning] of a sweep file → the same number of trials for every method, controls included.

A trial is a point of a space: words of the recipe, which all share, and at most two knobs of a method's own. Every method gets the same
points in the shared words; its own knobs lie in further dimensions of the same sequence, drawn whether it has any or not, so that a range
for one method moves nobody else's trials. A method without a range of its own spends as many trials on the shared words alone.

    trial → runs at the tuning seeds → [rungs: shorter runs first, the better share goes on] → choice on validation → runs at the board's seeds

Values are kept to four digits: they are part of keys, and must neither hang on the last bit of a machine's logarithm nor be a nuisance to type.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qbench.errors import UsageError, unknown
from qbench.runs.config import Recipe
from qbench.sweepfile.tuning_space import FIRST_SEED, MOST_KNOBS, RECIPE, Axis, Halving, Tuning
from qbench.util.checked_values import coerce, whole

__all__ = ["check_seeds", "read_tuning"]


MOST_TRIALS, MOST_SEEDS, MOST_SEED = 4096, 100, 2**31 - 1
SAMPLERS = ("sobol", "halton", "grid")
WORDS = ("trials", "sampler", "seed", "seeds", "halving", "own")
SHARED = tuple(word for word in RECIPE if word not in ("steps", "batch", "precision", "objective"))
"""Words that may be tuned: the budget and what is minimised are the same for everyone."""


# ---- reading ----


def read_tuning(table: Any, methods: Sequence[str], seeds: Sequence[int], where: str) -> Tuning:
    """The table [tuning] of a sweep of such methods and seeds."""
    if not isinstance(table, dict):
        raise UsageError(
            f"{where}: a table such as [tuning] with trials = 16 and lr = {{ low = 1e-4, high = 1e-1, log = true }}"
        )
    axes = {
        name: _of_recipe(name, value, where) for name, value in table.items() if name not in WORDS
    }
    if not axes:
        raise UsageError(
            f"{where}: nothing is tuned: write a range of a word of the recipe, lr = {{ low = 1e-4, high = 1e-1, log = true }}"
        )
    sampler = _word(table.get("sampler", SAMPLERS[0]), f"{where}: sampler")
    own = _own(table.get("own", {}), methods, f"{where}: own")
    return Tuning(
        axes=axes,
        trials=_trials(table, axes, sampler, own, where),
        sampler=sampler,
        seed=whole(table.get("seed", 0), 0, MOST_SEED, f"{where}: seed"),
        seeds=_seeds(table.get("seeds", 1), seeds, f"{where}: seeds"),
        halving=_halving(table["halving"], f"{where}: halving") if "halving" in table else None,
        own=own,
    )


def _trials(
    table: Mapping[str, Any],
    axes: Mapping[str, Axis],
    sampler: str,
    own: Mapping[str, Any],
    where: str,
) -> int:
    """As written; of a grid the number of its points."""
    ranges, product = (
        [name for name, axis in axes.items() if not axis.values],
        math.prod(len(axis.values) for axis in axes.values()),
    )
    if sampler != "grid":
        if "trials" not in table:
            raise UsageError(f"{where}: trials is missing: write trials = 16")
        if not ranges:
            raise UsageError(
                f'{where}: no shared word has a range, so trials would repeat: write sampler = "grid", or a range'
            )
        return whole(table["trials"], 1, MOST_TRIALS, f"{where}: trials")
    if ranges:
        raise UsageError(
            f"{where}: {ranges[0]}: a grid is of lists: write {ranges[0]} = {{ values = [...] }}"
        )
    if own:
        raise UsageError(
            f'{where}: own: on a grid knobs of its own would give a method more trials than the others: use sampler = "sobol"'
        )
    if table.get("trials", product) != product:
        raise UsageError(
            f"{where}: trials: the grid has {product} points, not {table['trials']!r}: leave trials out"
        )
    return whole(product, 1, MOST_TRIALS, f"{where}: trials")


def _of_recipe(name: str, value: Any, where: str) -> Axis:
    """An axis of the recipe, in its type and its domain."""
    if name not in SHARED:
        if name in RECIPE:
            raise UsageError(f"{where}: {name} is not to be tuned: it is the same for everyone")
        raise unknown("key", name, (*WORDS, *SHARED), where)
    axis = _axis(value, f"{where}: {name}")
    if not axis.values and RECIPE[name] is not float:
        raise UsageError(f"{where}: {name} has no range: write {name} = {{ values = [...] }}")
    axis = dataclasses.replace(
        axis, values=tuple(coerce(v, RECIPE[name], f"{where}: {name}") for v in axis.values)
    )
    for end in axis.ends:
        if problem := dataclasses.replace(Recipe(), **{name: end}).problem():
            raise UsageError(f"{where}: {problem}")
    return axis


def _axis(value: Any, where: str) -> Axis:
    if not isinstance(value, dict) or not ({"low", "high"} <= value.keys() or "values" in value):
        raise UsageError(
            f"{where}: a range {{ low = 1e-4, high = 1e-1, log = true }} or {{ values = [0.0, 0.1] }}, not {value!r}"
        )
    known = ("values",) if "values" in value else ("low", "high", "log")
    for key in value:
        if key not in known:
            raise unknown("key", key, known, where)
    if "values" in value:
        return Axis(values=_list(value["values"], f"{where}: values"))
    low, high = (float(coerce(value[end], float, f"{where}: {end}")) for end in ("low", "high"))
    log = bool(coerce(value.get("log", False), bool, f"{where}: log"))
    if low >= high:
        raise UsageError(f"{where}: low must be below high, not {low:g} and {high:g}")
    if log and low <= 0:
        raise UsageError(f"{where}: a logarithmic range is of positive numbers, not from {low:g}")
    return Axis(low, high, log)


def _list(value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or not value:
        raise UsageError(f"{where}: a list of values, not {value!r}")
    if twice := [v for i, v in enumerate(value) if v in value[:i]]:
        raise UsageError(f"{where}: {twice[0]!r} is there twice")
    return tuple(value)


def _own(table: Any, methods: Sequence[str], where: str) -> dict[str, dict[str, Axis]]:
    if not isinstance(table, dict) or not all(isinstance(knobs, dict) for knobs in table.values()):
        raise UsageError(f"{where}: a table for each method: [tuning.own.NAME]")
    for method, knobs in table.items():
        if method not in methods:
            raise unknown("method of the sweep", method, methods, where)
        if not 1 <= len(knobs) <= MOST_KNOBS:
            raise UsageError(
                f"{where}.{method}: one or {MOST_KNOBS} knobs, so that nobody's space is much larger, not {len(knobs)}"
            )
        if strange := [name for name in knobs if not name.isidentifier()]:
            raise UsageError(f"{where}.{method}: {strange[0]!r} is no name of a knob")
    return {
        method: {name: _axis(value, f"{where}.{method}.{name}") for name, value in knobs.items()}
        for method, knobs in table.items()
    }


def _halving(value: Any, where: str) -> Halving:
    if not isinstance(value, dict) or value.keys() != {"rungs", "keep"}:
        raise UsageError(f"{where}: {{ rungs = [0.25, 0.5], keep = 0.5 }}, not {value!r}")
    rungs = tuple(
        float(coerce(v, float, f"{where}: rungs")) for v in _list(value["rungs"], f"{where}: rungs")
    )
    keep = float(coerce(value["keep"], float, f"{where}: keep"))
    if not all(a < b for a, b in itertools.pairwise((0.0, *rungs, 1.0))):
        raise UsageError(
            f"{where}: rungs: rising shares of the steps between 0 and 1, not {list(rungs)}"
        )
    if not 0 < keep < 1:
        raise UsageError(f"{where}: keep: a share between 0 and 1, not {keep:g}")
    return Halving(rungs, keep)


def _seeds(value: Any, reported: Sequence[int], where: str) -> tuple[int, ...]:
    seeds = tuple(range(FIRST_SEED, FIRST_SEED + whole(value, 1, MOST_SEEDS, where)))
    check_seeds(seeds, reported, where)
    return seeds


def check_seeds(seeds: Iterable[int], reported: Iterable[int], where: str) -> None:
    """No run may both choose and be reported."""
    if clash := sorted(set(seeds) & set(reported)):
        raise UsageError(
            f"{where}: {clash[0]} is a seed of the board, too, and what chooses must not be reported: seeds of tuning begin at {FIRST_SEED}"
        )


def _word(value: Any, where: str) -> str:
    if value not in SAMPLERS:
        raise unknown("sampler", value, SAMPLERS, where)
    return str(value)
