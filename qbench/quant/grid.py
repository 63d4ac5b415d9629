"""Grid: the levels a tensor would ship on, and the only place that rounds for shipping.

A grid is a set of unit levels (`Levels`) with a scale, and an offset where there is one, for each
group:

    z = (x − offset) / scale            encode coordinates
    unit = the nearest level to z       ties to the even code, so that nothing drifts
    code = its index, 0 … count − 1     what is packed
    value = scale · unit + offset       with decode_scale, decode_offset where a method ships on other values

Encoding and decoding may use different numbers (EWGS encodes by its interval and decodes by its
output scale), so a tensor is never snapped to the nearest *value*: it is encoded, then decoded. All
arithmetic is float32, or float64 if the tensor is; under bf16 a step of int8 would be lost.

The decoder of an artefact repeats `scale · unit + offset` in NumPy: a product and a sum, each
rounded once, so decoded weights are the snapped ones bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from qbench.quant.formats import Granularity
from qbench.quant.levels import Levels

SCALE_BITS = 32


def _codebook(levels: Levels, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The unit levels and the midpoints between them; a compiler makes them constants of its
    own.
    """
    return (_made_codebook if torch.compiler.is_compiling() else _kept_codebook)(
        levels, dtype, device
    )


def _made_codebook(
    levels: Levels, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    units = torch.tensor(levels.codebook, dtype=dtype, device=device)
    return units, (units[1:] + units[:-1]) / 2


_kept_codebook = cache(_made_codebook)


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels with a scale (and an offset) for each group of a `(…, rows, columns)` tensor."""

    levels: Levels
    grouping: Granularity
    scale: Tensor
    offset: Tensor | None = None
    decode_scale: Tensor | None = None
    decode_offset: Tensor | None = None

    def snap(self, x: Tensor) -> Tensor:
        """The value that ships in the place of each element."""
        return self._values(self._nearest(self.encode(x))).reshape(x.shape)

    def codes(self, x: Tensor) -> Tensor:
        """The code of each element, 0 … count − 1, as uint8."""
        unit = self._nearest(self.encode(x))
        if self.levels.codebook:
            units, _ = _codebook(self.levels, unit.dtype, unit.device)
            code = torch.searchsorted(units, unit)
        else:
            code = unit - self.levels.low
        return code.to(torch.uint8).reshape(x.shape)

    def values(self, codes: Tensor) -> Tensor:
        """What codes decode to."""
        if self.levels.codebook:
            units, _ = _codebook(self.levels, self.scale.dtype, codes.device)
            unit = units[codes.long()]
        else:
            unit = codes.to(self.scale.dtype) + self.levels.low
        return self._values(self.grouping.group(unit)).reshape(codes.shape)

    def neighbours(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values of the levels below and above each element; both are the same level on the
        grid and outside it.
        """
        below, above = self._bracket(self.encode(x))
        return self._values(below).reshape(x.shape), self._values(above).reshape(x.shape)

    def snap_randomly(self, x: Tensor, uniform: Tensor) -> Tensor:
        """Each element on the level above with probability (z − below)/(above − below), else on the
        one below; `uniform` is in [0, 1).
        """
        z = self.encode(x)
        below, above = self._bracket(z)
        up = self.grouping.group(uniform) * (above - below) < z - below
        return self._values(torch.where(up, above, below)).reshape(x.shape)

    def needs_no_clipping(self, x: Tensor) -> Tensor:
        """Where rounding alone finds a level, so that no clipping is needed."""
        z = self.encode(x)
        if self.levels.codebook:
            units, middles = _codebook(self.levels, z.dtype, z.device)
            low, high = 2 * units[0] - middles[0], 2 * units[-1] - middles[-1]
            return ((z > low) & (z < high)).reshape(x.shape)
        rounded = (z - self.levels.shift).round_()
        return (
            (rounded >= self.levels.low - self.levels.shift)
            & (rounded <= self.levels.high - self.levels.shift)
        ).reshape(x.shape)

    def encode(self, x: Tensor) -> Tensor:
        """Elements in units of their group's scale, grouped."""
        grouped = self.grouping.group(widen(x))
        return (grouped if self.offset is None else grouped - self.offset) / self.scale

    def bits(self, count: int) -> int:
        """Bits that `count` elements take, codes and every scale and offset included."""
        return (
            count * self.levels.bits
            + sum(t.numel() for t in self.decoding() if t is not None) * SCALE_BITS
        )

    def decoding(self) -> tuple[Tensor, Tensor | None]:
        """The scale and offset that values are made with: those that encode, unless there is a
        scale of their own.
        """
        return (
            (self.scale, self.offset)
            if self.decode_scale is None
            else (self.decode_scale, self.decode_offset)
        )

    def __getitem__(self, index: int) -> Grid:
        """The grid of one tensor out of several quantized side by side (the first axis)."""
        pick = [
            None if t is None else t[index]
            for t in (self.scale, self.offset, self.decode_scale, self.decode_offset)
        ]
        assert pick[0] is not None
        return Grid(self.levels, self.grouping, pick[0], *pick[1:])

    def _nearest(self, z: Tensor) -> Tensor:
        """Round encode coordinates; in place, since every caller has just made them."""
        if self.levels.codebook:
            units, middles = _codebook(self.levels, z.dtype, z.device)
            index = torch.bucketize(z, middles)
            zero = len(units) // 2
            tie = middles[index.clamp(max=len(middles) - 1)] == z
            return units[index + (tie & ((index - zero) % 2 != 0))]
        if shift := self.levels.shift:
            return z.sub_(shift).round_().add_(shift).clamp_(self.levels.low, self.levels.high)
        return z.round_().clamp_(self.levels.low, self.levels.high)

    def _bracket(self, z: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.levels.low, self.levels.high
        if self.levels.codebook:
            units, _ = _codebook(self.levels, z.dtype, z.device)
            above = torch.searchsorted(units, z).clamp_(max=len(units) - 1)
            exact = units[above] <= z
            return units[torch.where(exact, above, above - 1).clamp_(min=0)], units[above]
        inside = z.clamp(low, high) - self.levels.shift
        return inside.floor() + self.levels.shift, inside.ceil() + self.levels.shift

    def _values(self, unit: Tensor) -> Tensor:
        scale, offset = self.decoding()
        return unit * scale if offset is None else unit * scale + offset


def widen(x: Tensor) -> Tensor:
    """Quantizer arithmetic is float32 at the least: several rules vanish in bf16."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
