"""The search space of a board's tuning: axes, trials and halving; and how trials are drawn."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from qbench.runs.config import Recipe
from qbench.util.text import format_count, format_value

__all__ = [
    "FIRST_TUNING_SEED",
    "MAX_OWN_PARAMS",
    "RECIPE_TYPES",
    "Halving",
    "Tuning",
    "TuningAxis",
]


FIRST_TUNING_SEED = 1000
"""A board's own seeds begin at 0: no run may both choose a value and be reported."""
MAX_OWN_PARAMS = 2
"""How many of its own hyper-parameters a method may tune."""
RECIPE_TYPES = get_type_hints(Recipe)
"""The type of each key of a recipe."""
EDGE_SHARE = 0.05
"""A chosen value is at the edge of its range if it lies in this share of it, at either end."""
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class TuningAxis:
    """The values that one hyper-parameter may take: a range, or a list if `values` is not empty."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    values: tuple[Any, ...] = ()

    def value_at(self, share: float) -> Any:
        """Return the value at a share of the range, where 0 <= share < 1."""
        if self.values:
            return self.values[min(int(share * len(self.values)), len(self.values) - 1)]
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        x = low + share * (high - low)
        # Values are part of keys. Rounding removes the last bits, in which the exponentials and
        # logarithms of different machines may differ.
        rounded = float(f"{math.exp(x) if self.log else x:.{SIGNIFICANT_DIGITS}g}")
        # Rounding may have left the range by the last digit.
        return min(max(rounded, self.low), self.high)

    def is_at_edge(self, value: Any) -> bool:
        """Return whether a value is near an end of the axis.

        A list has edges only if it holds three numbers or more: two values have nothing between
        them, and words have no order.
        """
        if self.values:
            numbers = sorted(
                v for v in self.values if isinstance(v, (int, float)) and not isinstance(v, bool)
            )
            return len(numbers) == len(self.values) > 2 and value in (numbers[0], numbers[-1])
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(x)
        return not EDGE_SHARE <= (x - low) / (high - low) <= 1 - EDGE_SHARE

    @property
    def ends(self) -> tuple[Any, ...]:
        """The values to check: if these are in the domain, all of the axis is."""
        return self.values or (self.low, self.high)

    def __str__(self) -> str:
        if self.values:
            return f"in {{{', '.join(map(format_value, self.values))}}}"
        return f"from {self.low:g} to {self.high:g}{' (log)' if self.log else ''}"


@dataclass(frozen=True)
class Halving:
    """Successive halving: trials are first trained with fewer steps, and only the best continue.

    `rungs` are shares of the steps. After each rung the share `keep` of the trials, those with the
    best validation score, goes on to the next.
    """

    rungs: tuple[float, ...]
    keep: float

    def count_survivors(self, count: int) -> int:
        """Return how many of `count` trials go on."""
        # 0.07 * 100 is 7.000000000000001 in floating point, of which ceil would make 8.
        return max(1, math.ceil(round(self.keep * count, 9)))


@dataclass(frozen=True)
class Tuning:
    """How a board tunes: every method has this many trials in this space."""

    axes: Mapping[str, TuningAxis]
    """The axes that all methods share, by the key of the recipe."""
    trials: int
    sampler: str = "sobol"
    seed: int = 0
    """The seed of the sampler."""
    seeds: tuple[int, ...] = (FIRST_TUNING_SEED,)
    """The seeds that each trial is trained with."""
    halving: Halving | None = None
    own: Mapping[str, Mapping[str, TuningAxis]] = field(default_factory=dict)
    """The axes of a method's own hyper-parameters, by method."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """The share of the steps at each rung; the last one is 1."""
        return (*(self.halving.rungs if self.halving else ()), 1.0)

    def draw_trials(self, method: str) -> list[dict[str, Any]]:
        """Return the trials of a method: for each the values of its hyper-parameters by name."""
        # Axes are sorted by name, so their order in the file does not move the points.
        shared, own = sorted(self.axes.items()), sorted(self.own.get(method, {}).items())
        if self.sampler == "grid":
            return [
                dict(zip(dict(shared), values, strict=True))
                for values in itertools.product(*(axis.values for _, axis in shared))
            ]
        # Scrambling depends on the number of dimensions. Every method therefore draws the same
        # number, whether it has axes of its own or not, and the shared values are equal for all.
        points = _draw_sobol_points(len(shared) + MAX_OWN_PARAMS, self.trials, self.seed)
        return [
            {
                name: axis.value_at(share)
                for (name, axis), share in zip((*shared, *own), point, strict=False)
            }
            for point in points
        ]

    def count_trials_per_rung(self) -> tuple[int, ...]:
        """Return the number of trials that are trained at each rung."""
        counts = [self.trials]
        for _ in self.rungs[1:]:
            assert self.halving is not None
            counts.append(self.halving.count_survivors(counts[-1]))
        return tuple(counts)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Tuning:
        halving = data["halving"] and Halving(
            tuple(data["halving"]["rungs"]), data["halving"]["keep"]
        )
        return Tuning(
            **{
                **data,
                "axes": _read_axes(data["axes"]),
                "own": {method: _read_axes(table) for method, table in data["own"].items()},
                "halving": halving,
                "seeds": tuple(data["seeds"]),
            }
        )

    def __str__(self) -> str:
        """Return `16 trials for everyone (sobol, seed 0), at seed 1000: lr from 0.0001 to …`."""
        drawn = self.sampler if self.sampler == "grid" else f"{self.sampler}, seed {self.seed}"
        spaces = [_describe_axes(self.axes)]
        for method, axes in sorted(self.own.items()):
            spaces.append(f"and of its own for {method} {_describe_axes(axes)}")
        seeds = f"at seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        trials = format_count(self.trials, "trial")
        text = f"{trials} for everyone ({drawn}), {seeds}: {'; '.join(spaces)}"
        if self.halving:
            rungs = zip(self.count_trials_per_rung(), self.rungs, strict=True)
            steps = (f"{n} with {100 * share:g} % of the steps" for n, share in rungs)
            text += f"; halving: {', then '.join(steps)}"
        return text


def _read_axes(table: Mapping[str, Any]) -> dict[str, TuningAxis]:
    """Return axes from their JSON."""
    return {
        name: TuningAxis(**{**axis, "values": tuple(axis["values"])})
        for name, axis in table.items()
    }


def _describe_axes(axes: Mapping[str, TuningAxis]) -> str:
    return ", ".join(f"{name} {axis}" for name, axis in sorted(axes.items()))


@cache
def _draw_sobol_points(dimensions: int, trials: int, seed: int) -> tuple[tuple[float, ...], ...]:
    """Return the first points of a scrambled Sobol sequence in the unit cube."""
    # SciPy takes most of a second to import, and most commands draw nothing.
    import numpy as np
    from scipy.stats import qmc

    sequence = qmc.Sobol(dimensions, scramble=True, seed=np.random.default_rng(seed))
    # The sequence is balanced only in powers of two. Any other number of trials gets the beginning
    # of the next power, so more trials only add points.
    points = sequence.random_base2((trials - 1).bit_length())[:trials]
    return tuple(map(tuple, points.tolist()))
