"""A placebo: STE whose gradient is stretched at random, by as much as a gradient estimator would and for no reason. A control for estimators.

    forward     as STE
    backward    g′ = k·m∘g,  m uniform in [1 − strength, 1 + strength] per element, fresh each step, k such that ‖g′‖ = ‖g‖ at each site

An estimator that cannot be told from this one has shown that gradients may be stretched, not that its own stretching helps. With
strength = 0 it is STE bit for bit, under another name: an entrant that no board may rank apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qbench.api import (
    Batch,
    InputRange,
    Method,
    Quantizer,
    ScaledQuantizer,
    ScaleRule,
    Site,
    beside,
    straight_through,
)
from qbench.training.calibration import settle, settle_now_and_then
from qbench.training.run import Run


@dataclass
class Placebo(Method):
    """STE with random positive slopes of matched gradient norm."""

    name = "placebo"
    title = "Placebo estimator"
    varies = ("strength", "format")
    compiled_alike = True

    scale: ScaleRule = "absmax"
    strength: float = 0.5

    def check(self) -> str | None:
        return (
            None
            if 0 <= self.strength < 1
            else f"strength must be in [0, 1), or a slope is not positive; not {self.strength}"
        )

    def alone(self) -> None:
        return None

    def unrecorded(self) -> None:
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return InputRange(site) if site.role == "activation" else PlainRounding(site, self.scale)

    def prepare(self, run: Run, batches: list[Batch]) -> None:
        settle(run, batches)

    def before_step(self, run: Run, batch: Batch) -> None:
        settle_now_and_then(run)

    @torch.no_grad()
    def after_backward(self, run: Run) -> None:
        for bundle in run.bundles:
            reached = [(layer, layer.weight.grad) for layer in bundle.layers]
            g = beside(
                [
                    layer.matrix().new_zeros(layer.matrix().shape)
                    if d is None
                    else d.view(layer.matrix().shape)
                    for layer, d in reached
                ]
            )
            found = stretched(g, bundle.quantizer.draw(g), run.number(run.own("strength"), g))
            for (layer, _), part in zip(reached, found.unbind(-3), strict=True):
                layer.weight.grad = layer.as_weight(part)

    def finalize(self, run: Run, batches: list[Batch]) -> None:
        self.prepare(run, batches)


def stretched(g: Tensor, chance: Tensor, strength: float | Tensor) -> Tensor:
    """Each element by a slope from its number in [0, 1), and the whole back to the norm that it had."""
    found = g * (1 + strength * (2 * chance - 1))
    before, after = (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) for x in (g, found))
    return found * torch.where(after > 0, before / after, 1.0)


class PlainRounding(ScaledQuantizer):
    def __init__(self, site: Site, rule: ScaleRule) -> None:
        super().__init__(site, rule)
        self.masks = rule != "absmax" or self.levels.two

    def relax(self, x: Tensor) -> Tensor:
        grid = self.grid(x)
        with torch.no_grad():
            value = grid.snap(x)
            mask = grid.inside(x) if self.masks else None
        return straight_through(x, value, mask)
