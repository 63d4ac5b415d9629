"""Arithmetic for runs side by side: for each run the bits that it would have alone.

Sums, products and roots of elements do not depend on where an element stands; four things do, on a CPU.

A batched product of matrices is not a loop over products. Its kernels add in the order of a single product's if the operands are given as
`F.linear` gives them, forward and backward, if each run's begin on a cache line as they would alone, and if the product is neither tiny
nor one with a single row or column. All others are computed one by one, on operands that begin where they would alone.

An exponential or a logarithm is computed by one formula in the body of a tensor and by another in its last few elements, and so is the
step of an optimizer. Where a run's elements fill whole vectors they are all in the body, whoever stands beside them; else each run is
computed by itself.

A convolution in groups has another kernel than one without, and attention was seen to depend on where in memory a run begins. Neither is many
calls: each run has its own.

That it holds on a machine is what tests show, not what libraries promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VECTOR = 32
"""Numbers of four bytes that a loop over the widest vectors takes at a time."""
LINE = 16
"""Elements of a cache line, which is where a tensor that is alone begins."""
BLOCK = 16
"""Rows that a product for runs of one row each takes at a time."""
SMALLEST = 400
"""Multiplications below which a batch has kernels of its own."""
KEPT = 1024
"""Tensors of numbers, one of each run, that are kept at most."""


def whole_vectors_only(row: int, device: torch.device, dtype: torch.dtype = torch.float32) -> bool:
    """Whether runs of so many elements each may be computed in one go. Of smaller elements a vector holds more."""
    return row * dtype.itemsize % (VECTOR * 4) == 0 or device.type != "cpu"


def stack_keeping_strides(x: Sequence[Tensor]) -> Tensor:
    """Stacked, each in the order in memory that it had: a product's kernel depends on it."""
    rows = x[0].new_empty_strided((len(x), *x[0].shape), (x[0].numel(), *x[0].stride()))
    for row, one in zip(rows, x, strict=True):
        row.copy_(one)
    return rows


def per_run_constant(values: Sequence[float], axes: int, device: torch.device | None) -> Tensor:
    """Numbers, one of each run, for arithmetic with tensors of so many axes: rounded as a Python number is when it meets a tensor. Not to be written to."""
    return cached_constant(tuple(values), axes, device)


constant_cache: dict[tuple[tuple[float, ...], int, torch.device | None], Tensor] = {}
"""What `kept` has made. Who goes on reading such a tensor unasked (`qbench.recorded`) must hold it."""


def cached_constant(values: tuple[float, ...], axes: int, device: torch.device | None) -> Tensor:
    """Made once: a GPU need not be sent it at every step. For a compiler it is a constant."""
    key = values, axes, device
    if key not in constant_cache:
        if len(constant_cache) >= KEPT:
            constant_cache.clear()
        constant_cache[key] = runs_first(values, axes).to(device, non_blocking=True)
    return constant_cache[key]


def runs_first(values: Sequence[float], axes: int) -> Tensor:
    """The first of so many axes is that of the runs."""
    return torch.tensor(values, dtype=torch.float32).view(-1, *[1] * (axes - 1))


def each_run_alone(f: Callable[..., Tensor], *x: Tensor) -> Tensor:
    """f of each run by itself."""
    own = _OnItsOwn.apply
    return torch.stack(
        [own(f(*map(own, rows))) for rows in zip(*(one.unbind() for one in x), strict=True)]
    )  # type: ignore[no-untyped-call]


def per_run_where_bits_depend(f: Callable[..., Tensor], lead: int, *x: Tensor) -> Tensor:
    """f of tensors that have `lead` axes of runs, for an f whose bits on a CPU depend on where in memory a run begins or on how many others
    there are. It takes one axis in front as well as none; on a GPU, where no bits are promised, all runs are one call.
    """
    if not lead or x[0].device.type != "cpu":
        return f(*x)
    return each_run_alone(f, *(one.flatten(0, lead - 1) for one in x))


