"""GPTQ. Frantar, Ashkboos, Hoefler & Alistarh 2022, arXiv 2210.17323: round a layer's columns in
turn, and let those that are still open make up for each error.

A layer's output error is tr (Ŵ − W) H (Ŵ − W)ᵀ with H = E[x xᵀ] of its inputs, damped: H + damping
· mean(diag H) · I. With the columns F rounded, the best values of the open ones R have a closed
form (optimal brain quantization),

    W_R − (Ŵ_F − W_F) H_FR H_RR⁻¹

and the factor H⁻¹ = UᵀU (U upper triangular) has every one of these solutions in its rows, so that
column j costs

    Ŵ_j = the nearest level to W_j,   e = (W_j − Ŵ_j) / U_jj,   W_k ← W_k − e U_jk  for k > j

and the error of the layer is the sum of all e². With H diagonal nothing is left to make up, and
GPTQ is rounding to nearest.

The scales are fixed before, from the weights as trained, block scales too (the paper finds a
block's when its first column is reached): every scale rule and order of columns then means what it
means elsewhere. A value that compensation drives outside of the grid is clipped, and what that
loses is made up like any error. An input that is always 0 has its weights rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qbench.api import (
    Batch,
    Granularity,
    Grid,
    InputQuantizer,
    Method,
    Quantizer,
    QuantLayer,
    Run,
    ScaledQuantizer,
    ScaleRule,
    Site,
    affine_grid,
    widen,
)

CHANNEL = Granularity.named("channel")


@dataclass
class GPTQ(Method):
    """Round the columns of the full-precision network in turn; later columns make up for errors."""

    name = "gptq"
    title = "GPTQ"
    paper = "arXiv 2210.17323"
    post_training = "fp"

    scale: ScaleRule = "absmax"
    grid: Literal["symmetric", "affine", "midrise"] = "symmetric"
    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean."""
    act_order: bool = False
    """Round columns in the order of falling diag H, so that those that matter most come first."""
    sequential: bool = True
    """Measure a layer's inputs with the layers before it rounded already, by a pass over the
    batches for each layer; otherwise one pass serves all layers."""
    batches: int = 8
    """Batches of training data that inputs are measured on, if the task does not know E[x xᵀ]."""
    block: int = 128
    """Number of columns after which an update reaches the rest. It affects speed only."""

    def check(self) -> str | None:
        if self.grid == "affine" and self.scale != "absmax":
            return (
                "the affine grid spans the range of its group, "
                f"so the scale rule {self.scale} does not apply"
            )
        if not 1e-6 <= self.damping <= 1:
            return f"damping must lie between 1e-6 and 1, not {self.damping}"
        if self.batches < 1 or self.block < 1:
            return "batches and block must be at least 1"
        return None

    def unsupported(self, site: Site) -> str | None:
        if self.grid != "symmetric" and site.role == "weight" and site.number_format.codebook:
            return f"{site.format} is a codebook, which has no {self.grid} grid"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputQuantizer(site) if site.role == "activation" else Compensated(site, self)

    def finalize(self, run: Run, batches: Sequence[Batch]) -> None:
        data = run.probe_batches(self.batches)
        layers = [layer for stack in run.weights for layer in stack.layers]
        known = {}
        if not self.sequential:
            known = dict(zip(layers, run.input_moments(layers, data), strict=True))
        for stack in run.weights:
            (layer,) = stack.layers
            (moment,) = [known[layer]] if known else run.input_moments([layer], data)
            assert isinstance(stack.quantizer, Compensated)
            stack.quantizer.round_weight(layer, moment)


