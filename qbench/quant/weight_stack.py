"""WeightStack (was Bundle): weights of one shape under one quantizer, quantized once a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qbench.numerics.batched_math import on_a_line
from qbench.quant.grid import Grid, widen

if TYPE_CHECKING:
    from qbench.quant.layers import QuantLayer
    from qbench.quant.quantizer import Quantizer


def beside(sites: Sequence[Tensor]) -> Tensor:
    """Matrices of one shape in one new tensor, behind the runs' axis where they have one: (…, sites, rows, columns)."""
    return torch.stack(list(sites), dim=-3)


def _seen_beside(sites: Sequence[Tensor]) -> Tensor:
    """The same to read only: a site without others is seen where it lies."""
    return sites[0].unsqueeze(-3) if len(sites) == 1 and on_a_line(sites[0]) else beside(sites)


class Bundle:
    """Weight sites of one shape under one quantizer, quantized together."""

    def __init__(self, names: list[str], layers: list[QuantLayer], quantizer: Quantizer) -> None:
        self.names, self.layers, self.quantizer = names, layers, quantizer
        self.call: Callable[[Tensor], Tensor] = quantizer
        """The quantizer as training calls it: itself, or compiled."""
        self.latent: Tensor | None = None
        """The stacked weights as the quantizer was given them: a leaf, which a compiled quantizer wants."""
        self.source: Tensor | None = None

    def stack(self) -> Tensor:
        """The weights side by side, (…, sites, rows, columns)."""
        return beside([layer.matrix() for layer in self.layers])

    def refresh(self, quantize: Callable[[Tensor], Tensor] | None = None) -> None:
        """Quantize the weights as they are now and hand each layer its part."""
        trains = torch.is_grad_enabled()
        with torch.no_grad():
            seen = _seen_beside([layer.matrix() for layer in self.layers])
        self.latent = seen.requires_grad_(trains)
        self.source = (self.call if quantize is None else quantize)(self.latent)
        trains = self.source.requires_grad
        for layer, part in zip(self.layers, self.source.detach().unbind(-3), strict=True):
            layer.used = layer.as_weight(part).requires_grad_(trains)

    def hand_out(self) -> None:
        """The same in one graph with the network, whose backward then reaches the weights by itself."""
        for layer, part in zip(self.layers, self.quantizer(self.stack()).unbind(-3), strict=True):
            layer.used = layer.as_weight(part)

    def pull_back(self) -> None:
        """Send the gradients that the leaves have gathered through the quantizer to the weights."""
        assert self.source is not None and self.latent is not None
        grads = [None if layer.used is None else layer.used.grad for layer in self.layers]
        if any(grad is not None for grad in grads):
            parts = [
                torch.zeros_like(layer.weight) if g is None else g
                for g, layer in zip(grads, self.layers, strict=True)
            ]
            arrived = _seen_beside(
                [
                    part.reshape(layer.matrix().shape)
                    for part, layer in zip(parts, self.layers, strict=True)
                ]
            )
            self.source.backward(arrived)
        if self.latent.grad is not None:
            for layer, part in zip(self.layers, self.latent.grad.unbind(-3), strict=True):
                grad, before = layer.as_weight(part), layer.weight.grad
                layer.weight.grad = grad if before is None else before + grad
        self.release()

    def release(self) -> None:
        """Back to the weights as they are."""
        self.latent = self.source = None
        for layer in self.layers:
            layer.used = None

    def grids(self) -> Iterator[tuple[str, QuantLayer, Grid]]:
        """Each site's name, layer and the grid it would ship on."""
        with torch.no_grad():
            grid = self.quantizer.grid(widen(self.stack()))
        for index, (name, layer) in enumerate(zip(self.names, self.layers, strict=True)):
            yield name, layer, grid[index]
