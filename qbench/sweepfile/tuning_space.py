"""What is tuned: ranges, trials, halving; draws the trials."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from qbench.runs.config import Recipe
from qbench.util.text import count, value

__all__ = ["FIRST_SEED", "MOST_KNOBS", "Axis", "Halving", "Tuning"]


FIRST_SEED = 1000
"""Of tuning: a board's own seeds begin at 0, and no run may both choose and be reported."""
MOST_KNOBS = 2
RECIPE = get_type_hints(Recipe)
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
            ordered = sorted(
                v for v in self.values if isinstance(v, (int, float)) and not isinstance(v, bool)
            )
            return len(ordered) == len(self.values) > 2 and value in (ordered[0], ordered[-1])
        low, high, x = (
            (math.log(v) for v in (self.low, self.high, value))
            if self.log
            else (self.low, self.high, value)
        )
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
            return [
                dict(zip(dict(shared), values, strict=True))
                for values in itertools.product(*(axis.values for _, axis in shared))
            ]
        points = _cube(self.sampler, len(shared) + MOST_KNOBS, self.trials, self.seed)
        return [
            {
                name: axis.at(share)
                for (name, axis), share in zip((*shared, *own), point, strict=False)
            }
            for point in points
        ]

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
            return {
                name: Axis(**{**axis, "values": tuple(axis["values"])})
                for name, axis in table.items()
            }

        halving = data["halving"] and Halving(
            tuple(data["halving"]["rungs"]), data["halving"]["keep"]
        )
        own = {method: axes(table) for method, table in data["own"].items()}
        return Tuning(
            **{
                **data,
                "axes": axes(data["axes"]),
                "own": own,
                "halving": halving,
                "seeds": tuple(data["seeds"]),
            }
        )

    def __str__(self) -> str:
        """`16 trials for everyone (sobol, seed 0): lr from 0.0001 to 0.1 (log) …`."""
        drawn = self.sampler if self.sampler == "grid" else f"{self.sampler}, seed {self.seed}"
        spaces = [
            _space(self.axes),
            *(
                f"and of its own for {method} {_space(axes)}"
                for method, axes in sorted(self.own.items())
            ),
        ]
        seeds = f"at seed{'s' * (len(self.seeds) > 1)} {', '.join(map(str, self.seeds))}"
        parts = [
            f"{count(self.trials, 'trial')} for everyone ({drawn}), {seeds}: {'; '.join(spaces)}"
        ]
        if self.halving:
            rungs = zip(self.counts(), self.rungs, strict=True)
            parts.append(
                "halving: "
                + ", then ".join(f"{n} with {100 * share:g} % of the steps" for n, share in rungs)
            )
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
        return tuple(
            map(
                tuple, qmc.Halton(dimensions, scramble=True, seed=generator).random(trials).tolist()
            )
        )
    # A Sobol sequence is balanced in powers of two: the beginning of the next one is what any other number can have.
    return tuple(
        map(
            tuple,
            qmc.Sobol(dimensions, scramble=True, seed=generator)
            .random_base2((trials - 1).bit_length())[:trials]
            .tolist(),
        )
    )
