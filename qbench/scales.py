"""Scale rules: how the step of a group is found from its elements, where the method leaves it open.

The rule matters more than most methods do, so it is an axis of its own and every method that leaves it open has a field
`scale`. `absmax` puts the largest element on the last level. `mse` searches a hundred fractions of that for the least
squared rounding error; `hessian` does the same with each element's error weighted by the diagonal of the Hessian.
A trained method may also take `learned`: a parameter a group, which begins at the `mse` scale and is moved by its own gradient, as in LSQ
(arXiv 1902.08153). A group whose elements are all zero keeps the scale 1.

A search costs a hundred roundings, so training does not search at every step: it looks again at every tenth of a run and at the end
(`settle`). In between the scale stays the same fraction of the live absmax.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from qbench.formats import LevelKind, Levels, Site
from qbench.grid import Grid, widen
from qbench.quantizer import Quantizer
from qbench.rounding import straight_through
from qbench.run import Batch, Run

ScaleRule = Literal["absmax", "mse", "hessian"]
TrainedScaleRule = Literal["absmax", "mse", "hessian", "learned"]
FRACTIONS = 100
SMALLEST = 1e-12


def absmax_scale(x: Tensor, site: Site, levels: Levels) -> Tensor:
    """The largest magnitude of each group over the largest level; the mean magnitude for two levels (±mean|x|)."""
    grouped = site.grouping.group(widen(x))
    if levels.two:
        size = 2 * grouped.abs().mean(-1, keepdim=True)
    else:
        size = grouped.abs().amax(-1, keepdim=True) / levels.high
    return torch.where(size > 0, size, 1.0)


def searched_scale(x: Tensor, site: Site, levels: Levels, weight: Tensor | None = None) -> Tensor:
    """The fraction of the absmax scale with the least (weighted) squared rounding error."""
    return absmax_scale(x, site, levels) * best_fraction(x, site, levels, weight)


@torch.no_grad()
def best_fraction(x: Tensor, site: Site, levels: Levels, weight: Tensor | None = None) -> Tensor:
    top = absmax_scale(x, site, levels)
    grouped = site.grouping.group(widen(x))
    importance = None if weight is None else site.grouping.group(widen(weight))
    best, least = torch.ones_like(top), torch.full_like(top, torch.inf)
    for step in range(FRACTIONS, 0, -1):
        fraction = step / FRACTIONS
        wrong = (Grid(levels, site.grouping, top * fraction).snap(x).reshape(grouped.shape) - grouped).square_()
        error = (wrong if importance is None else wrong * importance).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, fraction, best), torch.where(better, error, least)
    return best


def affine_grid(x: Tensor, site: Site, levels: Levels | None = None) -> Grid:
    """Codes 0 … 2^bits − 1 stretched over the range of each group, ends included."""
    levels = levels or site.number_format.levels("affine")
    grouped = site.grouping.group(widen(x))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / levels.high
    return Grid(levels, site.grouping, torch.where(scale > 0, scale, 1.0), low)


class ScaledQuantizer(Quantizer):
    """A weight whose scale follows from its live elements by a rule. What remains to be said is how it is trained."""

    curvature: Tensor
    fraction: Tensor
    size: nn.Parameter
    """The scale where it is learned."""

    def __init__(self, site: Site, rule: TrainedScaleRule, kind: LevelKind = "symmetric") -> None:
        super().__init__(site)
        self.rule, self.levels, self.settled = rule, site.levels(kind), False
        if rule == "learned":
            self.size = nn.Parameter(torch.ones(site.scale_shape))
        if rule in ("mse", "hessian"):
            self.register_buffer("fraction", torch.ones(site.scale_shape))
        if rule == "hessian":
            self.register_buffer("curvature", torch.ones(site.shape))

    @torch.no_grad()
    def reset(self, x: Tensor) -> None:
        """Search the fraction of absmax anew, which then stays until the next call; a learned scale starts, once. A quantizer that
        never was reset searches whenever it is asked."""
        if self.rule == "learned" and not self.settled:
            self.size.copy_(searched_scale(x, self.site, self.levels))
        elif self.searches:
            self.fraction.copy_(self.search(x))
        self.settled = True

    @property
    def searches(self) -> bool:
        return self.rule in ("mse", "hessian")

    def search(self, x: Tensor) -> Tensor:
        return best_fraction(x, self.site, self.levels, self.curvature if self.rule == "hessian" else None)

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.rule == "learned":
            scale = self.size.abs().clamp(min=SMALLEST) if self.settled else searched_scale(x, self.site, self.levels)
        else:
            scale = absmax_scale(x, self.site, self.levels)
            if self.searches:
                scale = scale * (self.fraction if self.settled else self.search(x))
        return Grid(self.levels, self.site.grouping, scale)

    def straight(self, x: Tensor, grid: Grid, value: Tensor, mask: Tensor | None) -> Tensor:
        """`value` with the gradient of `x` where the mask holds, and with LSQ's gradient of a scale that is learned."""
        if self.rule != "learned":
            return straight_through(x, value, mask)
        group = self.site.grouping.group
        with torch.no_grad():
            v = grid.encode(x)
            inside = (v > self.levels.low) & (v < self.levels.high)
            size = self.levels.number(lambda levels: (v.shape[-1] * levels.high) ** -0.5)
            slope = (group(value) / grid.scale - torch.where(inside, v, 0.0)) * size
        source = x if mask is None else torch.where(mask, x, x.detach())
        return straight_through((group(source) + slope * self.size.abs()).reshape(x.shape), value)


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
        x = x.detach()
        seen = x.flatten(-2).any(-1)[..., None, None]
        scale = torch.where(seen, absmax_scale(x, self.site, self.levels), 0.0)  # a batch of zeros has no say
        self.size.copy_(torch.maximum(self.size, scale))

    def grid(self, x: Tensor) -> Grid:
        return Grid(self.levels, self.site.grouping, torch.where(self.size > 0, self.size, 1.0))

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value, inside = grid.snap(x), grid.inside(x)
        return straight_through(x, value, inside)


def undivided(method: str, rule: TrainedScaleRule) -> str | None:
    """Why a rule cannot be followed by a method whose weights are divided among processes; None where each weight alone says its scale."""
    if rule == "learned":
        return f"{method} with scale = learned has parameters of its own, which are not divided among processes"
    return f"{method} with scale = hessian looks at the gradients of whole weights, which no process holds" if rule == "hessian" else None


# ---- while a run goes on ----

TIMES = 10
"""How often in a run what no gradient moves is looked at again."""
BATCHES = 4


def settle(run: Run, batches: list[Batch]) -> None:
    """What no gradient moves, for the network as it is now: the curvature where a rule wants it, searched scales, ranges of inputs."""
    for bundle in run.bundles:
        quantizer = bundle.quantizer
        if isinstance(quantizer, ScaledQuantizer):
            if quantizer.rule == "hessian":
                quantizer.curvature.copy_(run.curvature(bundle, batches))
            quantizer.reset(bundle.stack().detach())
    run.calibrate(batches)


def settle_now_and_then(run: Run) -> None:
    """Again at every tenth of the run, if there is anything to settle."""
    if run.step and run.step % max(1, run.steps // TIMES) == 0:
        searches = any(isinstance(b.quantizer, ScaledQuantizer) and b.quantizer.searches for b in run.bundles)
        if searches or run.inputs:
            settle(run, run.probe_batches(BATCHES))
