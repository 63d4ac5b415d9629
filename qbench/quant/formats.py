"""Formats and granularities: what `int4` and `block-32` mean.

A format says how many bits a code takes. Its levels at unit scale are consecutive integers,
consecutive half-integers or a codebook. int4 has four sets of levels, and methods differ in which
of them they use:

    symmetric   −7 … 7          15 levels; the largest element lies exactly on the last one
    full        −8 … 7          16 levels; the range of LSQ
    affine       0 … 15         16 levels with an offset and a scale; without an offset for
                                activations that cannot be negative
    midrise    −7.5 … 7.5       16 levels, none of them zero

The only symmetric set of int1 would be {0}, so its symmetric and its midrise levels are both ±½.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from qbench.errors import unknown_name_error
from qbench.quant.levels import Levels

if TYPE_CHECKING:
    from qbench.quant.levels import LevelKind


# The magnitudes of a 4-bit float with two exponent bits and one mantissa bit (OCP MX, E2M1).
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Format:
    """A number format. `codebook` holds its levels in ascending order; it is empty for integers."""

    name: str
    bits: int
    codebook: tuple[float, ...] = ()

    @staticmethod
    def named(name: str) -> Format:
        """Return the format of this name, or raise a `UsageError` that suggests similar names."""
        return _format(name)

    def levels(self, kind: LevelKind = "symmetric") -> Levels:
        """Return the levels at unit scale. A codebook has one set, whatever kind is asked for."""
        if self.codebook:
            return Levels(self.bits, self.codebook[0], self.codebook[-1], self.codebook)
        count = 2**self.bits
        if kind == "midrise" or (kind == "symmetric" and self.bits == 1):
            return Levels(self.bits, -(count - 1) / 2, (count - 1) / 2)
        if kind == "symmetric":
            return Levels(self.bits, -(count // 2 - 1), count // 2 - 1)
        if kind == "full":
            return Levels(self.bits, -(count // 2), count // 2 - 1)
        if kind == "affine":
            return Levels(self.bits, 0, count - 1)
        raise unknown_name_error("grid", kind, ("symmetric", "full", "affine", "midrise"))


FORMATS = (*(f"int{bits}" for bits in range(1, 9)), "fp4")


@cache
def _format(name: str) -> Format:
    if name == "fp4":
        # The set removes the second zero: −0 and 0 are one level, so fp4 has 15 levels.
        return Format("fp4", 4, tuple(sorted({-v for v in E2M1} | set(E2M1))))
    if name in FORMATS:
        return Format(name, int(name[3:]))
    raise unknown_name_error("format", name, FORMATS)


@dataclass(frozen=True)
class Granularity:
    """Which elements of a `(…, rows, columns)` tensor share a scale and so form a group.

    A group is the whole matrix, a row of it, or `block` consecutive elements of a row.
    """

    name: str
    block: int = 0

    @staticmethod
    def named(name: str) -> Granularity:
        """Return the granularity of this name, or raise a `UsageError`."""
        return _granularity(name)

    def group(self, x: Tensor) -> Tensor:
        """Return a view of `x` whose last axis is one group."""
        if self.name == "tensor":
            return x.flatten(-2).unsqueeze(-2)
        if self.block:
            blocks: Tensor = x.unflatten(-1, (-1, self.block))
            return blocks
        return x

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of a tensor with one number per group.

        It broadcasts against `group(x)` for an `x` of the given shape.
        """
        *lead, rows, columns = shape
        if self.name == "tensor":
            return (*lead, 1, 1)
        if self.block:
            return (*lead, rows, columns // self.block, 1)
        return (*lead, rows, 1)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Return why a tensor of this shape cannot be grouped so, in a sentence, or None."""
        if self.block and shape[-1] % self.block:
            return (
                f"{self.name} needs rows of a multiple of {self.block} elements, not of {shape[-1]}"
            )
        return None


@cache
def _granularity(name: str) -> Granularity:
    if name in ("tensor", "channel"):
        return Granularity(name)
    if match := re.fullmatch(r"block-([1-9][0-9]{0,5})", name):
        return Granularity(name, int(match[1]))
    raise unknown_name_error(
        "granularity", name, ("tensor", "channel", "block-32", "block-64", "block-128")
    )
