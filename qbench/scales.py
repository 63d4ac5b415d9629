"""Scale rules: how the step of a group is found from its elements, where the method leaves it open.

The rule matters more than most methods do, so it is an axis of its own and every method that leaves it open has a field
`scale`. `absmax` puts the largest element on the last level. `mse` searches a hundred fractions of that for the least
squared rounding error; `hessian` does the same with each element's error weighted by the diagonal of the Hessian.
(`learned` is a parameter, not a rule: see the method `lsq`.) A group whose elements are all zero keeps the scale 1.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qbench.formats import LevelKind, Levels, Site
from qbench.grid import Grid, widen
from qbench.quantizer import Quantizer
from qbench.rounding import straight_through
from qbench.run import Batch, Run

ScaleRule = Literal["absmax", "mse", "hessian"]
SCALE_RULES: tuple[ScaleRule, ...] = ("absmax", "mse", "hessian")
FRACTIONS = 100


def absmax_scale(x: Tensor, site: Site, levels: Levels) -> Tensor:
    """The largest magnitude of each group over the largest level; the mean magnitude for two levels (±mean|x|)."""
    grouped = site.grouping.group(widen(x))
    if levels.count == 2:
        size = 2 * grouped.abs().mean(-1, keepdim=True)
    else:
        size = grouped.abs().amax(-1, keepdim=True) / levels.high
    return torch.where(size > 0, size, 1.0)


def searched_scale(x: Tensor, site: Site, levels: Levels, weight: Tensor | None = None) -> Tensor:
    """The fraction of the absmax scale with the least (weighted) squared rounding error."""
    top = absmax_scale(x, site, levels)
    grouped = site.grouping.group(widen(x))
    importance = None if weight is None else site.grouping.group(widen(weight))
    best, least = top, torch.full_like(top, torch.inf)
    for step in range(FRACTIONS, 0, -1):
        scale = top * (step / FRACTIONS)
        wrong = (Grid(levels, site.grouping, scale).snap(x).reshape(grouped.shape) - grouped).square_()
        error = (wrong if importance is None else wrong * importance).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, scale, best), torch.where(better, error, least)
    return best


def affine_grid(x: Tensor, site: Site) -> Grid:
    """Codes 0 … 2^bits − 1 stretched over the range of each group, ends included."""
    levels = site.number_format.levels("affine")
    grouped = site.grouping.group(widen(x))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / levels.high
    return Grid(levels, site.grouping, torch.where(scale > 0, scale, 1.0), low)


class ScaledQuantizer(Quantizer):
    """A weight whose scale follows from its live elements by a rule. What remains to be said is how it is trained."""

    curvature: Tensor

    def __init__(self, site: Site, rule: ScaleRule, kind: LevelKind = "symmetric") -> None:
        super().__init__(site)
        self.rule, self.levels = rule, site.levels(kind)
        if rule == "hessian":
            self.register_buffer("curvature", torch.ones(site.shape))

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.rule == "absmax":
            scale = absmax_scale(x, self.site, self.levels)
        else:
            scale = searched_scale(x, self.site, self.levels, self.curvature if self.rule == "hessian" else None)
        return Grid(self.levels, self.site.grouping, scale)


def measure_curvature(run: Run, batches: list[Batch]) -> None:
    """Give every quantizer under the rule `hessian` the curvature of the loss where the weights are now."""
    for bundle in run.bundles:
        if isinstance(bundle.quantizer, ScaledQuantizer) and bundle.quantizer.rule == "hessian":
            bundle.quantizer.curvature.copy_(run.curvature(bundle, batches))


class InputRange(Quantizer):
    """A layer's input where the method has no rule of its own: one scale for the tensor, absmax over the calibration batches, straight-through.

    Unsigned codes where the input cannot be negative. `reset` widens the range; `run.calibrate` begins a new one.
    """

    size: Tensor

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.levels = site.levels("symmetric")
        self.register_buffer("size", torch.zeros(1, 1))

    def forget(self) -> None:
        self.size.zero_()

    def reset(self, x: Tensor) -> None:
        self.size.copy_(torch.maximum(self.size, absmax_scale(x.detach(), self.site, self.levels)))

    def grid(self, x: Tensor) -> Grid:
        return Grid(self.levels, self.site.grouping, torch.where(self.size > 0, self.size, 1.0))

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value, inside = grid.snap(x), grid.inside(x)
        return straight_through(x, value, inside)


CALIBRATIONS = 10


def calibrate_now_and_then(run: Run) -> None:
    """Ranges that no gradient moves would stay those of the first step: look again at every tenth of the run."""
    if run.inputs and run.step % max(1, run.steps // CALIBRATIONS) == 0 and run.step:
        run.calibrate(run.probe_batches(4))
