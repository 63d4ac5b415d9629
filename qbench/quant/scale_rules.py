"""Scale rules: how the step of a group is found from its elements, where the method leaves it open.

The rule matters more than most methods do, so it is an axis of its own and every method that leaves
it open has a field `scale`. `absmax` puts the largest element on the last level. `mse` searches a
hundred fractions of that for the least squared rounding error; `hessian` does the same with each
element's error weighted by the diagonal of the Hessian. A trained method may also take `learned`: a
parameter a group, which begins at the `mse` scale and is moved by its own gradient, as in LSQ
(arXiv 1902.08153). A group whose elements are all zero keeps the scale 1.

A search costs a hundred roundings, so training does not search at every step: it looks again at
every tenth of a run and at the end (`settle`). In between the scale stays the same fraction of the
live absmax.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qbench.quant.grid import Grid, widen
from qbench.quant.levels import Levels
from qbench.quant.site import Site

ScaleRule = Literal["absmax", "mse", "hessian"]
TrainedScaleRule = Literal["absmax", "mse", "hessian", "learned"]
FRACTIONS = 100
MIN_SCALE = 1e-12


def absmax_scale(x: Tensor, site: Site, levels: Levels) -> Tensor:
    """The largest magnitude of each group over the largest level; the mean magnitude for two levels
    (±mean|x|).
    """
    grouped = site.grouping.group(widen(x))
    if levels.is_binary:
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
        wrong = (
            Grid(levels, site.grouping, top * fraction).snap(x).reshape(grouped.shape) - grouped
        ).square_()
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
