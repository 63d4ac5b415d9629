"""LOTION: smoothing the loss of a quantized network by the noise of randomised rounding.
arXiv 2510.08757.

    RR(w)       the level hi above w with probability (w − lo)/(hi − lo), else the level lo below:
                E[RR(w)] = w
    σ²          its variance (w − lo)(hi − w); s²Δ(1 − Δ) on a uniform grid
    smoothed    E[L(RR(w))], which is L(w) + ½ Σ h_ii σ_i² on a quadratic
    trained     L(w) + R(w),  R = λ · ½ Σ g_ii σ_i²,  g the diagonal of the Gauss–Newton matrix,
                held fixed

The forward pass sees w itself: nothing is rounded in training, and there is no straight-through
gradient. What R adds is

    ∂R/∂w_i at fixed s = ½ λ g_i (lo_i + hi_i − 2w_i)
    ∂R/∂s              = ½ λ Σ g_i (lo_i (w_i − hi_i) + hi_i (w_i − lo_i))/s

and the second reaches the largest element of a group, which has no noise of its own. Adding noise
that is detached from w, or rounding at random with an identity backward (the method `rr`), loses
both.

g is an empirical Fisher: a running mean of the squared task gradient. A gradient that is the mean
over N labels has E[g²] ≈ G/N near a minimum, hence λ = lam · N; with the exact diagonal λ = lam.
The paper's own calibration could not be had: that part is reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qbench.api import (
    InputQuantizer,
    Method,
    Preset,
    Quantizer,
    QuantLayer,
    Run,
    ScaledQuantizer,
    ScaleRule,
    Site,
    UsageError,
    WeightStack,
    absmax_scale,
    is_tenth,
    stack_sites,
    widen,
)

FLOAT_NOISE = 67.1
"""In units of the last place, 8e-6 in float32: a weight as close to a level as this, relative to
the larger of s and |w|, lies on it. Otherwise rounding errors would push weights off the grid with
full force."""


@dataclass
class LOTION(Method):
    """Train in full precision, on the loss plus the curvature-weighted variance of rounding."""

    name = "lotion"
    title = "LOTION"
    paper = "arXiv 2510.08757"
    presets = {
        "language": Preset(
            "arXiv 2510.08757, language models; the recipe is that of the laboratory's public "
            "configuration",
            {},
            {
                "optimizer": "adamw",
                "beta1": 0.9,
                "beta2": 0.95,
                "weight_decay": 0.0,
                "clip": 1.0,
                "schedule": "cosine",
                "warmup": 0.1,
                "floor": 0.1,
            },
        ),
    }

    lam: float = 1.0
    """λ over the labels in a step (over 1 with fisher = exact)."""
    fisher: Literal["own", "optimizer", "exact"] = "own"
    """A running mean of its own, the optimizer's second moment (of clipped gradients, with R's
    included), or the task's exact Hessian diagonal."""
    decay: float = 0.999
    """Of the own running mean, per step."""
    scale: ScaleRule = "absmax"
    scale_gradient: bool = True
    """Differentiate σ² through the scale as well: the definition, read literally."""

    def check(self) -> str | None:
        if self.lam < 0:
            return f"lam must not be negative, not {self.lam}"
        if not 0 <= self.decay < 1:
            return f"decay must be in [0, 1), not {self.decay}"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputQuantizer(site) if site.role == "activation" else LOTIONWeight(site, self)

    def recalibrates(self, run: Run) -> bool:
        return is_tenth(run)

    def schedules(self, run: Run) -> dict[str, float]:
        labels = 1 if self.fisher == "exact" else run.labels_per_step
        numbers = {"lambda": self.lam * labels}
        if self.lam and self.fisher == "own":
            numbers["forget"] = 1 - self.decay
            numbers["bias"] = 1 - self.decay ** (run.step + 1)
        elif self.lam and self.fisher == "optimizer":
            numbers["bias"] = 1 - second_decay(run) ** max(run.step, 1)
        return numbers

    def after_backward(self, run: Run) -> None:
        """Add R's gradient to the task's, before clipping.

        At lam = 0 nothing is touched: the training is that of full precision, bit for bit.
        """
        if self.lam == 0:
            return
        total: Tensor | None = None
        for stack in run.weights:
            assert isinstance(stack.quantizer, LOTIONWeight)
            weights = widen(stack.stack().detach()).requires_grad_()
            variance = stack.quantizer.variance(weights)
            strength = run.scalar("lambda", like=weights) * self.curvature(run, stack)
            penalty = 0.5 * run.total(strength * variance)
            (force,) = torch.autograd.grad(penalty.sum(), weights)
            for layer, part in zip(stack.layers, force.unbind(-3), strict=True):
                layer.weight.grad = layer.as_weight(gradient(layer) + part.to(layer.weight.dtype))
            total = penalty.detach() if total is None else total + penalty.detach()
        if total is None:
            return
        if "penalty" not in run.state:
            run.state["penalty"] = torch.zeros_like(total)
        run.state["penalty"].copy_(total)

    def curvature(self, run: Run, stack: WeightStack) -> Tensor:
        """Return g of the weights of a stack."""
        if self.fisher == "exact":
            try:
                return run.curvature(stack, [])
            except UsageError as error:
                raise UsageError(
                    "lotion: fisher = exact needs a task that knows its Hessian; "
                    "use own or optimizer here"
                ) from error
        if self.fisher == "optimizer":
            return self.optimizer_moment(run, stack)
        return self.updated_average(run, stack)

    def updated_average(self, run: Run, stack: WeightStack) -> Tensor:
        """Return the own running mean with this step's gradient in it, its bias corrected."""
        squares = stack_sites([widen(gradient(layer)) for layer in stack.layers]).square_()
        name = f"average {stack.quantizer.site.name}"
        if name not in run.state:
            run.state[name] = torch.zeros_like(squares)
        average = run.state[name].lerp_(squares, run.scalar("forget", like=squares))
        return average / run.scalar("bias", like=squares)

    def optimizer_moment(self, run: Run, stack: WeightStack) -> Tensor:
        """Return the optimizer's second moment, its bias corrected.

        At the first step there is none, and R is 0.
        """
        moments = []
        for layer in stack.layers:
            moment, matrix = run.second_moment(layer.weight), layer.matrix()
            moments.append(
                torch.zeros_like(matrix) if moment is None else moment.view(matrix.shape)
            )
        moment = stack_sites(moments).detach()
        return moment / run.scalar("bias", like=moment)

    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        strengths = torch.tensor(run.numbers("lambda"), dtype=torch.float64)
        return {"lambda": strengths, "penalty": run.state.get("penalty", 0.0)}


