"""Randomised rounding (RR, also RAT) in the forward pass: the control for LOTION, arXiv 2510.08757. Reconstructed.

    forward     ŵ = RR(w):  the level above with probability (w − lo)/(hi − lo), else the level below; fresh draws each step
    backward    the identity where the code nearest to w needs no clipping, 0 elsewhere

Where nothing is clipped E[ŵ] = w, so on a quadratic loss the expected gradient is H(w − w*), that of full precision: the
noise costs accuracy and moves nothing. LOTION differs by the dependence of the noise's law on w, which the identity
drops. Under absmax no code of more than two levels is ever clipped, so no mask is made. Scored on the nearest levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.api import Batch, InputRange, Method, Quantizer, ScaledQuantizer, Site, TrainedScaleRule
from qbench.training.calibration import settle, settle_now_and_then, undivided
from qbench.training.run import Run


@dataclass
class RR(Method):
    """Round at random in the forward pass; in the backward pass pretend that nothing happened."""

    name = "rr"
    title = "Randomised rounding"
    provenance = "reconstructed"
    knobs = ("scale",)
    varies = ("format",)
    compiled_alike = True

    scale: TrainedScaleRule = "absmax"

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
        return None

    def undivided(self) -> str | None:
        return undivided(self.name, self.scale)

    def quantizer(self, site: Site) -> Quantizer:
        return InputRange(site) if site.role == "activation" else RandomRounding(site, self.scale)

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)

    def before_step(self, run: Run, batch: Batch) -> None:
        settle_now_and_then(run)

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        self.prepare(run, batches)


class RandomRounding(ScaledQuantizer):
    def __init__(self, site: Site, rule: TrainedScaleRule) -> None:
        super().__init__(site, rule)
        self.masks = rule != "absmax" or self.levels.two

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value = grid.snap_randomly(x, self.draw(x))
            mask = grid.inside(x) if self.masks else None
        return self.straight(x, grid, value, mask)
