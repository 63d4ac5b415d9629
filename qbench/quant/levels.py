"""The levels of a format at unit scale; BatchedLevels where stacked runs differ in bits."""

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
    """The levels at unit scale: `low, low + 1, …, high`, or a sorted codebook from `low` to
    `high`.
    """

    bits: int
    low: float
    high: float
    codebook: tuple[float, ...] = ()

    @property
    def count(self) -> int:
        return len(self.codebook) or round(self.high - self.low) + 1

    @property
    def shift(self) -> float:
        """How far the run lies off the integers: 0, or ½ for midrise."""
        return self.low % 1.0

    @property
    def is_binary(self) -> bool:
        """Whether there are two alone, which absmax does not fit."""
        return self.count == 2

    def units(self) -> tuple[float, ...]:
        return self.codebook or tuple(self.low + i for i in range(self.count))

    def per_run_number(self, f: Callable[[Levels], float]) -> float | Tensor:
        """What follows from the levels; for runs side by side on different ones, one each."""
        return f(self)


@dataclass(frozen=True, eq=False)
class BatchedLevels(Levels):
    """Of several runs, integers of different widths: the ends are tensors, with an axis of runs in
    front of `axes` − 1 others.
    """

    own: tuple[Levels, ...] = ()
    axes: int = 1
    device: torch.device | None = None

    @staticmethod
    def of(own: Sequence[Levels], axes: int, device: torch.device) -> BatchedLevels:
        assert len({(levels.shift, levels.codebook, levels.is_binary) for levels in own}) == 1, (
            "of one kind"
        )
        low, high = (
            per_run_constant([getattr(levels, end) for levels in own], axes, device)
            for end in ("low", "high")
        )
        return BatchedLevels(
            max(levels.bits for levels in own), low, high, (), tuple(own), axes, device
        )  # type: ignore[arg-type]

    @property
    def count(self) -> Tensor:  # type: ignore[override]
        return self.high - self.low + 1  # type: ignore[return-value]

    @property
    def shift(self) -> float:
        return self.own[0].shift

    @property
    def is_binary(self) -> bool:
        return self.own[0].is_binary

    def per_run_number(self, f: Callable[[Levels], float]) -> Tensor:
        return per_run_constant([f(levels) for levels in self.own], self.axes, self.device)