class LOTIONWeight(ScaledQuantizer):
    def __init__(self, site: Site, method: LOTION) -> None:
        super().__init__(site, method.scale)
        self.scale_gradient = method.scale_gradient

    def relax(self, x: Tensor) -> Tensor:
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return σ² of each element, differentiable in `x`.

        It is 0 on the grid, and outside of it (a searched scale clips), where rounding is certain.
        """
        grid, group = self.grid(x), self.site.grouping.group
        low, high = (group(level) for level in grid.neighbours(x.detach()))
        w = group(x)
        with torch.no_grad():
            noise = FLOAT_NOISE * torch.finfo(w.dtype).eps * torch.maximum(w.abs(), grid.scale)
            certain = torch.minimum(w - low, high - w) < noise
        if self.scale_gradient:
            # Levels move with the scale. A searched one is, locally, a fixed fraction of absmax.
            scale = absmax_scale(x, self.site, self.levels)
            low, high = low * (scale / scale.detach()), high * (scale / scale.detach())
        return torch.where(certain, 0.0, (w - low) * (high - w)).reshape(x.shape)


def second_decay(run: Run) -> float:
    """Return by how much the optimizer keeps of its squared gradients in a step."""
    if run.recipe.optimizer not in ("adamw", "radam"):
        raise UsageError(
            "lotion: fisher = optimizer needs an optimizer that keeps a second moment "
            "(adamw, radam); use own here"
        )
    return run.recipe.beta2


def gradient(layer: QuantLayer) -> Tensor:
    """Return the task's gradient in a layer's weight as a matrix, 0 if the loss did not reach
    it.
    """
    grad, matrix = layer.weight.grad, layer.matrix().detach()
    return torch.zeros_like(matrix) if grad is None else grad.view(matrix.shape)