def per_run(f: Callable[..., Tensor], x: Tensor, lead: int, *more: Tensor) -> Tensor:
    """A function that is no plain arithmetic, elementwise or down to sums over trailing axes, of tensors that have `lead` (0 or 1) axes of runs."""
    return (
        f(x, *more)
        if not lead or whole_vectors_only(x[0].numel(), x.device, x.dtype)
        else each_run_alone(f, x, *more)
    )


def matmul_per_run(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, or of each run's: exact on small ones, where on a CPU a batch would gain nothing."""
    return per_run_where_bits_depend(
        torch.matmul, a.dim() - 2, a, b.expand(*a.shape[:-2], *b.shape[-2:])
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each target: logits (…, samples, classes) to (…, samples). Targets may leave out the axes of runs."""
    shape = logits.shape[:-1]
    return F.cross_entropy(
        logits.flatten(0, -2), targets.expand(shape).reshape(-1), reduction="none"
    ).view(shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x Wᵀ + b` of each run: (runs, samples, inputs) and (runs, outputs, inputs) to (runs, samples, outputs)."""
    given = _as_computed(x, weight) if bias is None else _as_computed(x, weight, bias)
    if batch_is_exact(x.shape[-2], weight.shape[-1], weight.shape[-2], x.device, given[0].dtype):
        return _Linear.apply(*given, *[None] * (3 - len(given)))  # type: ignore[no-any-return, no-untyped-call]
    return each_run_alone(F.linear, *given)


def single_row_linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x wᵀ` for one row of weights a run: (…, samples, inputs) and (…, 1, inputs) to (…, samples, 1). For all runs on one stream it is one
    product, in blocks of so many rows whoever is there, zeros in the place of the rest: a run's bits depend on neither slot nor number.
    """
    if weight.dim() == 2:
        return _block(x, weight)
    if x.device.type != "cpu":
        return x @ weight.mT
    if x.stride(0):
        return each_run_alone(_block, x, weight)
    blocks = [_block(x[0], rows) for rows in weight.flatten(0, 1).split(BLOCK)]
    return torch.cat(blocks, -1).mT.unsqueeze(-1).contiguous()


def _block(x: Tensor, rows: Tensor) -> Tensor:
    filled = F.pad(rows, (0, 0, 0, BLOCK - len(rows)))
    return _Block.apply(*_as_computed(x, filled))[:, : len(rows)].contiguous()  # type: ignore[no-any-return, no-untyped-call]


def _as_computed(*x: Tensor) -> tuple[Tensor, ...]:
    """Autocast before the function begins: what it does inside, the way back does not hear of."""
    device = x[0].device.type
    return (
        tuple(one.to(torch.get_autocast_dtype(device)) for one in x)
        if torch.is_autocast_enabled(device)
        else x
    )


def batch_is_exact(
    samples: int,
    inputs: int,
    outputs: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Whether a batch of products has the bits of single ones."""
    if device.type != "cpu":
        return True
    starts = all(
        size % LINE == 0 for size in (samples * inputs, outputs * inputs, samples * outputs)
    )
    known = dtype in (torch.float32, torch.float64)
    return (
        known
        and starts
        and min(samples, inputs, outputs) > 1
        and samples * inputs * outputs >= SMALLEST
    )


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        return (
            torch.bmm(x, weight.mT)
            if bias is None
            else torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        return (
            grad @ weight if wants_x else None,
            grad.mT @ x if wants_weight else None,
            grad.sum(-2) if wants_bias and ctx.biased else None,
        )


class _Block(torch.autograd.Function):
    """A product whose gradient meets it in the order in memory that its result had."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows)
        return F.linear(x, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, rows = ctx.saved_tensors
        wants_x, wants_rows = ctx.needs_input_grad
        grad = grad.contiguous()
        return grad @ rows if wants_x else None, grad.mT @ x if wants_rows else None


class _OnItsOwn(torch.autograd.Function):
    """Nothing, but that what comes and what goes back begin on a cache line, as they would alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x) if starts_on_cache_line(x) else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if starts_on_cache_line(grad) else grad.clone()


def starts_on_cache_line(x: Tensor) -> bool:
    return torch.compiler.is_compiling() or x.data_ptr() % (LINE * 4) == 0
