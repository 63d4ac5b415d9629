"""The toy task of the conformance kit: a small network on an artificial classification."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.api.batch import Batch, Split, send
from qbench.api.problem import Problem, Work
from qbench.api.task import Task
from qbench.numerics.batched_math import cross_entropy
from qbench.numerics.keyed_random import generator
from qbench.quant.layers import QuantLinear
from qbench.runs.config import Metric, Recipe

STEPS = 60


class ToyNet(nn.Module):
    """Five linear layers with ReLU between them; the middle three are quantized."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first = QuantLinear(16, 32)
        self.hidden = QuantLinear(32, 32, unsigned_input=True)
        self.wide = QuantLinear(32, 64, unsigned_input=True)
        self.narrow = QuantLinear(64, 32, unsigned_input=True)
        self.last = QuantLinear(32, 4, unsigned_input=True)
        draws = generator("toy", "start", seed)
        for layer in self.children():
            assert isinstance(layer, QuantLinear)
            nn.init.normal_(layer.weight, std=(2 / layer.weight.shape[1]) ** 0.5, generator=draws)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.first, self.hidden, self.wide, self.narrow):
            x = F.relu(layer(x))
        return self.last(x)  # type: ignore[no-any-return]


class ToyProblem(Problem):
    """Gaussian inputs whose class is the largest output of a fixed linear map."""

    seeds_share_data = True

    def __init__(self, seed: int, batch: int, device: torch.device) -> None:
        self.model = ToyNet(seed).to(device)
        self.seed, self.size, self.device = seed, batch, device
        self.work = Work(labels=batch)
        self.truth = torch.randn(16, 4, generator=generator("toy", "truth"))

    def sample_batch(self, count: int, *key: object) -> Batch:
        """Return `count` inputs and classes that depend on the key alone."""
        x = torch.randn(count, 16, generator=generator("toy", *key))
        return Batch(send(x, self.device), send((x @ self.truth).argmax(-1), self.device), count)

    def batch(self, index: int) -> Batch:
        return self.sample_batch(self.size, self.seed, index)

    def batches(self, split: Split) -> Iterable[Batch]:
        return [self.sample_batch(256, split)]

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        assert batch.targets is not None
        return cross_entropy(output, batch.targets).mean(-1)


@dataclass
class Toy(Task):
    """An artificial classification for the conformance kit; no board should use it."""

    name = "toy"
    title = "Toy classification (conformance only)"
    metric = Metric("loss", unit="nats")
    sizes = {"xs": {"parameters": 6500}}
    activations = True

    def recipe(self, size: str) -> Recipe:
        return Recipe(steps=STEPS, batch=64, lr=1e-2)

    def fingerprint(self) -> str:
        return "toy-1"

    def problem(self, size: str, seed: int, batch: int, device: torch.device) -> Problem:
        return ToyProblem(seed, batch, device)
