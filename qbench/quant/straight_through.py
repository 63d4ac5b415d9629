"""Straight-through estimator: a value without a gradient gets that of another tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(x: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return exactly `value`, with the gradient of `x`.

    Where a `mask` is given and false, the gradient is zero.
    """
    value = value.detach()
    # torch.where gives the masked elements a zero gradient without changing any value.
    source = x if mask is None else torch.where(mask, x, x.detach())
    if torch.compiler.is_compiling():
        # The difference is exactly zero. This form is right in every mode of the compiler, which
        # may silently drop the backward pass of an autograd.Function.
        return value + (source - source.detach())
    # In eager mode the function saves two passes over memory.
    return _StraightThrough.apply(source, value)  # type: ignore[no-any-return, no-untyped-call]


class _StraightThrough(torch.autograd.Function):
    """The second argument, with the gradient passed to the first."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        # autograd needs a new tensor object: an input that is returned unchanged is special to it.
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
