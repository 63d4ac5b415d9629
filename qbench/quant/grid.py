"""Grid: the levels that a tensor ships on, and the only place that rounds for shipping.

A grid is a set of unit levels (`Levels`) with a scale, and possibly an offset, for each group:

    z = (x − offset) / scale            the coordinate of x, in units of the scale
    unit = the level nearest to z       ties go to the even code, which has no bias
    code = its index, 0 … count − 1     this is packed
    value = scale · unit + offset       with decode_scale and decode_offset if a method sets them

Encoding and decoding may use different numbers: EWGS encodes by its interval and decodes by its
output scale. So a tensor is never snapped to the nearest *value*: it is encoded, then decoded. All
arithmetic is in float32, or in float64 if the tensor is. In bf16, one step of int8 would be lost.

The decoder of an artefact repeats `scale · unit + offset` in NumPy. That is a product and a sum,
each rounded once, so the decoded weights equal the snapped ones bit for bit. For this reason its
order must not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qbench.quant.formats import Granularity
from qbench.quant.levels import Levels

SCALE_BITS = 32
"""Bits of a scale or an offset in an artefact: they are float32."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels with a scale, and possibly an offset, for each group of a `(…, rows, columns)` tensor.

    Attributes:
        levels: The levels at unit scale.
        grouping: Which elements share a scale.
        scale: One number for each group, shaped by `grouping.scale_shape`.
        offset: The value of the unit level 0, shaped like `scale`; None means 0.
        decode_scale: The scale of the values that ship, if it is not `scale`.
        decode_offset: The offset of the values that ship; read only with a `decode_scale`.
    """

    levels: Levels
    grouping: Granularity
    scale: Tensor
    offset: Tensor | None = None
    decode_scale: Tensor | None = None
    decode_offset: Tensor | None = None

    def snap(self, x: Tensor) -> Tensor:
        """Return the value that ships in place of each element."""
        return self._values(self._nearest(self.encode(x))).reshape(x.shape)

    def codes(self, x: Tensor) -> Tensor:
        """Return the code of each element, 0 … count − 1, as uint8."""
        unit = self._nearest(self.encode(x))
        if self.levels.codebook:
            # `unit` was taken out of the codebook, so the search finds an exact match.
            units, _ = _codebook(self.levels, unit.dtype, unit.device)
            code = torch.searchsorted(units, unit)
        else:
            code = unit - self.levels.low
        return code.to(torch.uint8).reshape(x.shape)

    def values(self, codes: Tensor) -> Tensor:
        """Return the values that the codes decode to."""
        if self.levels.codebook:
            units, _ = _codebook(self.levels, self.scale.dtype, codes.device)
            unit = units[codes.long()]
        else:
            unit = codes.to(self.scale.dtype) + self.levels.low
        return self._values(self.grouping.group(unit)).reshape(codes.shape)

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values of the levels below and above each element.

        Both are the same level for an element that lies on the grid or outside its range.
        """
        below, above = self._bracket(self.encode(x))
        return self._values(below).reshape(x.shape), self._values(above).reshape(x.shape)

    def snap_randomly(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Return each element rounded up or down at random, without bias inside the range.

        The level above is taken with probability (z − below)/(above − below), otherwise the one
        below. `uniform` holds draws in [0, 1), one for each element.
        """
        z = self.encode(x)
        below, above = self._bracket(z)
        # Multiplying avoids a division by zero where both levels are the same: 0 < 0 is false.
        up = self.grouping.group(uniform) * (above - below) < z - below
        return self._values(torch.where(up, above, below)).reshape(x.shape)

    def needs_no_clipping(self, x: Tensor) -> Tensor:
        """Return a mask of the elements that rounding alone puts on a level, without clipping.

        The rounded coordinate decides, not the element itself. x / scale may exceed the last level
        by a rounding error although x has exactly its value; comparing it would clip such x.
        """
        z = self.encode(x)
        if self.levels.codebook:
            units, middles = _codebook(self.levels, z.dtype, z.device)
            # The last level reaches as far outwards as inwards: up to half the last gap.
            low, high = 2 * units[0] - middles[0], 2 * units[-1] - middles[-1]
            return ((z > low) & (z < high)).reshape(x.shape)
        rounded = (z - self.levels.shift).round_()
        return (
            (rounded >= self.levels.low - self.levels.shift)
            & (rounded <= self.levels.high - self.levels.shift)
        ).reshape(x.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Return the coordinates of the elements in units of their group's scale, grouped.

        The result is always a new tensor. `_nearest` relies on this.
        """
        grouped = self.grouping.group(widen(x))
        return (grouped if self.offset is None else grouped - self.offset) / self.scale

    def bits(self, count: int) -> int:
        """Return how many bits `count` elements take, every scale and offset included."""
        return (
            count * self.levels.bits
            + sum(t.numel() for t in self.decoding() if t is not None) * SCALE_BITS
        )

    def decoding(self) -> tuple[Tensor, Tensor | None]:
        """Return the scale and offset of the values that ship.

        They are those that encode, unless the grid has a `decode_scale`.
        """
        return (
            (self.scale, self.offset)
            if self.decode_scale is None
            else (self.decode_scale, self.decode_offset)
        )

    def __getitem__(self, index: int) -> Grid:
        """Return the grid of one of several stacked tensors, by its index along the first axis."""
        numbers = [
            None if t is None else t[index]
            for t in (self.scale, self.offset, self.decode_scale, self.decode_offset)
        ]
        assert numbers[0] is not None
        return Grid(self.levels, self.grouping, numbers[0], *numbers[1:])

    def _nearest(self, z: Tensor) -> Tensor:
        """Return the unit level nearest to each coordinate. `z` may be overwritten."""
        if self.levels.codebook:
            units, middles = _codebook(self.levels, z.dtype, z.device)
            # bucketize puts an exact midpoint below. A tie moves up if the code below is odd,
            # counted from the zero in the middle of the codebook.
            index = torch.bucketize(z, middles)
            zero = len(units) // 2
            tie = middles[index.clamp(max=len(middles) - 1)] == z
            return units[index + (tie & ((index - zero) % 2 != 0))]
        # round_ sends ties to even integers. In place, since every caller has just made z.
        if shift := self.levels.shift:
            return z.sub_(shift).round_().add_(shift).clamp_(self.levels.low, self.levels.high)
        return z.round_().clamp_(self.levels.low, self.levels.high)

    def _bracket(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit levels below and above each coordinate."""
        low, high = self.levels.low, self.levels.high
        if self.levels.codebook:
            units, _ = _codebook(self.levels, z.dtype, z.device)
            above = torch.searchsorted(units, z).clamp_(max=len(units) - 1)
            exact = units[above] <= z
            return units[torch.where(exact, above, above - 1).clamp_(min=0)], units[above]
        inside = z.clamp(low, high) - self.levels.shift
        return inside.floor() + self.levels.shift, inside.ceil() + self.levels.shift

    def _values(self, unit: Tensor) -> Tensor:
        """Return the values of grouped unit levels."""
        scale, offset = self.decoding()
        return unit * scale if offset is None else unit * scale + offset


def widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is if it is float32 or float64.

    Quantizers compute in float32 at least: in bf16 the effect of several rules would round away.
    """
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _codebook(levels: Levels, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the unit levels and the midpoints between neighbours."""
    # Under compilation the tensors are built in the graph, and become constants of the graph.
    make = _make_codebook if torch.compiler.is_compiling() else _make_codebook_once
    return make(levels, dtype, device)


def _make_codebook(
    levels: Levels, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    units = torch.tensor(levels.codebook, dtype=dtype, device=device)
    return units, (units[1:] + units[:-1]) / 2


_make_codebook_once = cache(_make_codebook)
