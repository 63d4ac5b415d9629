"""GPTQ. Frantar, Ashkboos, Hoefler & Alistarh 2022, arXiv 2210.17323: round a layer's columns in turn, let those still open make up for each error.

A layer's output error is tr (Ŵ − W) H (Ŵ − W)ᵀ with H = E[x xᵀ] of its inputs, damped: H + damping · mean(diag H) · I.
With the columns F rounded, the best values of the open ones R have a closed form (optimal brain quantization),

    W_R − (Ŵ_F − W_F) H_FR H_RR⁻¹

and the factor H⁻¹ = UᵀU (U upper triangular) has every one of these solutions in its rows, so that column j costs

    Ŵ_j = the nearest level to W_j,   e = (W_j − Ŵ_j) / U_jj,   W_k ← W_k − e U_jk  for k > j

and the error of the layer is the sum of all e². With H diagonal nothing is left to make up and GPTQ is rounding to nearest.

The scales are fixed before, from the weights as trained, block scales too (the paper finds a block's when its first column is reached): every
scale rule and order of columns then means what it means elsewhere. A value that compensation drives outside the grid is clipped, and what
that loses is made up like any error. An input that is always 0 has its weights rounded to nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from qbench.api import (
    Batch,
    Granularity,
    Grid,
    InputRange,
    Method,
    QuantConv2d,
    Quantizer,
    QuantLayer,
    ScaledQuantizer,
    ScaleRule,
    Site,
    affine_grid,
    widen,
)
from qbench.training.calibration import settle
from qbench.training.run import Run

CHANNEL = Granularity.named("channel")


@dataclass
class GPTQ(Method):
    """Columns of the full-precision network rounded in turn, each error made up for by the columns after it."""

    name = "gptq"
    title = "GPTQ"
    paper = "arXiv 2210.17323"
    after = "fp"
    knobs = ("scale", "damping")
    bundles = False  # the layers are rounded one after the other

    scale: ScaleRule = "absmax"
    grid: Literal["symmetric", "affine", "midrise"] = "symmetric"
    damping: float = 0.01
    """Added to the diagonal of H, as a share of its mean."""
    act_order: bool = False
    """Columns in the order of falling diag H, the ones that matter most first."""
    sequential: bool = True
    """Measure a layer's inputs with the layers before it rounded already, a pass over the batches for each layer; otherwise one pass for all."""
    batches: int = 8
    """Batches of training data that inputs are measured on, where the task does not know E[x xᵀ]."""
    block: int = 128
    """Columns after which an update reaches the rest: speed only."""

    def check(self) -> str | None:
        if self.grid == "affine" and self.scale != "absmax":
            return f"the affine grid spans the range of its group, so the scale rule {self.scale} does not apply"
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
        return InputRange(site) if site.role == "activation" else Compensated(site, self)

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)
        data = run.probe_batches(self.batches)
        layers = [layer for bundle in run.bundles for layer in bundle.layers]
        known = (
            {} if self.sequential else dict(zip(layers, moments(run, layers, data), strict=True))
        )
        for bundle in run.bundles:
            (layer,) = bundle.layers
            (moment,) = [known[layer]] if known else moments(run, [layer], data)
            assert isinstance(bundle.quantizer, Compensated)
            bundle.quantizer.fix(layer, moment)
        run.calibrate(batches)


class Compensated(ScaledQuantizer):
    """A grid that stays as it was when the weight was rounded onto it; the weight then lies on its levels, so that what it snaps to is itself."""

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
    def fix(self, layer: QuantLayer, moment: Tensor) -> None:
        """Round the layer's weight for inputs of this second moment."""
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


def moments(run: Run, layers: list[QuantLayer], batches: list[Batch]) -> list[Tensor]:
    """E[x xᵀ] of each layer's inputs, exact where the task knows it; up to a factor, on which nothing depends, where it is measured."""
    found = [run.problem.input_moment(layer) for layer in layers]
    missing = {
        layer: nothing(layer.matrix()) for layer, m in zip(layers, found, strict=True) if m is None
    }

    def look(layer: QuantLayer, arguments: tuple[Tensor]) -> None:
        x = widen(samples(layer, arguments[0]))
        missing[layer] += x.mT @ x

    hooks = [layer.register_forward_pre_hook(look) for layer in missing]
    with run.latent():
        for batch in batches if missing else []:
            run.model(batch.inputs)
    for hook in hooks:
        hook.remove()
    return [missing[layer] if m is None else m for layer, m in zip(layers, found, strict=True)]


def nothing(matrix: Tensor) -> Tensor:
    return matrix.new_zeros(
        *matrix.shape[:-2], matrix.shape[-1], matrix.shape[-1], dtype=torch.float64
    )


def samples(layer: QuantLayer, x: Tensor) -> Tensor:
    """A layer's input as (…, samples, columns), what its matrix multiplies; the samples of a convolution are its patches."""
    lead = layer.matrix().dim() - 2
    if not isinstance(layer, QuantConv2d):
        return x.flatten(lead, -2)
    patches = F.unfold(
        x.flatten(0, lead), layer.weight.shape[-2:], padding=layer.padding, stride=layer.stride
    ).mT.contiguous()
    return patches.view(*x.shape[:lead], -1, patches.shape[-1])


@torch.no_grad()
def compensate(
    w: Tensor, moment: Tensor, grid: Grid, damping: float, act_order: bool = False, block: int = 128
) -> Tensor:
    """The levels of `grid` that GPTQ gives a weight (…, rows, columns) for inputs of second moment (…, columns, columns)."""
    diagonal = moment.diagonal(dim1=-2, dim2=-1)
    if torch.equal(
        moment, torch.diag_embed(diagonal)
    ):  # nothing to make up, and the largest beds are diagonal
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
    """The recursion of the docstring. `grid` holds a scale an element; a block's errors reach the columns behind it in one product."""
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
    """The upper triangular U with UᵀU = (H + damping · mean(diag H) · I)⁻¹, H in units of that mean; the identity for H = 0."""
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    damped = torch.where(mean > 0, moment / mean + damping * eye, eye)
    # The lower factor of the matrix with its axes reversed is, reversed back, an upper R with R Rᵀ = H, and U = R⁻¹.
    upper = torch.linalg.cholesky(damped.flip(-2, -1)).flip(-2, -1)
    u: Tensor = torch.linalg.solve_triangular(upper, eye.expand_as(upper), upper=True)
    return u
