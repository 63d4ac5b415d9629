"""Scale rules: how the scale of a group is computed from its elements.

The rule often matters more than the method. So it is a dimension of a board of its own: every
method that does not prescribe a scale has a field `scale`, with one of these rules:

    absmax    the largest element lies on the last level
    mse       the fraction of the absmax scale, out of a hundred, with the least squared error
    hessian   the same, with the error of each element weighted by the diagonal of the Hessian
    learned   one parameter for each group, which begins at the `mse` scale and is trained by its
              own gradient, as in LSQ (arXiv 1902.08153); for trained methods only

A group whose elements are all zero has the scale 1. A search costs a hundred roundings, so training
does not search in every step but only when ranges are calibrated. In between, the scale stays the
same fraction of the current absmax scale.
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
"""How many scales a search tries: 1/100, 2/100 … of the absmax scale."""
MIN_SCALE = 1e-12
"""A learned scale is not allowed to fall below this."""


def absmax_scale(x: Tensor, site: Site, levels: Levels) -> Tensor:
    """Return the scale of each group that puts its largest magnitude on the largest level.

    For formats of two levels it is the scale at which these are ±mean|x|.
    """
    grouped = site.grouping.group(widen(x))
    if levels.is_binary:
        # The levels are ±½, so the scale is twice the value.
        size = 2 * grouped.abs().mean(-1, keepdim=True)
    else:
        size = grouped.abs().amax(-1, keepdim=True) / levels.high
    # A group of zeros would have the scale 0, and its coordinates would be 0/0.
    return torch.where(size > 0, size, 1.0)


def searched_scale(x: Tensor, site: Site, levels: Levels, weight: Tensor | None = None) -> Tensor:
    """Return the scale of each group with the least squared rounding error.

    `weight` weights the error of each element and has the shape of `x`.
    """
    return absmax_scale(x, site, levels) * best_fraction(x, site, levels, weight)


@torch.no_grad()
def best_fraction(x: Tensor, site: Site, levels: Levels, weight: Tensor | None = None) -> Tensor:
    """Return the fraction of the absmax scale with the least squared rounding error, per group."""
    top = absmax_scale(x, site, levels)
    grouped = site.grouping.group(widen(x))
    importance = None if weight is None else site.grouping.group(widen(weight))
    best, least = torch.ones_like(top), torch.full_like(top, torch.inf)
    # From large to small, with a strict comparison: of equal errors the larger scale wins.
    for step in range(FRACTIONS, 0, -1):
        fraction = step / FRACTIONS
        squared = (
            Grid(levels, site.grouping, top * fraction).snap(x).reshape(grouped.shape) - grouped
        ).square_()
        error = (squared if importance is None else squared * importance).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, fraction, best), torch.where(better, error, least)
    return best


def affine_grid(x: Tensor, site: Site, levels: Levels | None = None) -> Grid:
    """Return the grid whose codes 0 … 2^bits − 1 span the range of each group, ends included."""
    levels = levels or site.number_format.levels("affine")
    grouped = site.grouping.group(widen(x))
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scale = (high - low) / levels.high
    return Grid(levels, site.grouping, torch.where(scale > 0, scale, 1.0), low)
