"""The population behind `linreg` and `twolayer`: Gaussian inputs and a linear teacher w*.

The inputs are x ~ N(0, H) with H = Q diag(i^−alpha) Qᵀ, where Q is the identity or a random
rotation. A linear predictor u has the population loss ½ (u − w*)ᵀ H (u − w*); what a noisy target
adds to it is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from qbench.api import (
    Batch,
    Problem,
    Split,
    Work,
    generator,
    matmul_per_run,
    send,
    stack_keeping_strides,
)

LARGEST_ROTATION = 2048


class Population:
    """The distribution of inputs and targets of one seed."""

    def __init__(
        self,
        task: str,
        seed: int,
        d: int,
        alpha: float,
        rotated: bool,
        noise: float,
        device: torch.device,
    ) -> None:
        self.task, self.seed, self.noise, self.device = task, seed, noise, device
        eigenvalues = torch.arange(1, d + 1, dtype=torch.float64) ** -alpha
        self.eigenvalues = eigenvalues.float().to(device)
        self.teacher = torch.randn(1, d, generator=generator(task, seed, "teacher")).to(device)
        self.root: Tensor | None = None  # Q diag(λ)^½, so that H = root rootᵀ
        if rotated:
            rotation = draw_rotation(d, generator(task, seed, "rotation"))
            self.root = (rotation * eigenvalues.sqrt()).float().to(device)

    def stack(self, others: Sequence[Population]) -> Population:
        """Return the population of stacked runs, of which this one is the first.

        What depends on the seed gets an axis of runs in front.
        """
        stacked = copy.copy(self)
        stacked.teacher = torch.stack([other.teacher for other in others])
        if self.root is not None:
            # With other strides the matrix products could have other bits than in a single run.
            roots = [other.root for other in others if other.root is not None]
            stacked.root = stack_keeping_strides(roots)
        return stacked

    def excess_loss(self, predictor: Tensor) -> Tensor:
        """Return how much the loss of predictors (…, 1, d) exceeds the teacher's, as (…)."""
        error = predictor - self.teacher
        if self.root is None:
            half_square: Tensor = _HalfSquare.apply(error, self.eigenvalues)  # type: ignore[no-untyped-call]
            return half_square
        return 0.5 * matmul_per_run(error, self.root).square().sum((-2, -1))

    def diagonal(self) -> Tensor:
        """Return the diagonal of H."""
        return self.eigenvalues if self.root is None else self.root.square().sum(-1)

    def moment(self) -> Tensor:
        """Return H, the second moment of the inputs."""
        if self.root is None:
            return torch.diag(self.eigenvalues)
        return matmul_per_run(self.root, self.root.mT)

    def sample(self, index: int, count: int) -> Batch:
        """Return batch `index` of an endless stream."""
        draws = generator(self.task, self.seed, "data", index)
        z = send(torch.randn(count, len(self.eigenvalues), generator=draws), self.device)
        x = z * self.eigenvalues.sqrt() if self.root is None else z @ self.root.mT
        y = x @ self.teacher.mT
        if self.noise:
            y = y + self.noise * send(torch.randn(count, 1, generator=draws), self.device)
        return Batch(x, y, count)


class _HalfSquare(torch.autograd.Function):
    """½ Σ λ e² over the last two axes.

    Its gradient λ e is two passes over memory. Autograd's, which has the same bits, is four.
    """

    @staticmethod
    def forward(ctx: Any, error: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(error, weights)
        return 0.5 * error.square().mul_(weights).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        error, weights = ctx.saved_tensors
        return grad[..., None, None] * weights * error, None


def draw_rotation(d: int, draws: torch.Generator) -> Tensor:
    """Draw a rotation uniformly (Haar)."""
    # The signs of R's diagonal are taken out: with them the distribution would not be uniform.
    q, r = torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64))
    return q * r.diagonal().sign()


def squared_error(predictions: Tensor, batch: Batch) -> Tensor:
    """Return half the mean squared error of predictions (…, batch, 1), as (…)."""
    assert batch.targets is not None
    return 0.5 * (predictions - batch.targets).square().mean((-2, -1))


class PopulationProblem(Problem):
    """A regression on one seed's teacher.

    Its model without inputs returns the linear predictor, which is all that the exact loss needs.
    """

    def __init__(self, population: Population, model: nn.Module, batch: int, exact: bool) -> None:
        self.population, self.model, self.count, self.exact = population, model, batch, exact
        self.work = Work(labels=1 if exact else batch)

    def batch(self, index: int) -> Batch:
        return Batch(None, None) if self.exact else self.population.sample(index, self.count)

    def batches(self, split: Split) -> Iterable[Batch]:
        return [Batch(None, None)]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return (
            self.population.excess_loss(output)
            if batch.inputs is None
            else squared_error(output, batch)
        )

    def score_stacked(self, model: nn.Module, split: Split) -> Tensor:
        return self.population.excess_loss(model(None))

    def stack(self, problems: Sequence[Problem], model: nn.Module) -> Self:
        stacked = self.with_model(model)
        stacked.population = self.population.stack(
            [problem.population for problem in problems if isinstance(problem, PopulationProblem)]
        )
        return stacked
