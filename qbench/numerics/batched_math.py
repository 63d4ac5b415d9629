"""Arithmetic over stacked runs in which every run keeps the bits of a run trained alone.

Sums, products and square roots of single elements give the same bits wherever an element lies in
memory. On a CPU, four kinds of operation do not. Their result for one run may depend on where the
run begins in the stacked tensor, or on how many runs are stacked:

1. Matrix products. A batched product is not a loop over single products: it may choose another
   kernel, which adds in another order. The batched kernel adds in the order of the single one if
   the operands have the memory layout that `F.linear` gives them, in both the forward and the
   backward pass; if the operands of each run begin on a cache line, as a freshly allocated tensor
   does; and if the product is neither tiny nor has a single row or column. `linear` uses a batched
   product where all of this holds (`batch_is_exact`) and otherwise computes one product for each
   run, on operands that begin on a cache line. `single_row_linear` pads products of one row of
   weights to blocks of a fixed size.
2. Exponentials, logarithms and the optimizer's step. The vectorized loop computes the body of a
   tensor by one formula and its last few elements by another. If the elements of a run fill whole
   vectors, they are in the body whichever runs are stacked, and one call serves all runs. If not,
   `per_run` calls the function once for each run.
3. Convolutions. Stacked runs would need a grouped convolution, which has another kernel than a
   convolution without groups. `per_run_where_bits_depend` makes one call for each run.
4. Attention. Its bits were observed to depend on the address at which a run begins, so it goes
   through `per_run_where_bits_depend` as well. A step has few calls of these last two kinds.

No library promises any of this. The tests show whether it holds on a machine. On a GPU no bits are
promised, so there all runs are computed in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

VECTOR_BYTES = 32 * 4
"""Bytes that one iteration of a loop over the widest vectors reads: 32 float32 numbers."""
CACHE_LINE_ELEMENTS = 16
"""float32 elements of a cache line. A freshly allocated tensor begins at the start of a line."""
BLOCK_ROWS = 16
"""Rows of weights in one product, for runs that have one row each."""
MIN_MULTIPLICATIONS = 400
"""With fewer multiplications than this, a batched product uses kernels of its own."""
MAX_CACHED_CONSTANTS = 1024
"""Entries of `constant_cache` at most. When it is full, it is emptied."""


def whole_vectors_only(
    elements: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> bool:
    """Return whether runs of so many elements each may be computed in one call.

    This is so if a run fills whole vectors. A vector holds more elements of a smaller dtype, so
    the condition is on bytes. On a GPU it always is.
    """
    return elements * dtype.itemsize % VECTOR_BYTES == 0 or device.type != "cpu"


def stack_keeping_strides(tensors: Sequence[Tensor]) -> Tensor:
    """Return the tensors stacked along a new first axis, each with the strides that it had.

    `torch.stack` would make each contiguous, and the kernel of a product depends on the strides.
    """
    first = tensors[0]
    stacked = first.new_empty_strided(
        (len(tensors), *first.shape), (first.numel(), *first.stride())
    )
    for row, tensor in zip(stacked, tensors, strict=True):
        row.copy_(tensor)
    return stacked


def per_run_constant(values: Sequence[float], axes: int, device: torch.device | None) -> Tensor:
    """Return one number for each run, shaped to broadcast against tensors of `axes` axes.

    The numbers are float32, so they round as a Python number does when it meets a float32 tensor.
    The tensor is cached and shared: callers must not write to it.
    """
    return cached_constant(tuple(values), axes, device)


constant_cache: dict[tuple[tuple[float, ...], int, torch.device | None], Tensor] = {}
"""The tensors that `cached_constant` made. A recorded step goes on reading them after the cache is
emptied, so it must hold references of its own (`qbench.execution.step_recording`)."""


def cached_constant(values: tuple[float, ...], axes: int, device: torch.device | None) -> Tensor:
    """Return `runs_first(values, axes)` on the device, from the cache where it was made before.

    Without the cache, the numbers would be copied to the GPU in every step. A compiler sees a
    constant.
    """
    key = values, axes, device
    if key not in constant_cache:
        if len(constant_cache) >= MAX_CACHED_CONSTANTS:
            constant_cache.clear()
        constant_cache[key] = runs_first(values, axes).to(device, non_blocking=True)
    return constant_cache[key]


def runs_first(values: Sequence[float], axes: int) -> Tensor:
    """Return the values along the first of `axes` axes, the others having length 1."""
    return torch.tensor(values, dtype=torch.float32).view(-1, *[1] * (axes - 1))


def call_for_each_run(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Return the results of one call for each run, stacked. The first axis is that of the runs."""
    # A slice of a stacked tensor may begin in the middle of a cache line. Operands, results and
    # the gradients of both are copied where they do, since a single run's tensors never do.
    align = _CacheLineAligned.apply
    results = []
    for operands in zip(*(tensor.unbind() for tensor in tensors), strict=True):
        result = function(*map(align, operands))
        results.append(align(result))  # type: ignore[no-untyped-call]
    return torch.stack(results)


