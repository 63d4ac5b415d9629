"""PEGE: progressive replacement with an error-driven gradient. arXiv 2509.00097, reconstructed from
its abstract: no formula could be had.

With x in step units, x_n clipped, x_q rounded, M a mask, p the rate of replacement and u the weight
of the error:

    forward     M ~ Bernoulli(p) per element, fresh each step;  x_m = M·x_q + (1 − M)·x_n;
                the layer sees s·x_m
    backward    g_n = g_m + u·(x_n − x_m):  replaced elements are pulled to their level, the others
                get the exact gradient
    schedule    p(τ) = min(1, log_b(1 + (b − 1)·τ/τ_r)),  b = e, τ_r = ½
    shipping    M = 1

The same as a loss, s held fixed:  L(x_n + sg[x_m − x_n]) + (u/2)·Σ M·(x_n − sg[x_q])².
u is set from the first step's gradient, so that kappa = RMS(x_n − x_q)·u / RMS(g_m) at each site.

Clipping is done in the units of the tensor, since s·(w/s) is not w, and its gradient is masked by
the rounded code, as in STE. Ablations: kappa = 0 (replacement only), schedule = "full" (correction
only), schedule = "linear", ramp = ¼, ½, ¾.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qbench.api import (
    INPUT,
    Batch,
    Grid,
    InputQuantizer,
    Method,
    Quantizer,
    Run,
    ScaledQuantizer,
    Site,
    TrainedScaleRule,
    affine_grid,
    is_tenth,
    stack_sites,
    straight_through,
    widen,
)

Schedule = Literal["log", "linear", "full"]


@dataclass
class PEGE(Method):
    """Replace ever more elements by their levels, and pull the replaced ones towards them."""

    name = "pege"
    version = 2
    title = "Progressive element-wise gradient estimation"
    paper = "arXiv 2509.00097"
    provenance = "reconstructed"

    base: Literal["absmax", "mse", "hessian", "learned", "affine"] = "absmax"
    """The grid: a scale rule of the symmetric one, or the affine one."""
    schedule: Schedule = "log"
    log_base: float = math.e
    ramp: float = 0.5
    """The fraction of the run at which everything is replaced."""
    kappa: float = 0.1
    """Size of the pull relative to the gradient."""
    decoupled: bool = False
    """Pull the weights after the optimizer's step, w ← w − lr·kappa·M·(w − ŵ), and the inputs not
    at all."""
    raw_unreplaced: bool = False
    """Elements that are not replaced are used as they are, without clipping."""

    def check(self) -> str | None:
        if not self.kappa >= 0:
            return f"kappa must not be negative, not {self.kappa}"
        if not 0 < self.ramp <= 1:
            return f"ramp must be in (0, 1], not {self.ramp}"
        if not 1 < self.log_base < math.inf:
            return f"log_base must be above 1, not {self.log_base}"
        if self.raw_unreplaced and self.base == "learned":
            return (
                "raw_unreplaced uses elements that no scale has touched, "
                "so base = learned has no gradient there: choose one"
            )
        return None

    def unsupported(self, site: Site) -> str | None:
        if self.base == "affine" and site.number_format.codebook:
            return f"{site.format} is a codebook, which has no affine grid"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return PEGEInput(site, self) if site.role == "activation" else PEGEWeight(site, self)

    def schedules(self, run: Run) -> dict[str, float]:
        rate = replacement_rate(run.progress, self.schedule, self.log_base, self.ramp)
        return {"replaced": rate}

    @property
    def batched(self) -> bool:
        """The decoupled pull multiplies by one run's learning rate."""
        return not self.decoupled

    def recalibrates(self, run: Run) -> bool:
        return is_tenth(run)

    def probes(self, run: Run) -> bool:
        return is_tenth(run)

    def probe(self, run: Run, batch: Batch) -> None:
        """Set u with nothing replaced, from the gradient and the rounding error of this step.

        It is set at the first step; where a site has no rounding error yet (all weights are zero),
        at a later tenth.
        """
        quantizers = [as_pege(quantizer) for quantizer in run.quantizers()]
        if not self.kappa or self.decoupled or all(bool(q.error_weight.all()) for q in quantizers):
            return
        for quantizer in quantizers:
            quantizer.mask_now = "none"
        loss, tensors = run.probe_loss(batch)
        gradients = torch.autograd.grad(loss, list(tensors.values()))
        grads = dict(zip(tensors, gradients, strict=True))
        for quantizer in quantizers:
            quantizer.mask_now = "drawn"
        for stack in run.weights:
            # The weights as they are, not as they were clipped: the grid follows from them.
            weights = widen(stack.stack().detach())
            matrices = [
                grads[name].view(layer.matrix().shape)
                for name, layer in zip(stack.names, stack.layers, strict=True)
            ]
            set_error_weight(as_pege(stack.quantizer), weights, stack_sites(matrices), self.kappa)
        for name, quantizer in run.inputs.items():
            x, grad = tensors[name + INPUT], grads[name + INPUT]
            set_error_weight(as_pege(quantizer), x, grad, self.kappa)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if min(run.numbers("replaced")) >= 1:
            # From now on every element is replaced in every run, so that nothing need be drawn.
            for quantizer in run.quantizers():
                as_pege(quantizer).mask_now = "all"
        if not self.decoupled:
            return
        for stack in run.weights:
            w = stack.stack()
            mask = replacement_mask(as_pege(stack.quantizer), w)
            gap = torch.where(mask, w - stack.quantizer.grid(w).snap(w), 0.0)
            for layer, part in zip(stack.layers, gap.unbind(-3), strict=True):
                layer.weight.sub_(layer.as_weight(part), alpha=run.learning_rate * self.kappa)

    def metrics(self, run: Run) -> dict[str, Tensor]:
        return {"replaced": torch.tensor(run.numbers("replaced"), dtype=torch.float64)}


