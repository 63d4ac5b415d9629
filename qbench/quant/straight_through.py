"""Gradient rules that methods share: how a value that was computed without a gradient stands in for
one that has one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _PassThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def straight_through(x: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Exactly `value`, with the gradient of `x` where `mask` holds (everywhere without one) and
    none elsewhere.

    Written as value + (x − x.detach()): it is right under every compiler mode, where the backward
    of an autograd.Function can be dropped in silence. Eager training takes the Function, which adds
    no pass over memory.
    """
    value = value.detach()
    source = x if mask is None else torch.where(mask, x, x.detach())
    if torch.compiler.is_compiling():
        return value + (source - source.detach())
    return _PassThrough.apply(source, value)  # type: ignore[no-any-return, no-untyped-call]
