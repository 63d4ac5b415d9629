"""Learned step size quantization. Esser, McKinstry, Bablani, Appuswamy & Modha 2020, arXiv
1902.08153.

With v = x/s and codes from −Q_N to Q_P (−2^(b−1) … 2^(b−1) − 1, or 0 … 2^b − 1 where the input
cannot be negative):

    forward     x̂ = s · round(clip(v, −Q_N, Q_P)),  s one learned number a group
    backward    ∂x̂/∂x = 1 where −Q_N < v < Q_P, else 0
                ∂x̂/∂s = g · (round(v) − v there;  −Q_N below it;  Q_P above it),
                g = 1/√(N · Q_P)
    start       s = 2 · mean|x| / √Q_P, from the first weights or the first batch of inputs

The paper counts in N the elements that share a step: those of the group for weights, the features
of one sample for inputs. It has no floor under s, and an optimizer can carry s through zero: here
the step is |s|, and never quite 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qbench.api import Grid, Method, Preset, Quantizer, Run, Site, straight_through

Count = Literal["group", "tensor", "none"]
SMALLEST = 1e-12


@dataclass
class LSQ(Method):
    """The step is trained with the weights, by the rounding error that it makes."""

    name = "lsq"
    title = "Learned step size"
    paper = "arXiv 1902.08153"
    presets = {
        "imagenet": Preset(
            "arXiv 1902.08153, 4 bits",
            {},
            {
                "optimizer": "sgd",
                "momentum": 0.9,
                "lr": 0.01,
                "schedule": "cosine",
                "weight_decay": 1e-4,
            },
            "fp:0.5",
        ),
    }

    count: Count = "group"
    """What N counts: the elements that share a step; all elements of the tensor (of an input, those
    of the whole batch); or nothing, so that g = 1."""
    rate: float = 1.0
    """The learning rate of the steps as a multiple of the weights'."""

    def check(self) -> str | None:
        return None if self.rate >= 0 else f"rate must not be negative, not {self.rate}"

    def unsupported(self, site: Site) -> str | None:
        if site.number_format.codebook:
            return (
                "lsq learns the step between equal levels, "
                f"and those of {site.format} are not equally spaced"
            )
        if site.levels("full").high < 1:
            return (
                f"lsq starts at 2·mean|x|/√Q_P, and signed {site.format} has no positive code: "
                "Q_P = 0"
            )
        if site.role == "activation" and site.granularity != "tensor":
            return f"lsq learns one step for a layer's input, not one by {site.granularity}"
        return None

    def quantizer(self, site: Site) -> Quantizer:
        return LearnedStep(site, self.count)

    def schedules(self, run: Run) -> dict[str, float]:
        return {"quantizer": self.rate}


class LearnedStep(Quantizer):
    """Quantizes weights and inputs alike; only what N counts differs."""

    size: nn.Parameter

    def __init__(self, site: Site, count: Count) -> None:
        super().__init__(site)
        self.levels, self.count = site.levels("full"), count
        self.size = nn.Parameter(torch.ones(site.scale_shape))

    @torch.no_grad()
    def calibrate(self, x: Tensor, first: bool) -> None:
        """Start from the first tensor shown; a group whose elements are all zero starts at 1."""
        if not first:
            return
        mean = self.site.grouping.group(x.detach()).abs().mean(-1, keepdim=True)
        root = self.levels.per_run_number(lambda levels: levels.high**0.5)
        self.size.copy_(torch.where(mean > 0, 2 * mean / root, 1.0))

    def grid(self, x: Tensor) -> Grid:
        return Grid(self.levels, self.site.grouping, self.size.detach().abs().clamp(min=SMALLEST))

    def relax(self, x: Tensor) -> Tensor:
        grid, group = self.grid(x), self.site.grouping.group
        with torch.no_grad():
            value, v = grid.snap(x), grid.encode(x)
            inside = (v > self.levels.low) & (v < self.levels.high)
            slope = torch.where(inside, v.round() - v, v.clamp(self.levels.low, self.levels.high))
            # The step is |size|, so the slope in size has size's sign.
            slope = torch.where(self.size < 0, -slope, slope) * self.gradient_scale(x)
        smooth = torch.where(inside, group(x), 0.0) + slope * self.size
        return straight_through(smooth.reshape(x.shape), value)

    def gradient_scale(self, x: Tensor) -> float | Tensor:
        """Return g, which keeps a step's relative updates near its weights', whatever the bits."""
        if self.count == "none":
            return 1.0
        if self.site.granularity == "tensor" or self.count == "tensor":
            one_sample = self.site.role == "activation" and self.count == "group"
            sharing = x.shape[-1] if one_sample else x.shape[-2] * x.shape[-1]
        else:
            sharing = self.site.grouping.group(x).shape[-1]
        return self.levels.per_run_number(lambda levels: (sharing * levels.high) ** -0.5)
