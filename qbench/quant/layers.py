"""QuantLinear and QuantConv2d: layers whose weight and input may be quantized."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qbench.numerics.batched_math import linear, run_by_run


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

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, unsigned_input: bool = False
    ) -> None:
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
        x, weight = self.quantized(x), self.effective
        given = (x, weight) if self.bias is None else (x, weight, self.bias)
        return run_by_run(self.convolve, weight.dim() - 4, *given)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Of one run, or of all in one call."""
        if weight.dim() == 4:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        runs = weight.shape[0]
        bias = None if bias is None else bias.flatten()
        y = F.conv2d(
            x.transpose(0, 1).flatten(1, 2),
            weight.flatten(0, 1),
            bias,
            self.stride,
            self.padding,
            groups=runs,
        )
        return y.view(y.shape[0], runs, -1, *y.shape[2:]).transpose(0, 1)
