"""A placebo: STE whose gradient is stretched at random, by as much as a gradient estimator would
and for no reason. It is a control for estimators.

    forward     as STE
    backward    g′ = k·m∘g,  m uniform in [1 − strength, 1 + strength] per element, fresh each step,
                k such that ‖g′‖ = ‖g‖ at each site

An estimator that cannot be told from this one has shown that gradients may be stretched, not that
its own stretching helps. With strength = 0 it is STE bit for bit, under another name: an entrant
that no board may rank apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.api import (
    InputQuantizer,
    Method,
    Quantizer,
    QuantLayer,
    Run,
    ScaledQuantizer,
    ScaleRule,
    Site,
    is_tenth,
    stack_sites,
    straight_through,
)


@dataclass
class Placebo(Method):
    """STE with random positive slopes of matched gradient norm."""

    name = "placebo"
    title = "Placebo estimator"
    provenance = "own"

    scale: ScaleRule = "absmax"
    strength: float = 0.5

    def check(self) -> str | None:
        if not 0 <= self.strength < 1:
            return f"strength must be in [0, 1), or a slope is not positive; not {self.strength}"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        if site.role == "activation":
            return InputQuantizer(site)
        return PlainRounding(site, self.scale)

    def recalibrates(self, run: Run) -> bool:
        return is_tenth(run)

    def schedules(self, run: Run) -> dict[str, float]:
        return {"strength": self.strength}

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for stack in run.weights:
            g = stack_sites([gradient(layer) for layer in stack.layers])
            g = stretch(g, stack.quantizer.random(g), run.scalar("strength", like=g))
            for layer, part in zip(stack.layers, g.unbind(-3), strict=True):
                layer.weight.grad = layer.as_weight(part)


class PlainRounding(ScaledQuantizer):
    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value = grid.snap(x)
            mask = grid.needs_no_clipping(x) if self.may_clip else None
        return straight_through(x, value, mask)


def gradient(layer: QuantLayer) -> Tensor:
    """Return the gradient in a layer's weight as a matrix, 0 where the loss did not reach it."""
    matrix, grad = layer.matrix(), layer.weight.grad
    return torch.zeros_like(matrix) if grad is None else grad.view(matrix.shape)


def stretch(g: Tensor, uniform: Tensor, strength: float | Tensor) -> Tensor:
    """Return `g` with each element stretched by a random slope, scaled back to its norm.

    Args:
        g: Gradients of sites, (…, rows, columns).
        uniform: Uniform numbers in [0, 1), one for each element.
        strength: Half the width of the range of slopes.
    """
    stretched = g * (1 + strength * (2 * uniform - 1))
    before, after = (
        torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (g, stretched)
    )
    return stretched * torch.where(after > 0, before / after, 1.0)
