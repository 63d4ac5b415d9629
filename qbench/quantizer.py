"""Quantizer: what a method makes for a site. Quantized layers: where a network keeps one.

A quantizer sees its tensor as `(…, rows, columns)`: a weight as outputs × inputs, a layer's input as samples × features.
Axes in front are sites of one shape or runs of one kind, quantized side by side; it reduces over the last two only,
so that one call serves them all and each gets the same bits as alone.

Weights are quantized once a step, not once a forward pass: `Bundle.refresh` stacks the sites of one shape, calls the quantizer,
and hands each layer its part as a leaf of the graph. The network's backward leaves a gradient there, and `Bundle.pull_back`
sends it through the quantizer to the weights. Several micro-batches, probes of the discretised weights and
second passes over one batch all find the same leaves. Only where a step is compiled as one graph are there none (`hand_out`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.formats import Site
from qbench.grid import Grid, widen
from qbench.noise import key_of, uniform
from qbench.rows import by_run, linear, on_a_line, run_by_run


class Quantizer(nn.Module):
    """The levels of one site and the rule by which a network is trained on them."""

    key: Tensor
    step: Tensor
    part: Tensor
    """Of the batch that an input belongs to: its first sample and how many there are."""
    lead = 0
    """Axes in front of all: one where runs train side by side."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.site = site
        lead = site.shape[:-2] if site.role == "weight" else ()
        self.register_buffer("key", torch.zeros(*lead, 1, 1, dtype=torch.int64))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("part", torch.tensor([0, 1]), persistent=False)

    def reset(self, x: Tensor) -> None:
        """First look at the tensor: initialise learned ranges. An input is shown several batches, one call each."""

    def forget(self) -> None:
        """Before a new round of `reset`: drop what earlier ones gathered."""

    def grid(self, x: Tensor) -> Grid:
        """The levels `x` would ship on now."""
        raise NotImplementedError

    def relax(self, x: Tensor) -> Tensor:
        """What the network computes with while training; the gradient rule lives here."""
        raise NotImplementedError

    def __init_subclass__(cls) -> None:
        if "forward" in cls.__dict__:
            raise TypeError(f"{cls.__name__} overrides forward; write relax (training) and grid (shipping) instead")

    def forward(self, x: Tensor) -> Tensor:
        x = widen(x)
        return self.relax(x) if self.training else self.grid(x).snap(x)

    @final
    def draw(self, x: Tensor, stream: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) of the shape of `x`: a function of the run's seed, the site, the step and the stream.

        Those of an input belong to its samples, whatever parts a batch is computed in."""
        first = self.part[0] * (x.shape[-2] // self.part[1])
        return uniform(self.key + stream, self.step, tuple(x.shape), first)

    @final
    def by_run(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """f of each element, for an f that is no plain arithmetic: side by side, a run must get the bits that it has alone."""
        return by_run(f, x, self.lead)

    @final
    def seed(self, seed: int, names: list[str]) -> None:
        """Key the draws by the run's seed and the sites' names."""
        keys = torch.tensor([key_of(seed, name) for name in names], dtype=torch.int64)
        self.key.copy_(keys.view(self.key.shape))


class QuantLayer(nn.Module):
    """A layer with one weight that a method may quantize, and an input that it may.

    `used` is the weight that the forward pass computes with: what the quantizer made of it, or the weight itself.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_rank = 1  # trailing axes of one sample at the input

    def __init__(self, unsigned_input: bool = False) -> None:
        super().__init__()
        self.unsigned_input = unsigned_input
        self.used: Tensor | None = None
        self.quantize_input: Callable[[Tensor], Tensor] | None = None

    def see_input_through(self, quantize: Callable[[Tensor], Tensor] | None) -> None:
        """Quantize the input from now on. The quantizer stays outside the module tree: it belongs to the run, not to the model."""
        object.__setattr__(self, "quantize_input", quantize)

    @property
    def effective(self) -> Tensor:
        return self.weight if self.used is None else self.used

    def matrix(self) -> Tensor:
        """The weight as (…, outputs, inputs)."""
        return self.weight

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix

    def quantized(self, x: Tensor) -> Tensor:
        """The input as the layer computes with it: seen by the quantizer as samples × features."""
        if self.quantize_input is None:
            return x
        lead = self.matrix().dim() - 2
        rows = x.flatten(lead + 1) if self.input_rank > 1 else x.flatten(lead, -2)
        return self.quantize_input(rows).view(x.shape)


class QuantLinear(QuantLayer):
    """`x Wᵀ + b`. With an axis of runs in front of the weight, `x` carries the same one first."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, unsigned_input: bool = False) -> None:
        super().__init__(unsigned_input)
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantized(x), self.effective
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        lead = weight.dim() - 2
        bias = None if self.bias is None else self.bias.flatten(0, lead - 1)
        y = linear(x.flatten(lead, -2).flatten(0, lead - 1), weight.flatten(0, lead - 1), bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class QuantConv2d(QuantLayer):
    """A convolution over (…, batch, channels, height, width). Runs side by side are groups of one convolution, which on a CPU has other bits than
    one alone, and takes about as long: there each run has its own."""

    input_rank = 3

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True, unsigned_input: bool = False) -> None:
        super().__init__(unsigned_input)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding = stride, kernel // 2

    def matrix(self) -> Tensor:
        return self.weight.flatten(-3)

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantized(x), self.effective
        given = (x, weight) if self.bias is None else (x, weight, self.bias)
        return run_by_run(self.convolve, weight.dim() - 4, *given)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Of one run, or of all in one call."""
        if weight.dim() == 4:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        runs = weight.shape[0]
        bias = None if bias is None else bias.flatten()
        y = F.conv2d(x.transpose(0, 1).flatten(1, 2), weight.flatten(0, 1), bias, self.stride, self.padding, groups=runs)
        return y.view(y.shape[0], runs, -1, *y.shape[2:]).transpose(0, 1)


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
            parts = [torch.zeros_like(layer.weight) if g is None else g for g, layer in zip(grads, self.layers, strict=True)]
            arrived = _seen_beside([part.reshape(layer.matrix().shape) for part, layer in zip(parts, self.layers, strict=True)])
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
