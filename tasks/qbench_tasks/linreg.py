"""Linear regression with a power-law spectrum, for which loss, gradient and Hessian are known.

After arXiv 2510.08757:

    L(w) = ½ (w − w*)ᵀ H (w − w*),   H with eigenvalues i^−alpha,   w* ~ N(0, 1)

The weight is one row, so that `granularity = tensor` and `channel` both make one group of it. Its
only layer is what is quantized. The loss is exact unless mini-batches are asked for; the metric is
always the exact one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qbench.api import (
    Metric,
    QuantLayer,
    QuantLinear,
    Recipe,
    Task,
    UsageError,
    generator,
    single_row_linear,
)
from qbench_tasks.population import LARGEST_ROTATION, Population, PopulationProblem

STEPS = {"xs": 1000, "s": 2000, "m": 3000, "l": 3000}


@dataclass
class LinReg(Task):
    """Quantized linear regression."""

    name = "linreg"
    title = "Linear regression, power-law spectrum"
    metric = Metric("loss", better="lower", floor=0.0, digits=4, effect=0.001)
    sizes = {"xs": {"d": 256}, "s": {"d": 512}, "m": {"d": 2048}, "l": {"d": 12_000}}

    alpha: float = 1.1
    """The spectrum's exponent: eigenvalue i is i^−alpha."""
    rotated: bool = False
    """Turn the Hessian by a random rotation, instead of leaving it diagonal."""
    exact: bool = True
    """Train on the population loss; otherwise on mini-batches."""
    noise: float = 0.0
    """Deviation of the noise on a mini-batch's targets."""
    start: float = 0.0
    """Deviation of the starting weights; 0 starts all of them at zero."""

    def check(self) -> str | None:
        if self.noise < 0 or self.start < 0:
            return "noise and start must not be negative"
        if not 0 <= self.alpha <= 4:
            return f"alpha must be in [0, 4], not {self.alpha}"
        if self.noise and self.exact:
            return "noise is on the targets of mini-batches: it needs exact = false"
        return None

    def recipe(self, size: str) -> Recipe:
        return Recipe(
            steps=STEPS[size], batch=1 if self.exact else 64, optimizer="adamw", lr=0.1, clip=0.0
        )

    def fingerprint(self) -> str:
        return "none"

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> LinRegProblem:
        d = self.sizes[size]["d"]
        if self.rotated and d > LARGEST_ROTATION:
            raise UsageError(
                f"linreg: rotated needs d ≤ {LARGEST_ROTATION}, and size {size} has {d}"
            )
        population = Population(self.name, seed, d, self.alpha, self.rotated, self.noise, device)
        return LinRegProblem(
            population,
            LinearModel(d, self.start, generator(self.name, seed, "start")).to(device),
            batch,
            self.exact,
        )


class LinearModel(nn.Module):
    """One row of weights.

    Without inputs it returns the row itself, which is all that the exact loss needs.
    """

    def __init__(self, d: int, deviation: float, draws: torch.Generator) -> None:
        super().__init__()
        self.line = QuantLinear(d, 1, bias=False)
        with torch.no_grad():
            self.line.weight.copy_(deviation * torch.randn(1, d, generator=draws))

    def forward(self, x: Tensor | None) -> Tensor:
        return (
            self.line.quantized_weight
            if x is None
            else single_row_linear(x, self.line.quantized_weight)
        )


class LinRegProblem(PopulationProblem):
    """The regression on one seed's teacher."""

    model: LinearModel

    def layers(self) -> dict[str, QuantLayer]:
        return {"line": self.model.line}  # type: ignore[dict-item]

    def hessian_diagonal(self, layer: QuantLayer) -> Tensor:
        return self.population.diagonal().unsqueeze(-2)

    def input_moment(self, layer: QuantLayer) -> Tensor:
        return self.population.moment()
