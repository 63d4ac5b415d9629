"""WeightStack: the weight sites of one shape, quantized together by one quantizer.

Weights are quantized once a step and not once a forward pass. `WeightStack.quantize` stacks the
weights, calls the quantizer and hands each layer its part as a leaf of the autograd graph. The
network's backward pass leaves a gradient at each leaf, and `backward_through_quantizer` sends these
gradients through the quantizer to the weights. Micro-batches, probes of the loss and a second pass
over one batch all compute with the same leaves. Only a step that is compiled as one graph has no
leaves (`quantize_in_graph`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from qbench.numerics.batched_math import starts_on_cache_line
from qbench.quant.grid import Grid, widen
from qbench.quant.layers import QuantLayer
from qbench.quant.quantizer import Quantizer


class WeightStack:
    """Weight sites of one shape under one quantizer."""

    def __init__(self, names: list[str], layers: list[QuantLayer], quantizer: Quantizer) -> None:
        self.names, self.layers, self.quantizer = names, layers, quantizer
        self.training_call: Callable[[Tensor], Tensor] = quantizer
        """The quantizer as training calls it: itself, or its compiled form."""
        self.latent: Tensor | None = None
        """The stacked weights as the quantizer was given them, as a leaf of the graph."""
        self.quantized: Tensor | None = None
        """What the quantizer returned for them."""

    def stack(self) -> Tensor:
        """Return the weights in one new tensor, (…, sites, rows, columns)."""
        return stack_sites([layer.matrix() for layer in self.layers])

    def quantize(self, quantizer: Callable[[Tensor], Tensor] | None = None) -> None:
        """Quantize the weights as they are now, and hand each layer its part as a leaf.

        Args:
            quantizer: What to call instead of `training_call`.
        """
        trains = torch.is_grad_enabled()
        with torch.no_grad():
            weights = _view_or_stack_sites([layer.matrix() for layer in self.layers])
        # A compiled quantizer needs a leaf as its input to return a gradient for it.
        self.latent = weights.requires_grad_(trains)
        self.quantized = (quantizer or self.training_call)(self.latent)
        trains = self.quantized.requires_grad
        for layer, part in zip(self.layers, self.quantized.detach().unbind(-3), strict=True):
            layer.used = layer.as_weight(part).requires_grad_(trains)

    def quantize_in_graph(self) -> None:
        """Quantize the weights inside of the network's own graph, without leaves in between."""
        for layer, part in zip(self.layers, self.quantizer(self.stack()).unbind(-3), strict=True):
            layer.used = layer.as_weight(part)

    def backward_through_quantizer(self) -> None:
        """Send the gradients at the leaves through the quantizer, and add them to the weights'."""
        assert self.quantized is not None and self.latent is not None
        grads = [None if layer.used is None else layer.used.grad for layer in self.layers]
        if any(grad is not None for grad in grads):
            # A layer that the loss did not reach has no gradient; in the stack it counts as zero.
            parts = [
                torch.zeros_like(layer.weight) if grad is None else grad
                for grad, layer in zip(grads, self.layers, strict=True)
            ]
            self.quantized.backward(
                _view_or_stack_sites(
                    [
                        part.reshape(layer.matrix().shape)
                        for part, layer in zip(parts, self.layers, strict=True)
                    ]
                )
            )
        if self.latent.grad is not None:
            for layer, part in zip(self.layers, self.latent.grad.unbind(-3), strict=True):
                grad, before = layer.as_weight(part), layer.weight.grad
                layer.weight.grad = grad if before is None else before + grad
        self.use_latent()

    def use_latent(self) -> None:
        """Let the layers compute with their latent weights again, and drop the graph."""
        self.latent = self.quantized = None
        for layer in self.layers:
            layer.used = None

    def grids(self) -> Iterator[tuple[str, QuantLayer, Grid]]:
        """Yield the name, the layer and the shipping grid of each site."""
        with torch.no_grad():
            grid = self.quantizer.grid(widen(self.stack()))
        for index, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            yield name, layer, grid[index]


def stack_sites(sites: Sequence[Tensor]) -> Tensor:
    """Return matrices of one shape in one new tensor, (…, sites, rows, columns).

    The axis of the sites stands behind the axis of stacked runs, where there is one.
    """
    return torch.stack(list(sites), dim=-3)


def _view_or_stack_sites(sites: Sequence[Tensor]) -> Tensor:
    """Return the same for reading only: a single site is not copied if its memory is aligned.

    The alignment matters because vectorised kernels treat the head of an unaligned tensor apart.
    """
    if len(sites) == 1 and starts_on_cache_line(sites[0]):
        return sites[0].unsqueeze(-3)
    return stack_sites(sites)
