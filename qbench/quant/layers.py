"""Quantized layers: the places in a network where a weight, and perhaps an input, is quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.numerics.batched_math import linear, per_run_where_bits_depend


class QuantLayer(nn.Module):
    """A layer with one weight that a method may quantize, and an input that it may quantize.

    `used` is the weight that the forward pass computes with: what a quantizer made of the latent
    weight, or None for the latent weight itself.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    sample_axes = 1
    """Number of trailing axes that one sample of the input has."""

    def __init__(self, unsigned_input: bool = False) -> None:
        super().__init__()
        self.unsigned_input = unsigned_input
        self.used: Tensor | None = None
        self.input_quantizer: Callable[[Tensor], Tensor] | None = None

    def set_input_quantizer(self, quantize: Callable[[Tensor], Tensor] | None) -> None:
        """Quantize the input by this function from now on, or not at all.

        The quantizer stays outside of the module tree, because it belongs to the run and not to
        the model: hence the call of object's setter.
        """
        object.__setattr__(self, "input_quantizer", quantize)

    @property
    def quantized_weight(self) -> Tensor:
        """The weight that the forward pass computes with."""
        return self.weight if self.used is None else self.used

    def matrix(self) -> Tensor:
        """Return the latent weight as (…, outputs, inputs)."""
        return self.weight

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Return a matrix in the shape of the weight."""
        return matrix

    def quantize_input(self, x: Tensor) -> Tensor:
        """Return the input as the layer computes with it; the quantizer sees samples × features."""
        if self.input_quantizer is None:
            return x
        lead = self.matrix().dim() - 2
        rows = x.flatten(lead + 1) if self.sample_axes > 1 else x.flatten(lead, -2)
        return self.input_quantizer(rows).view(x.shape)


class QuantLinear(QuantLayer):
    """A linear layer. If the weight has an axis of stacked runs in front, so has the input."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, unsigned_input: bool = False
    ) -> None:
        super().__init__(unsigned_input)
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantize_input(x), self.quantized_weight
        if weight.dim() == 2:
            return F.linear(x, weight, self.bias)
        lead = weight.dim() - 2
        bias = None if self.bias is None else self.bias.flatten(0, lead - 1)
        y = linear(x.flatten(lead, -2).flatten(0, lead - 1), weight.flatten(0, lead - 1), bias)
        return y.view(*x.shape[:-1], y.shape[-1])


class QuantConv2d(QuantLayer):
    """A convolution over (…, batch, channels, height, width).

    Stacked runs are the groups of one convolution. On a CPU a grouped convolution has other bits
    than a single one, and takes about as long, so there each run is convolved by itself.
    """

    sample_axes = 3

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        bias: bool = True,
        unsigned_input: bool = False,
    ) -> None:
        super().__init__(unsigned_input)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.stride, self.padding = stride, kernel // 2

    def matrix(self) -> Tensor:
        return self.weight.flatten(-3)

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        x, weight = self.quantize_input(x), self.quantized_weight
        given = (x, weight) if self.bias is None else (x, weight, self.bias)
        return per_run_where_bits_depend(self.convolve, weight.dim() - 4, *given)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Convolve the samples of one run, or those of all stacked runs in one call."""
        if weight.dim() == 4:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        runs = weight.shape[0]
        bias = None if bias is None else bias.flatten()
        # (runs, batch, channels, …) becomes (batch, runs × channels, …): one group a run.
        y = F.conv2d(
            x.transpose(0, 1).flatten(1, 2),
            weight.flatten(0, 1),
            bias,
            self.stride,
            self.padding,
            groups=runs,
        )
        return y.view(y.shape[0], runs, -1, *y.shape[2:]).transpose(0, 1)
