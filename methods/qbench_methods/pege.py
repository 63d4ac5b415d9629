"""PEGE: progressive replacement with an error-driven gradient. arXiv 2509.00097, reconstructed from its abstract: no formula could be had.

With x in step units, x_n clipped, x_q rounded, M a mask, p the rate of replacement and u the weight of the error:

    forward     M ~ Bernoulli(p) per element, fresh each step;  x_m = M·x_q + (1 − M)·x_n;  the layer sees s·x_m
    backward    g_n = g_m + u·(x_n − x_m):  replaced elements are pulled to their level, the others get the exact gradient
    schedule    p(τ) = min(1, log_b(1 + (b − 1)·τ/τ_r)),  b = e, τ_r = ½
    shipping    M = 1

The same as a loss, s held fixed:  L(x_n + sg[x_m − x_n]) + (u/2)·Σ M·(x_n − sg[x_q])².
u is set from the first step's gradient, so that kappa = RMS(x_n − x_q)·u / RMS(g_m) at each site.

Clipping is done in the units of the tensor, since s·(w/s) is not w, and its gradient is masked by the rounded code, as in STE.
Ablations: kappa = 0 (replacement only), schedule = "full" (correction only), schedule = "linear", ramp = ¼, ½, ¾.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qbench.api import (
    Batch,
    Grid,
    InputRange,
    Method,
    Quantizer,
    ScaledQuantizer,
    Site,
    TrainedScaleRule,
    affine_grid,
    beside,
    straight_through,
    widen,
)
from qbench.training.calibration import settle, settle_now_and_then
from qbench.training.quantized_network import INPUT
from qbench.training.run import Run

Schedule = Literal["log", "linear", "full"]
MEASUREMENTS = 10


@dataclass
class PEGE(Method):
    """Replace ever more elements by their levels, and pull the replaced ones towards them."""

    name = "pege"
    version = 2
    title = "Progressive element-wise gradient estimation"
    paper = "arXiv 2509.00097"
    provenance = "reconstructed"
    knobs = ("kappa", "ramp")
    varies = ("kappa", "ramp", "format")
    compiled_alike = True

    base: Literal["absmax", "mse", "hessian", "learned", "affine"] = "absmax"
    """The grid: a scale rule of the symmetric one, or the affine one."""
    schedule: Schedule = "log"
    log_base: float = math.e
    ramp: float = 0.5
    """The fraction of the run at which everything is replaced."""
    kappa: float = 0.1
    """Size of the pull relative to the gradient."""
    decoupled: bool = False
    """Pull the weights after the optimizer's step, w ← w − lr·kappa·M·(w − ŵ), and the inputs not at all."""
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
            return "raw_unreplaced uses elements that no scale has touched, so base = learned has no gradient there: choose one"
        return None

    def alone(self) -> str | None:
        return (
            "pege with decoupled = true pulls by one learning rate, and runs side by side have their own"
            if self.decoupled
            else None
        )

    def unrecorded(self) -> str | None:
        return (
            "pege with decoupled = true pulls by a rate that changes from step to step"
            if self.decoupled
            else None
        )

    def unsupported(self, site: Site) -> str | None:
        if self.base == "affine" and site.number_format.codebook:
            return f"{site.format} is a codebook, which has no affine grid"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return PEGEInput(site, self) if site.role == "activation" else PEGEWeight(site, self)

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)

    def before_step(self, run: Run, batch: Batch) -> None:
        settle_now_and_then(run)
        if self.kappa and not self.decoupled and run.step % max(1, run.steps // MEASUREMENTS) == 0:
            for one, part in run.each(batch):
                self.measure(one, part)
        rates = self.rates(run)
        for quantizer in run.quantizers():
            run.write(rates, own(quantizer).rate)
            own(quantizer).complete = (
                min(rates) >= 1 and run.recorded is None
            )  # where it was recorded whether anything is drawn

    def rates(self, run: Run) -> list[float]:
        """p of each run."""
        return [
            replacement_rate(run.progress, self.schedule, self.log_base, ramp)
            for ramp in run.own("ramp")
        ]

    def measure(self, run: Run, batch: Batch) -> None:
        """Set u with nothing replaced: at the first step, but where a site has no rounding error yet (all-zero weights) at a later tenth."""
        quantizers, (kappa,) = [own(quantizer) for quantizer in run.quantizers()], run.own("kappa")
        if all(bool(quantizer.error_weight.all()) for quantizer in quantizers):
            return
        for quantizer in quantizers:
            quantizer.rate.zero_()
            quantizer.complete = False
        loss, made = run.probe_loss(batch)
        grads = dict(zip(made, torch.autograd.grad(loss, list(made.values())), strict=True))
        for bundle in run.bundles:
            weights = widen(
                bundle.stack().detach()
            )  # as they are, not as they were clipped: the grid follows from them
            g = beside(
                [
                    grads[name].view(layer.matrix().shape)
                    for name, layer in zip(bundle.names, bundle.layers, strict=True)
                ]
            )
            learn_error_weight(own(bundle.quantizer), weights, g, kappa)
        for name, seen in run.inputs.items():
            learn_error_weight(own(seen), made[name + INPUT], grads[name + INPUT], kappa)

    @torch.no_grad()
    def after_step(self, run: Run) -> None:
        if not self.decoupled:
            return
        assert run.optimizer is not None
        lr = run.optimizer.param_groups[0]["lr"]
        for bundle in run.bundles:
            w = bundle.stack()
            gap = torch.where(
                replaced(own(bundle.quantizer), w), w - bundle.quantizer.grid(w).snap(w), 0.0
            )
            for layer, part in zip(bundle.layers, gap.unbind(-3), strict=True):
                layer.weight.sub_(layer.as_weight(part), alpha=lr * self.kappa)

    def metrics(self, run: Run) -> dict[str, Tensor]:
        return {"replaced": torch.tensor(self.rates(run), dtype=torch.float64)}

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        self.prepare(run, batches)


def replacement_rate(progress: float, schedule: Schedule, base: float, ramp: float) -> float:
    """p(τ), the share of elements that are replaced."""
    reached = progress / ramp
    if schedule == "full" or reached >= 1:
        return 1.0
    return reached if schedule == "linear" else math.log1p((base - 1) * reached) / math.log(base)


class PEGEWeight(ScaledQuantizer):
    rate: Tensor
    error_weight: Tensor
    complete: bool

    def __init__(self, site: Site, method: PEGE) -> None:
        rule: TrainedScaleRule = "absmax" if method.base == "affine" else method.base
        super().__init__(site, rule, "affine" if method.base == "affine" else "symmetric")
        self.method = method
        add_numbers(self, site.shape[:-2])

    @torch.no_grad()
    def grid(self, x: Tensor) -> Grid:
        return (
            affine_grid(x, self.site, self.levels)
            if self.method.base == "affine"
            else super().grid(x)
        )

    def relax(self, x: Tensor) -> Tensor:
        return mixture(self, x)


class PEGEInput(InputRange):
    rate: Tensor
    error_weight: Tensor
    complete: bool

    def __init__(self, site: Site, method: PEGE) -> None:
        super().__init__(site)
        self.method = method
        add_numbers(self, ())

    def relax(self, x: Tensor) -> Tensor:
        return mixture(self, x)


# ---- what both share ----

Either = PEGEWeight | PEGEInput


def own(quantizer: Quantizer) -> Either:
    assert isinstance(quantizer, PEGEWeight | PEGEInput)
    return quantizer


def add_numbers(quantizer: Either, lead: tuple[int, ...]) -> None:
    """The rate p, and the weight u of the error, one a site."""
    quantizer.complete = False  # p is 1 in every run
    quantizer.register_buffer("rate", torch.zeros(*lead, 1, 1))
    quantizer.register_buffer("error_weight", torch.zeros(*lead, 1, 1))


def replaced(quantizer: Either, x: Tensor) -> Tensor:
    """The step's mask M: the same whenever it is asked for. Nothing needs to be drawn once all are replaced."""
    if quantizer.complete:
        return torch.ones_like(x, dtype=torch.bool)
    return quantizer.draw(x) < quantizer.rate


def mixture(quantizer: Either, x: Tensor) -> Tensor:
    """s·x_m, with its gradient."""
    method = quantizer.method
    with torch.no_grad():
        grid, mask = quantizer.grid(x), replaced(quantizer, x)
        inside, clipped, level = grid.inside(x), clip(grid, x), grid.snap(x)
        value = torch.where(mask, level, x if method.raw_unreplaced else clipped)
        if method.raw_unreplaced:
            inside = inside | ~mask
    if method.kappa and not method.decoupled:
        with torch.no_grad():
            pull = torch.where(
                mask, quantizer.error_weight * in_steps(grid, in_steps(grid, clipped - level)), 0.0
            )
        x = _Pulled.apply(x, pull)  # type: ignore[no-untyped-call]
    return (
        quantizer.straight(x, grid, value, inside)
        if isinstance(quantizer, PEGEWeight)
        else straight_through(x, value, inside)
    )


class _Pulled(torch.autograd.Function):
    """x, with the pull beside its gradient. The pull is no part of any loss, so no expression has this gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pull: Tensor) -> Tensor:
        ctx.save_for_backward(pull)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad + ctx.saved_tensors[0], None


def clip(grid: Grid, x: Tensor) -> Tensor:
    """s·x_n: each element within the outermost levels of its group."""
    offset = 0.0 if grid.offset is None else grid.offset
    low, high = grid.scale * grid.levels.low + offset, grid.scale * grid.levels.high + offset
    return torch.clamp(grid.grouping.group(x), low, high).reshape(x.shape)


def in_steps(grid: Grid, difference: Tensor) -> Tensor:
    return (grid.grouping.group(difference) / grid.scale).reshape(difference.shape)


@torch.no_grad()
def learn_error_weight(quantizer: Either, x: Tensor, grad: Tensor, kappa: float) -> None:
    """u = kappa·RMS(g_m)/RMS(x_n − x_q) at a site that has none yet; `grad` is the gradient at x, so that g_m = s·grad."""
    grid = quantizer.grid(x)
    error = in_steps(grid, clip(grid, x) - grid.snap(x))
    at_steps = (grid.grouping.group(grad) * grid.scale).reshape(grad.shape)
    size = error.square().mean((-2, -1), keepdim=True)
    found = (
        kappa
        * (
            at_steps.square().mean((-2, -1), keepdim=True) / torch.where(size > 0, size, torch.inf)
        ).sqrt()
    )
    quantizer.error_weight.copy_(
        torch.where(quantizer.error_weight > 0, quantizer.error_weight, found)
    )