class Compensated(ScaledQuantizer):
    """A grid that stays as it was when the weight was rounded onto it.

    The weight then lies on its levels, so that it snaps to itself.
    """

    def __init__(self, site: Site, method: GPTQ) -> None:
        super().__init__(site, method.scale, method.grid)
        self.method = method
        self.fixed: Grid | None = None

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.fixed is not None:
            return self.fixed
        return affine_grid(x, self.site) if self.method.grid == "affine" else super().grid(x)

    def relax(self, x: Tensor) -> Tensor:
        return self.grid(x).snap(x)

    @torch.no_grad()
    def round_weight(self, layer: QuantLayer, moment: Tensor) -> None:
        """Round a layer's weight for inputs of this second moment, and fix the grid."""
        weight = widen(layer.matrix()).unsqueeze(0)
        self.fixed = self.grid(weight)
        rounded = compensate(
            weight,
            moment,
            self.fixed,
            self.method.damping,
            self.method.act_order,
            self.method.block,
        )
        layer.weight.copy_(layer.as_weight(rounded[0]))


@torch.no_grad()
def compensate(
    w: Tensor, moment: Tensor, grid: Grid, damping: float, act_order: bool = False, block: int = 128
) -> Tensor:
    """Return a weight on the levels of `grid` as GPTQ rounds it.

    Args:
        w: The weight, (…, rows, columns).
        moment: The second moment of the layer's inputs, (…, columns, columns).
        grid: The levels, with a scale for each group.
        damping: Is added to the diagonal of the moment, as a share of its mean.
        act_order: Whether columns are rounded in the order of the falling diagonal.
        block: Number of columns after which an update reaches the rest.
    """
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    if torch.equal(moment, torch.diag_embed(diagonal)):
        # There is nothing to make up, and the largest tasks are diagonal.
        return grid.snap(w)
    order = (
        diagonal.argsort(dim=-1, descending=True, stable=True)
        if act_order
        else torch.arange(w.shape[-1], device=w.device)
    )
    pick = order.unsqueeze(-2).expand(w.shape)
    scale, offset = (
        None
        if t is None
        else t.expand(grid.grouping.group(w).shape).reshape(w.shape).gather(-1, pick)
        for t in grid.decoding()
    )
    assert scale is not None
    moment = torch.take_along_dim(
        torch.take_along_dim(moment.double(), order.unsqueeze(-1), -2), order.unsqueeze(-2), -1
    )
    rounded = round_columns(
        w.gather(-1, pick),
        inverse_factor(moment, damping),
        Grid(grid.levels, CHANNEL, scale, offset),
        block,
    )
    return rounded.gather(-1, pick.argsort(dim=-1))


def round_columns(w: Tensor, u: Tensor, grid: Grid, block: int) -> Tensor:
    """Round columns in turn, by the recursion at the top of this file.

    `grid` has a scale for each element. A block's errors reach the columns behind it in one
    product.
    """
    free, rounded = w.to(torch.float64, copy=True), torch.empty_like(w)
    for start in range(0, w.shape[-1], block):
        stop = min(start + block, w.shape[-1])
        errors = torch.zeros_like(free[..., start:stop])
        for j in range(start, stop):
            at = (..., slice(j, j + 1))
            offset = None if grid.offset is None else grid.offset[at]
            rounded[at] = Grid(grid.levels, CHANNEL, grid.scale[at], offset).snap(
                free[at].to(w.dtype)
            )
            errors[..., j - start] = (free[..., j] - rounded[..., j]) / u[..., j, None, j]
            free[..., j:stop] -= errors[..., j - start, None] * u[..., j, None, j:stop]
        free[..., stop:] -= errors @ u[..., start:stop, stop:]
    return rounded


def inverse_factor(moment: Tensor, damping: float) -> Tensor:
    """Return the upper triangular U with UᵀU = (H + damping · mean(diag H) · I)⁻¹.

    H is taken in units of that mean; the result is the identity for H = 0.
    """
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    damped = torch.where(mean > 0, moment / mean + damping * eye, eye)
    # The lower factor of the matrix with its axes reversed is, reversed back, an upper R with
    # R Rᵀ = H, and U = R⁻¹.
    upper = torch.linalg.cholesky(damped.flip(-2, -1)).flip(-2, -1)
    u: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    return u
