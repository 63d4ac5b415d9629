"""A linear network of two layers, f(x) = v W x, on the spectrum of `linreg`.

The sizes differ in its hidden width. After arXiv 2510.08757:

    L(v, W) = ½ (u − w*)ᵀ H (u − w*),   u = Wᵀv

The loss is quadratic in each single weight, so the Hessian's diagonal is exact too, at the weights
as they are: v_j² h_i for W_ji and (W H Wᵀ)_jj for v_j. Both layers are quantized.
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
    generator,
    matmul_per_run,
)
from qbench_tasks.population import Population, PopulationProblem

INPUTS = 256


@dataclass
class TwoLayer(Task):
    """A quantized linear network."""

    name = "twolayer"
    title = "Two-layer linear network, width swept"
    metric = Metric("loss", better="lower", floor=0.0, digits=4, effect=0.001)
    sizes = {
        name: {"inputs": INPUTS, "hidden": hidden}
        for name, hidden in (("xs", 16), ("s", 64), ("m", 256), ("l", 1024))
    }

    alpha: float = 1.1
    """The spectrum's exponent: eigenvalue i is i^−alpha."""
    rotated: bool = False
    """Turn the inputs' covariance by a random rotation, instead of leaving it diagonal."""
    exact: bool = True
    """Train on the population loss; otherwise on mini-batches."""
    noise: float = 0.0
    """Deviation of the noise on a mini-batch's targets."""

    def check(self) -> str | None:
        if self.noise < 0:
            return f"noise must not be negative, not {self.noise}"
        if not 0 <= self.alpha <= 4:
            return f"alpha must be in [0, 4], not {self.alpha}"
        if self.noise and self.exact:
            return "noise is on the targets of mini-batches: it needs exact = false"
        return None

    def recipe(self, size: str) -> Recipe:
        return Recipe(
            steps=1000, batch=1 if self.exact else 64, optimizer="adamw", lr=0.01, clip=0.0
        )

    def fingerprint(self) -> str:
        return "none"

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> TwoLayerProblem:
        population = Population(
            self.name, seed, INPUTS, self.alpha, self.rotated, self.noise, device
        )
        model = TwoLayerModel(
            INPUTS, self.sizes[size]["hidden"], generator(self.name, seed, "start")
        ).to(device)
        return TwoLayerProblem(population, model, batch, self.exact)


class TwoLayerModel(nn.Module):
    """The network v W x.

    Without inputs it returns the predictor u = vW itself, which is all that the exact loss needs.
    """

    def __init__(self, inputs: int, hidden: int, draws: torch.Generator) -> None:
        super().__init__()
        self.first = QuantLinear(inputs, hidden, bias=False)
        self.second = QuantLinear(hidden, 1, bias=False)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.normal_(0.0, layer.weight.shape[-1] ** -0.5, generator=draws)

    def forward(self, x: Tensor | None) -> Tensor:
        if x is None:
            return matmul_per_run(self.second.quantized_weight, self.first.quantized_weight)
        return self.second(self.first(x))  # type: ignore[no-any-return]


class TwoLayerProblem(PopulationProblem):
    """The regression of a two-layer network on one seed's teacher."""

    model: TwoLayerModel

    def layers(self) -> dict[str, QuantLayer]:
        return {"first": self.model.first, "second": self.model.second}

    @torch.no_grad()
    def hessian_diagonal(self, layer: QuantLayer) -> Tensor:
        first, second = self.model.first.quantized_weight, self.model.second.quantized_weight
        if layer is self.model.first:
            return second.mT.square() * self.population.diagonal().unsqueeze(-2)
        return (matmul_per_run(first, self.population.moment()) * first).sum(-1).unsqueeze(-2)

    @torch.no_grad()
    def input_moment(self, layer: QuantLayer) -> Tensor:
        moment, first = self.population.moment(), self.model.first.quantized_weight
        return (
            moment
            if layer is self.model.first
            else matmul_per_run(matmul_per_run(first, moment), first.mT)
        )
