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
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from qbench.config import Recipe, coerce
from qbench.errors import UsageError, unknown
from qbench.text import count, value
from qbench.values import whole

__all__ = ["FIRST_SEED", "MOST_KNOBS", "Axis", "Halving", "Tuning", "check_seeds", "read_tuning"]

FIRST_SEED = 1000
"""Of tuning: a board's own seeds begin at 0, and no run may both choose and be reported."""
MOST_KNOBS = 2
MOST_TRIALS, MOST_SEEDS, MOST_SEED = 4096, 100, 2**31 - 1
SAMPLERS = ("sobol", "halton", "grid")
WORDS = ("trials", "sampler", "seed", "seeds", "halving", "own")
RECIPE = get_type_hints(Recipe)
SHARED = tuple(word for word in RECIPE if word not in ("steps", "batch", "precision", "objective"))
"""Words that may be tuned: the budget and what is minimised are the same for everyone."""
EDGE = 0.05
"""The share of a range, at either end, in which a chosen value is said to be at its edge."""
DIGITS = 4


@dataclass(frozen=True)
class Axis:
    """A range, or a list of values."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Any, ...] = ()

    def at(self, share: float) -> Any:
        """The value at a share of the range, from 0 up to 1."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        found = low + share * (high - low)
        found = float(f"{math.exp(found) if self.log else found:.{DIGITS}g}")
        return min(max(found, self.low), self.high)

    def at_edge(self, value: Any) -> bool:
        """Near an end of the range. Of a list, at the end of three numbers or more: two have nothing but ends, and words have none."""
        if self.values:
            ordered = sorted(v for v in self.values if isinstance(v, (int, float)) and not isinstance(v, bool))
            return len(ordered) == len(self.values) > 2 and value in (ordered[0], ordered[-1])
        low, high, x = (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        return not EDGE <= (x - low) / (high - low) <= 1 - EDGE

    @property
    def ends(self) -> tuple[Any, ...]:
        """What must be in the domain, for all of it to be."""
        return self.values or (self.low, self.high)

    def __str__(self) -> str:
        if self.values:
            return f"in {{{', '.join(map(value, self.values))}}}"
        return f"from {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Halving:
    """Shorter runs first: after each of `rungs`, which are shares of the steps, the share `keep` with the best validation goes on."""

    rungs: tuple[float, ...]
    keep: float

    def left(self, count: int) -> int:
        """How many of so many trials go on."""
        return max(1, math.ceil(round(self.keep * count, 9)))


@dataclass(frozen=True)
class Tuning:
    """What every method of a board spends on its choice."""

    axes: Mapping[str, Axis]
    trials: int
    sampler: str = "sobol"
    seed: int = 0
    seeds: tuple[int, ...] = (FIRST_SEED,)
    halving: Halving | None = None
    own: Mapping[str, Mapping[str, Axis]] = field(default_factory=dict)
    """Knobs by method."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of the budget, the whole of it last."""
        return (*(self.halving.rungs if self.halving else ()), 1.0)

    def draw(self, method: str) -> list[dict[str, Any]]:
        """A method's trials: values by name. Names, not their places in the file, decide the dimensions."""
        shared, own = sorted(self.axes.items()), sorted(self.own.get(method, {}).items())
        if self.sampler == "grid":
            return [dict(zip(dict(shared), values, strict=True)) for values in itertools.product(*(axis.values for _, axis in shared))]
        points = _cube(self.sampler, len(shared) + MOST_KNOBS, self.trials, self.seed)
        return [{name: axis.at(share) for (name, axis), share in zip((*shared, *own), point, strict=False)} for point in points]

    def counts(self) -> tuple[int, ...]:
        """Trials of each rung."""
        found = [self.trials]
        for _ in self.rungs[1:]:
            assert self.halving is not None
            found.append(self.halving.left(found[-1]))
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Plain data, for rosters."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Tuning:
        def axes(table: Mapping[str, Any]) -> dict[str, Axis]:
            return {name: Axis(**{**axis, "values": tuple(axis["values"])}) for name, axis in table.items()}

        halving = data["halving"] and Halving(tuple(data["halving"]["rungs"]), data["halving"]["keep"])
        own = {method: axes(table) for method, table in data["own"].items()}
        return Tuning(**{**data, "axes": axes(data["axes"]), "own": own, "halving": halving, "seeds": tuple(data["seeds"])})

    def __str__(self) -> str:
        """`16 trials for everyone (sobol, seed 0): lr from 0.0001 to 0.1 (log) …`."""
        drawn = self.sampler if self.sampler == "grid" else f"{self.sampler}, seed {self.seed}"
        spaces = [_space(self.axes), *(f"and of its own for {method} {_space(axes)}" for method, axes in sorted(self.own.items()))]
        seeds = f"at seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        parts = [f"{count(self.trials, 'trial')} for everyone ({drawn}), {seeds}: {'; '.join(spaces)}"]
        if self.halving:
            rungs = zip(self.counts(), self.rungs, strict=True)
            parts.append("halving: " + ", then ".join(f"{n} with {100 * share:g} % of the steps" for n, share in rungs))
        return "; ".join(parts)


def _space(axes: Mapping[str, Axis]) -> str:
    return ", ".join(f"{name} {axis}" for name, axis in sorted(axes.items()))


@cache
def _cube(sampler: str, dimensions: int, trials: int, seed: int) -> tuple[tuple[float, ...], ...]:
    """Points of the unit cube. Scrambling differs with the number of dimensions, so that number must not depend on the method."""
    import numpy as np
    from scipy.stats import qmc

    generator = np.random.default_rng(seed)
    if sampler == "halton":
        return tuple(map(tuple, qmc.Halton(dimensions, scramble=True, seed=generator).random(trials).tolist()))
    # A Sobol sequence is balanced in powers of two: the beginning of the next one is what any other number can have.
    return tuple(map(tuple, qmc.Sobol(dimensions, scramble=True, seed=generator).random_base2((trials - 1).bit_length())[:trials].tolist()))


# ---- reading ----


def read_tuning(table: Any, methods: Sequence[str], seeds: Sequence[int], where: str) -> Tuning:
    """The table [tuning] of a sweep of such methods and seeds."""
    if not isinstance(table, dict):
        raise UsageError(f"{where}: a table such as [tuning] with trials = 16 and lr = {{ low = 1e-4, high = 1e-1, log = true }}")
    axes = {name: _of_recipe(name, value, where) for name, value in table.items() if name not in WORDS}
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


def _trials(table: Mapping[str, Any], axes: Mapping[str, Axis], sampler: str, own: Mapping[str, Any], where: str) -> int:
    """As written; of a grid the number of its points."""
    ranges, product = [name for name, axis in axes.items() if not axis.values], math.prod(len(axis.values) for axis in axes.values())
    if sampler != "grid":
        if "trials" not in table:
            raise UsageError(f"{where}: trials is missing: write trials = 16")
        if not ranges:
            raise UsageError(f'{where}: no shared word has a range, so trials would repeat: write sampler = "grid", or a range')
        return whole(table["trials"], 1, MOST_TRIALS, f"{where}: trials")
    if ranges:
        raise UsageError(f"{where}: {ranges[0]}: a grid is of lists: write {ranges[0]} = {{ values = [...] }}")
    if own:
        raise UsageError(f'{where}: own: on a grid knobs of its own would give a method more trials than the others: use sampler = "sobol"')
    if table.get("trials", product) != product:
        raise UsageError(f"{where}: trials: the grid has {product} points, not {table['trials']!r}: leave trials out")
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
    axis = dataclasses.replace(axis, values=tuple(coerce(v, RECIPE[name], f"{where}: {name}") for v in axis.values))
    for end in axis.ends:
        if problem := dataclasses.replace(Recipe(), **{name: end}).problem():
            raise UsageError(f"{where}: {problem}")
    return axis


def _axis(value: Any, where: str) -> Axis:
    if not isinstance(value, dict) or not ({"low", "high"} <= value.keys() or "values" in value):
        raise UsageError(f"{where}: a range {{ low = 1e-4, high = 1e-1, log = true }} or {{ values = [0.0, 0.1] }}, not {value!r}")
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
            raise UsageError(f"{where}.{method}: one or {MOST_KNOBS} knobs, so that nobody's space is much larger, not {len(knobs)}")
        if strange := [name for name in knobs if not name.isidentifier()]:
            raise UsageError(f"{where}.{method}: {strange[0]!r} is no name of a knob")
    return {method: {name: _axis(value, f"{where}.{method}.{name}") for name, value in knobs.items()} for method, knobs in table.items()}


def _halving(value: Any, where: str) -> Halving:
    if not isinstance(value, dict) or value.keys() != {"rungs", "keep"}:
        raise UsageError(f"{where}: {{ rungs = [0.25, 0.5], keep = 0.5 }}, not {value!r}")
    rungs = tuple(float(coerce(v, float, f"{where}: rungs")) for v in _list(value["rungs"], f"{where}: rungs"))
    keep = float(coerce(value["keep"], float, f"{where}: keep"))
    if not all(a < b for a, b in itertools.pairwise((0.0, *rungs, 1.0))):
        raise UsageError(f"{where}: rungs: rising shares of the steps between 0 and 1, not {list(rungs)}")
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
