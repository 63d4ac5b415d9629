"""LOTION: smoothing the loss of a quantized network by the noise of randomised rounding. arXiv 2510.08757.

    RR(w)       the level hi above w with probability (w − lo)/(hi − lo), else the level lo below: E[RR(w)] = w
    σ²          its variance (w − lo)(hi − w); s²Δ(1 − Δ) on a uniform grid
    smoothed    E[L(RR(w))], which is L(w) + ½ Σ h_ii σ_i² on a quadratic
    trained     L(w) + R(w),  R = λ · ½ Σ g_ii σ_i²,  g the diagonal of the Gauss–Newton matrix, held fixed

The forward pass sees w itself: nothing is rounded in training, there is no straight-through gradient. What R adds is

    ∂R/∂w_i at fixed s = ½ λ g_i (lo_i + hi_i − 2w_i),    ∂R/∂s = ½ λ Σ g_i (lo_i (w_i − hi_i) + hi_i (w_i − lo_i))/s

and the second reaches the largest element of a group, which has no noise of its own. Adding noise that is detached from w,
or rounding at random with an identity backward (the method `rr`), loses both.

g is an empirical Fisher: a running mean of the squared task gradient. A gradient that is the mean over N labels has
E[g²] ≈ G/N near a minimum, hence λ = lam · N; with the exact diagonal λ = lam. The paper's own calibration could not be had: reconstructed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from qbench.api import (
    Batch,
    Bundle,
    InputRange,
    Method,
    Preset,
    Quantizer,
    QuantLayer,
    ScaledQuantizer,
    ScaleRule,
    Site,
    UsageError,
    absmax_scale,
    beside,
    widen,
)
from qbench.training.calibration import settle, settle_now_and_then
from qbench.training.run import Run

FLOAT_NOISE = 67.1
"""In units of the last place, 8e-6 in float32: a weight as close to a level as this, relative to the larger of s and |w|, lies on it.
Otherwise rounding errors would push weights off the grid with full force."""


@dataclass
class LOTION(Method):
    """Train in full precision, on the loss plus the curvature-weighted variance of randomised rounding."""

    name = "lotion"
    title = "LOTION"
    paper = "arXiv 2510.08757"
    knobs = ("lam",)
    varies = ("lam", "format")
    compiled_alike = True

    presets = {
        "language": Preset(
            "arXiv 2510.08757, language models; the recipe is that of the laboratory's public configuration",
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
    """A running mean of its own, the optimizer's second moment (clipped gradients, R's included), or the task's exact Hessian diagonal."""
    decay: float = 0.999
    """Of the own running mean, per step."""
    scale: ScaleRule = "absmax"
    scale_gradient: bool = True
    """Differentiate σ² through the scale as well: the definition, read literally."""

    def __post_init__(self) -> None:
        self.average: dict[str, Tensor] = {}
        self.penalty = torch.zeros(())
        self.bias = torch.ones(())
        """What a running mean that began at zero comes to, of what it will."""

    def check(self) -> str | None:
        if self.lam < 0:
            return f"lam must not be negative, not {self.lam}"
        if not 0 <= self.decay < 1:
            return f"decay must be in [0, 1), not {self.decay}"
        return None

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputRange(site) if site.role == "activation" else LOTIONWeight(site, self)

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        if self.fisher == "exact" and any(
            run.problem.hessian_diagonal(layer) is None for b in run.bundles for layer in b.layers
        ):
            raise UsageError(
                "lotion: fisher = exact needs a task that knows its Hessian; use own or optimizer here"
            )
        self.bias = torch.ones((), device=run.clock.device)
        settle(run, batches)

    def before_step(self, run: Run, batch: Batch) -> None:
        settle_now_and_then(run)
        if self.lam == 0:
            return
        if self.fisher == "own":
            self.bias.fill_(1 - self.decay ** (run.step + 1))
        elif self.fisher == "optimizer":
            self.bias.fill_(1 - second_decay(run) ** max(run.step, 1))

    def after_backward(self, run: Run) -> None:
        """Add R's gradient to the task's, before clipping. At lam = 0 nothing is touched: the training of full precision, bit for bit."""
        if self.lam == 0:
            return
        self.penalty = torch.zeros((), device=run.clock.device)
        for bundle in run.bundles:
            assert isinstance(bundle.quantizer, LOTIONWeight)
            weights = widen(bundle.stack().detach()).requires_grad_()
            strength = run.number(self.strengths(run), weights)
            penalty = 0.5 * run.total(
                strength * self.curvature(run, bundle) * bundle.quantizer.variance(weights)
            )
            (force,) = torch.autograd.grad(penalty.sum(), weights)
            for layer, part in zip(bundle.layers, force.unbind(-3), strict=True):
                layer.weight.grad = layer.as_weight(gradient(layer) + part.to(layer.weight.dtype))
            self.penalty = self.penalty + penalty.detach()

    def strengths(self, run: Run) -> list[float]:
        """λ of each run."""
        return [
            lam if self.fisher == "exact" else lam * run.labels_per_step for lam in run.own("lam")
        ]

    def curvature(self, run: Run, bundle: Bundle) -> Tensor:
        """g of the weights side by side."""
        if self.fisher == "exact":
            return run.curvature(bundle, [])
        return (
            self.moment(run, bundle)
            if self.fisher == "optimizer"
            else self.updated_average(run, bundle)
        )

    def updated_average(self, run: Run, bundle: Bundle) -> Tensor:
        """The own running mean with this step's gradient in it, its bias corrected."""
        squares = beside([widen(gradient(layer)) for layer in bundle.layers]).square_()
        name = bundle.quantizer.site.name
        if name not in self.average:
            self.average[name] = torch.zeros_like(squares)
        return self.average[name].lerp_(squares, 1 - self.decay) / self.bias

    def moment(self, run: Run, bundle: Bundle) -> Tensor:
        """The optimizer's second moment, its bias corrected; at the first step there is none, and R is 0."""
        found = [(run.second_moment(layer.weight), layer.matrix()) for layer in bundle.layers]
        moments = [
            torch.zeros_like(matrix) if m is None else m.view(matrix.shape) for m, matrix in found
        ]
        return beside(moments).detach() / self.bias

    def metrics(self, run: Run) -> dict[str, float | Tensor]:
        return {
            "lambda": torch.tensor(self.strengths(run), dtype=torch.float64),
            "penalty": self.penalty,
        }

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average, "penalty": self.penalty}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average, self.penalty = dict(state["average"]), state["penalty"]


