"""Round to nearest after training: the control that costs nothing. It takes the finished
full-precision run of the same seed.

Beating it under absmax proves little: the searched scales and the affine grid are controls too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qbench.api import (
    Grid,
    InputQuantizer,
    Method,
    Quantizer,
    ScaledQuantizer,
    ScaleRule,
    Site,
    affine_grid,
)


@dataclass
class RTN(Method):
    """Put each weight of the full-precision network on the nearest level."""

    name = "rtn"
    title = "Round to nearest"
    post_training = "fp"

    scale: ScaleRule = "absmax"
    grid: Literal["symmetric", "affine", "midrise"] = "symmetric"

    def check(self) -> str | None:
        if self.grid == "affine" and self.scale != "absmax":
            return (
                "the affine grid spans the range of its group, "
                f"so the scale rule {self.scale} does not apply"
            )
        return None

    def unsupported(self, site: Site) -> str | None:
        if self.grid != "symmetric" and site.number_format.codebook:
            return f"{site.format} is a codebook, which has no {self.grid} grid"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        if site.role == "activation":
            return InputQuantizer(site)
        if self.grid == "affine":
            return AffineRounding(site)
        return Rounding(site, self.scale, self.grid)


class Rounding(ScaledQuantizer):
    def relax(self, x: Tensor) -> Tensor:
        return self.grid(x).snap(x)


class AffineRounding(Quantizer):
    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        return affine_grid(x, self.site)

    def relax(self, x: Tensor) -> Tensor:
        return self.grid(x).snap(x)
