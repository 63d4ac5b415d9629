"""QuantizedNetwork: a problem's model with a method's quantizers in place.

It is asked for the network as it would ship, in full precision, or with its weights rounded at
random, and it calibrates its quantizers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qbench.api.batch import Batch
from qbench.api.problem import Problem
from qbench.quant.grid import Grid, widen
from qbench.quant.layers import QuantLayer
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import WeightStack


class QuantizedNetwork:
    """A problem's model with quantizers at its sites."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.weights: list[WeightStack] = []
        self.inputs: dict[str, Quantizer] = {}
        """The quantizers of layer inputs, by the name of the layer."""
        self.declared: list[str] = []
        """The sites that the board quantizes."""
        self.declined: list[str] = []
        """Those of them that the method leaves in full precision."""
        device = next(problem.model.parameters()).device
        self.clock = torch.zeros((), dtype=torch.int64, device=device)
        """The step as a tensor. The random numbers of every quantizer are keyed by it."""
        self.batch_slice = torch.tensor([0, 1], device=device)
        """First sample, and number of samples, of the slice of the batch that is computed. The
        random numbers of input quantizers are keyed by it."""
        self.scalars: dict[str, Tensor] = {}
        """The numbers of `Method.schedules`, as tensors that stay where they are."""

    @property
    def model(self) -> nn.Module:
        return self.problem.model

    @property
    def device(self) -> torch.device:
        return self.clock.device

    def quantizers(self) -> Iterator[Quantizer]:
        """Yield the quantizers of all weights, then those of all inputs."""
        yield from (stack.quantizer for stack in self.weights)
        yield from self.inputs.values()

    def connect_quantizers(self) -> None:
        """Share the run's tensors with its quantizers, and attach input quantizers to layers."""
        layers = self.problem.layers()
        for quantizer in self.quantizers():
            quantizer.to(self.device)
            quantizer.step, quantizer.scalars = self.clock, self.scalars
        for name, quantizer in self.inputs.items():
            quantizer.batch_slice = self.batch_slice
            layers[name].set_input_quantizer(quantizer)

    def set_batch_slice(self, first: int, count: int) -> None:
        """Say which samples of the batch are computed from now on."""
        self.batch_slice[0].fill_(first)
        self.batch_slice[1].fill_(count)

    # ---- weights ----

    def quantize_weights(self) -> None:
        """Quantize all weights, and hand the layers the results as leaves of the graph."""
        for stack in self.weights:
            stack.quantize()

    def quantize_weights_in_graph(self) -> None:
        """Quantize all weights inside of the network's own graph, in float32 under autocast too."""
        with torch.autocast(self.device.type, enabled=False):
            for stack in self.weights:
                stack.quantize_in_graph()

    def use_latent_weights(self) -> None:
        """Let all layers compute with their latent weights again."""
        for stack in self.weights:
            stack.use_latent()

    def grids(self) -> Iterator[tuple[str, QuantLayer, Grid]]:
        """Yield the name, the layer and the shipping grid of each weight site."""
        for stack in self.weights:
            yield from stack.grids()

    # ---- inputs ----

    def calibrate_inputs(self, batches: Iterable[Batch]) -> None:
        """Show every input quantizer its tensors, in a network with quantized weights.

        The inputs themselves are not quantized meanwhile: the ranges are being found.
        """
        if not self.inputs:
            return
        layers = self.problem.layers()
        with self.as_shipped(), torch.no_grad():
            for name, quantizer in self.inputs.items():
                layers[name].set_input_quantizer(_calibrating(quantizer))
            for batch in batches:
                self.model(batch.inputs)
        for name, quantizer in self.inputs.items():
            layers[name].set_input_quantizer(quantizer)

    # ---- the network in one of its forms ----

    @contextmanager
    def as_shipped(self) -> Iterator[None]:
        """Let the network compute as it would ship: evaluation mode, weights and inputs snapped.

        The quantizers run eagerly, because a compiler may fuse a product and a sum.
        """
        with self.evaluating(), torch.no_grad():
            for stack in self.weights:
                stack.quantize(stack.quantizer)
            yield

    @contextmanager
    def in_full_precision(self) -> Iterator[None]:
        """Let the network compute on its latent weights, with no input quantized."""
        layers = self.problem.layers()
        with self.evaluating(), torch.no_grad():
            for name in self.inputs:
                layers[name].set_input_quantizer(None)
            yield
        for name, quantizer in self.inputs.items():
            layers[name].set_input_quantizer(quantizer)

    @contextmanager
    def randomly_rounded(self, draw: int) -> Iterator[None]:
        """Let the network compute as it would ship, but with weights rounded at random.

        Each weight is on one of its two neighbouring levels, with the weight as its mean.
        """
        with self.evaluating(), torch.no_grad():
            for stack in self.weights:
                stack.quantize(_random_rounding(stack.quantizer, -1 - draw))
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Put the network and its quantizers into evaluation mode, and back again."""
        modules = [self.model, *self.quantizers()]
        before = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            self.use_latent_weights()
            for module, training in zip(modules, before, strict=True):
                module.train(training)


def _calibrating(quantizer: Quantizer) -> Callable[[Tensor], Tensor]:
    """Return a function that calibrates a quantizer on what passes through it unchanged."""
    first = True

    def calibrate(x: Tensor) -> Tensor:
        nonlocal first
        if x.numel():
            quantizer.calibrate(widen(x), first)
            first = False
        return x

    return calibrate


def _random_rounding(quantizer: Quantizer, stream: int) -> Callable[[Tensor], Tensor]:
    def round_randomly(x: Tensor) -> Tensor:
        return quantizer.grid(widen(x)).snap_randomly(x, quantizer.random(x, stream))

    return round_randomly