class LOTIONWeight(ScaledQuantizer):
    def __init__(self, site: Site, method: LOTION) -> None:
        super().__init__(site, method.scale)
        self.scale_gradient = method.scale_gradient

    def relax(self, x: Tensor) -> Tensor:
        return x

    def variance(self, x: Tensor) -> Tensor:
        """σ² of each element, differentiable in `x`; 0 on the grid, and outside it (a searched scale clips), where rounding is certain."""
        grid, group = self.grid(x), self.site.grouping.group
        low, high = (group(level) for level in grid.neighbours(x.detach()))
        w = group(x)
        with torch.no_grad():
            noise = FLOAT_NOISE * torch.finfo(w.dtype).eps * torch.maximum(w.abs(), grid.scale)
            certain = torch.minimum(w - low, high - w) < noise
        if (
            self.scale_gradient
        ):  # levels move with the scale; a searched one is, locally, a fixed fraction of absmax
            scale = absmax_scale(x, self.site, self.levels)
            low, high = low * (scale / scale.detach()), high * (scale / scale.detach())
        return torch.where(certain, 0.0, (w - low) * (high - w)).reshape(x.shape)


def second_decay(run: Run) -> float:
    """By which the optimizer forgets squared gradients."""
    assert run.optimizer is not None
    betas = run.optimizer.param_groups[0].get("betas")
    if betas is None:
        raise UsageError(
            "lotion: fisher = optimizer needs one that keeps a second moment (adamw, radam); use own here"
        )
    return float(betas[1])


def gradient(layer: QuantLayer) -> Tensor:
    """The task's gradient in a layer's weight, (rows, columns); 0 for a layer that the loss did not reach."""
    grad, matrix = layer.weight.grad, layer.matrix().detach()
    return torch.zeros_like(matrix) if grad is None else grad.view(matrix.shape)
