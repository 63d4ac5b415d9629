"""The levels of a format at unit scale, also for stacked runs that differ in bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qbench.numerics.batched_math import per_run_constant

LevelKind = Literal["symmetric", "full", "affine", "midrise"]


@dataclass(frozen=True)
class Levels:
    """The levels at unit scale.

    They are `low, low + 1, …, high`, or a codebook in ascending order from `low` to `high`.
    """

    bits: int
    low: float
    high: float
    codebook: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        """The number of levels."""
        return len(self.codebook) or round(self.high - self.low) + 1

    @property
    def shift(self) -> float:
        """The distance of the levels from the integers below: 0, or ½ for midrise."""
        return self.low % 1.0

    @property
    def is_binary(self) -> bool:
        """Whether there are only two levels. The absmax rule does not fit these."""
        return self.count == 2

    def units(self) -> tuple[float, ...]:
        """Return all levels in ascending order."""
        return self.codebook or tuple(self.low + i for i in range(self.count))

    def per_run_number(self, function: Callable[[Levels], float]) -> float | Tensor:
        """Return `function` of the levels.

        If stacked runs have different levels, the result is a tensor with one number for each run.
        """
        return function(self)


@dataclass(frozen=True, eq=False)
class BatchedLevels(Levels):
    """The levels of stacked runs whose integer formats have different widths.

    `low`, `high` and `count` are tensors of `axes` axes, the first of which is that of the runs.
    """

    levels_of_runs: tuple[Levels, ...] = ()
    axes: int = 1
    device: torch.device | None = None

    @staticmethod
    def of(levels_of_runs: Sequence[Levels], axes: int, device: torch.device) -> BatchedLevels:
        """Return the levels of all runs, for arithmetic with tensors of `axes` axes."""
        # The code branches on these three, so they must be the same in all runs.
        kinds = {(levels.shift, levels.codebook, levels.is_binary) for levels in levels_of_runs}
        assert len(kinds) == 1, "levels of stacked runs must be of one kind"
        low, high = (
            per_run_constant([getattr(levels, end) for levels in levels_of_runs], axes, device)
            for end in ("low", "high")
        )
        return BatchedLevels(
            bits=max(levels.bits for levels in levels_of_runs),
            low=low,  # type: ignore[arg-type]
            high=high,  # type: ignore[arg-type]
            levels_of_runs=tuple(levels_of_runs),
            axes=axes,
            device=device,
        )

    @property
    def count(self) -> Tensor:  # type: ignore[override]
        """The number of levels of each run."""
        return self.high - self.low + 1  # type: ignore[return-value]

    @property
    def shift(self) -> float:
        """The distance of the levels from the integers below, which all runs share."""
        return self.levels_of_runs[0].shift

    @property
    def is_binary(self) -> bool:
        """Whether the runs have only two levels."""
        return self.levels_of_runs[0].is_binary

    def per_run_number(self, function: Callable[[Levels], float]) -> Tensor:
        """Return `function` of the levels of each run."""
        values = [function(levels) for levels in self.levels_of_runs]
        return per_run_constant(values, self.axes, self.device)
