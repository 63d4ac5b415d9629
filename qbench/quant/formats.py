"""Formats and granularities: what `int4` and `block-32` mean, and the site that a quantizer is made
for.

A format says how many bits a code takes; its levels at unit scale are a run of integers, a run of
half-integers or a codebook. int4 alone is four different runs, and methods differ in which they
use:

    symmetric   −7 … 7          15 levels, the largest element sits exactly on the last one
    full        −8 … 7          16 levels, LSQ's range
    affine       0 … 15         16 levels, with an offset beside the scale (also unsigned activations, without one)
    midrise    −7.5 … 7.5       16 levels, none of them zero

int1 has no symmetric run but {0}; its symmetric and midrise levels are both ±½.
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


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Format:
    """A number format by name. `codebook` is empty for integers."""

    name: str
    bits: int
    codebook: tuple[float, ...] = ()

    @staticmethod
    def named(name: str) -> Format:
        return _format(name)

    def levels(self, kind: LevelKind = "symmetric") -> Levels:
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
        return Format("fp4", 4, tuple(sorted({-v for v in E2M1} | set(E2M1))))
    if name in FORMATS:
        return Format(name, int(name[3:]))
    raise unknown_name_error("format", name, FORMATS)


@dataclass(frozen=True)
class Granularity:
    """Which elements of a `(…, rows, columns)` tensor share a scale: all, a row, or `block`
    neighbours in a row.
    """

    name: str
    block: int = 0

    @staticmethod
    def named(name: str) -> Granularity:
        return _granularity(name)

    def group(self, x: Tensor) -> Tensor:
        """A view whose last axis is one group."""
        if self.name == "tensor":
            return x.flatten(-2).unsqueeze(-2)
        if self.block:
            blocks: Tensor = x.unflatten(-1, (-1, self.block))
            return blocks
        return x

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of one number a group, as it broadcasts against `group(x)`."""
        *lead, rows, columns = shape
        if self.name == "tensor":
            return (*lead, 1, 1)
        if self.block:
            return (*lead, rows, columns // self.block, 1)
        return (*lead, rows, 1)

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        """Why the granularity cannot hold on a tensor of this shape, in a sentence."""
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