def per_run_where_bits_depend(
    function: Callable[..., Tensor], run_axes: int, *tensors: Tensor
) -> Tensor:
    """Return `function` of tensors that have `run_axes` axes of runs in front.

    It is for functions whose bits on a CPU depend on the address of a run or on the number of
    runs: there, each run has its own call. The function must accept operands with and without one
    leading axis. On a GPU all runs are one call.
    """
    if not run_axes or tensors[0].device.type != "cpu":
        return function(*tensors)
    return call_for_each_run(function, *(tensor.flatten(0, run_axes - 1) for tensor in tensors))


def per_run(function: Callable[..., Tensor], x: Tensor, run_axes: int, *more: Tensor) -> Tensor:
    """Return `function` of tensors that have `run_axes` (0 or 1) axes of runs in front.

    It is for elementwise functions that are not plain arithmetic, such as `exp`, and for those
    followed by sums over trailing axes.
    """
    # Elements in the last, incomplete vector of a tensor are computed by another formula.
    if not run_axes or whole_vectors_only(x[0].numel(), x.device, x.dtype):
        return function(x, *more)
    return call_for_each_run(function, x, *more)


def matmul_per_run(a: Tensor, b: Tensor) -> Tensor:
    """Return the product of two matrices, or of the two matrices of each run.

    It is meant for small matrices, where a batched product on a CPU would gain nothing.
    """
    run_axes = a.dim() - 2
    return per_run_where_bits_depend(
        torch.matmul, run_axes, a, b.expand(*a.shape[:-2], *b.shape[-2:])
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the negative log-likelihood of each target.

    Logits of shape (…, samples, classes) give a result of shape (…, samples). The targets may lack
    the axes of runs if all runs have the same.
    """
    shape = logits.shape[:-1]
    expanded = targets.expand(shape).reshape(-1)
    return F.cross_entropy(logits.flatten(0, -2), expanded, reduction="none").view(shape)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `x Wᵀ + b` for each run.

    Shapes: (runs, samples, inputs) and (runs, outputs, inputs) give (runs, samples, outputs).
    """
    operands = (
        _cast_for_autocast(x, weight) if bias is None else _cast_for_autocast(x, weight, bias)
    )
    samples, inputs, outputs = x.shape[-2], weight.shape[-1], weight.shape[-2]
    if batch_is_exact(samples, inputs, outputs, x.device, operands[0].dtype):
        absent = [None] * (3 - len(operands))
        apply = _BatchedLinear.apply
        return apply(*operands, *absent)  # type: ignore[no-any-return, no-untyped-call]
    return call_for_each_run(F.linear, *operands)


def single_row_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Return `x wᵀ` for runs that have one row of weights each.

    Shapes: (…, samples, inputs) and (…, 1, inputs) give (…, samples, 1). If all runs read the same
    samples, the rows of weights are multiplied in blocks of a fixed number of rows. Missing rows
    are zeros. So the bits of a run depend neither on its slot nor on the number of runs.
    """
    if weight.dim() == 2:
        return _multiply_block(x, weight)
    if x.device.type != "cpu":
        return x @ weight.mT
    # A stride of 0 along the axis of runs means that all runs share the samples in memory.
    if x.stride(0):
        return call_for_each_run(_multiply_block, x, weight)
    blocks = [_multiply_block(x[0], rows) for rows in weight.flatten(0, 1).split(BLOCK_ROWS)]
    return torch.cat(blocks, -1).mT.unsqueeze(-1).contiguous()


def _multiply_block(x: Tensor, rows: Tensor) -> Tensor:
    """Return `x rowsᵀ`, with zeros below the rows so that the kernel is always the same."""
    padded = F.pad(rows, (0, 0, 0, BLOCK_ROWS - len(rows)))
    product = _BlockLinear.apply(*_cast_for_autocast(x, padded))  # type: ignore[no-untyped-call]
    return product[:, : len(rows)].contiguous()  # type: ignore[no-any-return]


def _cast_for_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the dtype that autocast would compute with.

    The cast must happen outside the autograd functions below: autograd does not see a cast inside
    their forward pass, and their backward pass would meet two dtypes.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors)


def batch_is_exact(
    samples: int,
    inputs: int,
    outputs: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Return whether a batched product may be used: on a CPU, if it has the bits of single ones."""
    if device.type != "cpu":
        return True
    # x, the weight and the result of every run must begin on a cache line, because the result is
    # an operand of the next layer and its gradient one of the backward products.
    sizes = samples * inputs, outputs * inputs, samples * outputs
    runs_are_aligned = all(size % CACHE_LINE_ELEMENTS == 0 for size in sizes)
    # The tests compared bits in these dtypes only. In bf16 each run has its own product.
    is_tested_dtype = dtype in (torch.float32, torch.float64)
    return (
        is_tested_dtype
        and runs_are_aligned
        and min(samples, inputs, outputs) > 1
        and samples * inputs * outputs >= MIN_MULTIPLICATIONS
    )


class _BatchedLinear(torch.autograd.Function):
    """`F.linear` with an axis of runs, with operands laid out as in `F.linear` in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        if bias is None:
            return torch.bmm(x, weight.mT)
        # baddbmm adds the bias inside the product, as F.linear does: adding it later rounds twice.
        return torch.baddbmm(bias.unsqueeze(-2), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        # The gradient of the weight is gradᵀ x, in this order and not (xᵀ grad)ᵀ, as in F.linear.
        return (
            grad @ weight if needs_x else None,
            grad.mT @ x if needs_weight else None,
            grad.sum(-2) if needs_bias and ctx.has_bias else None,
        )


class _BlockLinear(torch.autograd.Function):
    """`F.linear` whose backward pass makes the gradient contiguous before multiplying.

    The result is sliced and transposed afterwards, so the strides of the gradient depend on how
    many runs there are. The strides decide the kernel.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(x, rows)
        return F.linear(x, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, rows = ctx.saved_tensors
        needs_x, needs_rows = ctx.needs_input_grad
        grad = grad.contiguous()
        return grad @ rows if needs_x else None, grad.mT @ x if needs_rows else None


class _CacheLineAligned(torch.autograd.Function):
    """The identity, copying a tensor or its gradient unless it begins on a cache line."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x) if starts_on_cache_line(x) else x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad if starts_on_cache_line(grad) else grad.clone()


def starts_on_cache_line(x: Tensor) -> bool:
    """Return whether the tensor begins on a cache line. A compiler is told that it does.

    While a graph is traced, tensors have no addresses.
    """
    return torch.compiler.is_compiling() or x.data_ptr() % (CACHE_LINE_ELEMENTS * 4) == 0
