"""Inputs x ~ N(0, H) with a power-law spectrum and a linear teacher: the population behind `linreg` and `twolayer`.

H = Q diag(i^−alpha) Qᵀ, with Q the identity or a random rotation. A linear predictor u has the population loss
½ (u − w*)ᵀ H (u − w*); what a noisy target adds to it is left out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from qbench.api import Batch, generator, matmul_per_run, send, stack_keeping_strides

LARGEST_ROTATION = 2048


class Population:
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
        self.root = (
            (draw_rotation(d, generator(task, seed, "rotation")) * eigenvalues.sqrt())
            .float()
            .to(device)
            if rotated
            else None
        )
        """Q diag(λ)^½, so that H = root rootᵀ."""

    def stack(self, others: Sequence[Population]) -> Population:
        """The populations of runs side by side, of which this one is the first: an axis of runs in front of what depends on the seed."""
        found = copy.copy(self)
        found.teacher = torch.stack([other.teacher for other in others])
        found.root = (
            None
            if self.root is None
            else stack_keeping_strides([other.root for other in others if other.root is not None])
        )
        return found

    def excess_loss(self, predictor: Tensor) -> Tensor:
        """The population loss of predictors (…, 1, d) over the teacher's: (…)."""
        error = predictor - self.teacher
        if self.root is None:
            return _HalfSquare.apply(error, self.eigenvalues)  # type: ignore[no-any-return, no-untyped-call]
        return 0.5 * matmul_per_run(error, self.root).square().sum((-2, -1))

    def diagonal(self) -> Tensor:
        return self.eigenvalues if self.root is None else self.root.square().sum(-1)

    def moment(self) -> Tensor:
        return (
            torch.diag(self.eigenvalues)
            if self.root is None
            else matmul_per_run(self.root, self.root.mT)
        )

    def sample(self, index: int, count: int) -> Batch:
        """Batch `index` of an endless stream."""
        draws = generator(self.task, self.seed, "data", index)
        z = send(torch.randn(count, len(self.eigenvalues), generator=draws), self.device)
        x = z * self.eigenvalues.sqrt() if self.root is None else z @ self.root.mT
        y = x @ self.teacher.mT
        if self.noise:
            y = y + self.noise * send(torch.randn(count, 1, generator=draws), self.device)
        return Batch(x, y, count)


class _HalfSquare(torch.autograd.Function):
    """½ Σ λ e². Its gradient λ e is two passes over memory, where that of the expression, with the same bits, is four."""

    @staticmethod
    def forward(ctx: Any, error: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(error, weights)
        return 0.5 * error.square().mul_(weights).sum((-2, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        error, weights = ctx.saved_tensors
        return grad[..., None, None] * weights * error, None


def draw_rotation(d: int, draws: torch.Generator) -> Tensor:
    """A rotation drawn uniformly (Haar): QR with the signs of R's diagonal taken out."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=draws, dtype=torch.float64))
    return q * r.diagonal().sign()


def squared_error(predictions: Tensor, batch: Batch) -> Tensor:
    """Half the mean squared error of (…, batch, 1) predictions: (…)."""
    assert batch.targets is not None
    return 0.5 * (predictions - batch.targets).square().mean((-2, -1))