def replacement_rate(progress: float, schedule: Schedule, base: float, ramp: float) -> float:
    """Return p(τ), the share of elements that are replaced."""
    reached = progress / ramp
    if schedule == "full" or reached >= 1:
        return 1.0
    return reached if schedule == "linear" else math.log1p((base - 1) * reached) / math.log(base)


# ---- the two quantizers ----


class PEGEWeight(ScaledQuantizer):
    error_weight: Tensor
    mask_now: Literal["drawn", "all", "none"]

    def __init__(self, site: Site, method: PEGE) -> None:
        rule: TrainedScaleRule = "absmax" if method.base == "affine" else method.base
        super().__init__(site, rule, "affine" if method.base == "affine" else "symmetric")
        self.method = method
        add_error_weight(self, site.shape[:-2])

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        if self.method.base == "affine":
            return affine_grid(x, self.site, self.levels)
        return super().grid(x)

    def relax(self, x: Tensor) -> Tensor:
        return mix(self, x)


class PEGEInput(InputQuantizer):
    error_weight: Tensor
    mask_now: Literal["drawn", "all", "none"]

    def __init__(self, site: Site, method: PEGE) -> None:
        super().__init__(site)
        self.method = method
        add_error_weight(self, ())

    def relax(self, x: Tensor) -> Tensor:
        return mix(self, x)


PEGEQuantizer = PEGEWeight | PEGEInput


def as_pege(quantizer: Quantizer) -> PEGEQuantizer:
    """Return a quantizer as what it is."""
    assert isinstance(quantizer, PEGEWeight | PEGEInput)
    return quantizer


def add_error_weight(quantizer: PEGEQuantizer, lead: tuple[int, ...]) -> None:
    """Add the weight u of the error, one a site, to a quantizer that is being made."""
    quantizer.mask_now = "drawn"
    quantizer.register_buffer("error_weight", torch.zeros(*lead, 1, 1))


def replacement_mask(quantizer: PEGEQuantizer, x: Tensor) -> Tensor:
    """Return the step's mask M: the same whenever it is asked for.

    Before the first step nothing is replaced.
    """
    if quantizer.mask_now == "drawn" and "replaced" in quantizer.scalars:
        return quantizer.random(x) < quantizer.scalar("replaced", like=x)
    return torch.full_like(x, quantizer.mask_now == "all", dtype=torch.bool)


def mix(quantizer: PEGEQuantizer, x: Tensor) -> Tensor:
    """Return s·x_m, with its gradient."""
    method = quantizer.method
    with torch.no_grad():
        grid, mask = quantizer.grid(x), replacement_mask(quantizer, x)
        inside, clipped, level = grid.needs_no_clipping(x), clip(grid, x), grid.snap(x)
        value = torch.where(mask, level, x if method.raw_unreplaced else clipped)
        if method.raw_unreplaced:
            inside = inside | ~mask
    if method.kappa and not method.decoupled:
        with torch.no_grad():
            error = in_steps(grid, in_steps(grid, clipped - level))
            pull = torch.where(mask, quantizer.error_weight * error, 0.0)
        x = _Pulled.apply(x, pull)  # type: ignore[no-untyped-call]
    if isinstance(quantizer, PEGEWeight):
        return quantizer.straight_through_scaled(x, grid, value, inside)
    return straight_through(x, value, inside)


class _Pulled(torch.autograd.Function):
    """The identity, with the pull added to its gradient.

    The pull is no part of any loss, so no differentiable expression has this gradient.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(pull)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad + ctx.saved_tensors[0], None


def clip(grid: Grid, x: Tensor) -> Tensor:
    """Return s·x_n: each element within the outermost levels of its group."""
    offset = 0.0 if grid.offset is None else grid.offset
    low, high = grid.scale * grid.levels.low + offset, grid.scale * grid.levels.high + offset
    return torch.clamp(grid.grouping.group(x), low, high).reshape(x.shape)


def in_steps(grid: Grid, difference: Tensor) -> Tensor:
    """Return a difference in units of each group's step."""
    return (grid.grouping.group(difference) / grid.scale).reshape(difference.shape)


@torch.no_grad()
def set_error_weight(quantizer: PEGEQuantizer, x: Tensor, grad: Tensor, kappa: float) -> None:
    """Set u = kappa·RMS(g_m)/RMS(x_n − x_q) at the sites that have none yet.

    `grad` is the gradient at x, so that g_m = s·grad.
    """
    grid = quantizer.grid(x)
    error = in_steps(grid, clip(grid, x) - grid.snap(x))
    at_steps = (grid.grouping.group(grad) * grid.scale).reshape(grad.shape)
    error_size = error.square().mean((-2, -1), keepdim=True)
    grad_size = at_steps.square().mean((-2, -1), keepdim=True)
    weight = kappa * (grad_size / torch.where(error_size > 0, error_size, torch.inf)).sqrt()
    quantizer.error_weight.copy_(
        torch.where(quantizer.error_weight > 0, quantizer.error_weight, weight)
    )
