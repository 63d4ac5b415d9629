"""Stacked runs: one run with an axis in front of every tensor, made of runs that could train alone.

A step of a small network is bound by the overhead of its calls and not by its arithmetic. So runs
that differ in the seed, in numbers of the recipe or of the method, or in the width of their
integers take their steps together. Each is prepared as if it trained alone. Then its tensors move
into rows of larger tensors, and its own become views of these rows: the loop steps the stacked run,
and whatever is asked of one run (its checkpoint, its score) is asked of that run, which sees its
numbers as they are now.

On the CPU each run gets, bit for bit, what it gets alone; on a GPU it does to within
`GPU_TOLERANCE`. Quantizers reduce over trailing axes. Products are those of
`numerics.batched_math`. Norms are taken by row. The optimizer steps several rows in one call only
where a row fills whole vectors, because the last elements of a row that does not are computed in
another order.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qbench.api.method import Method
from qbench.errors import QbenchError
from qbench.execution.row_optimizer import RowOptimizer
from qbench.numerics.batched_math import per_run_constant
from qbench.quant.levels import BatchedLevels, Levels
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import WeightStack
from qbench.training.quantized_network import QuantizedNetwork
from qbench.training.run import TrainingRun

GPU_TOLERANCE = 1e-3
"""What the losses of a run's first steps may differ by on a GPU, alone and stacked, as a share of
them. Nobody promises there in what order a batch of products adds. `make gpu` measures it."""

Rows = dict[int, list[nn.Parameter]]
"""The runs' own parameters by the identity of the stacked parameter."""


def stack_runs(runs: Sequence[TrainingRun]) -> TrainingRun | None:
    """Return one run made of several of one kind, or None if their task cannot be stacked.

    From then on the tensors of `runs` are views of its own.
    """
    first, rows = runs[0], Rows()
    # Layers hold on to the quantizers of their inputs, which are stacked below and not here.
    shared = {id(quantizer): quantizer for quantizer in first.inputs.values()}
    model = stack_modules([run.model for run in runs], rows, shared, buffers=False)
    problem = first.problem.stack([run.problem for run in runs], model)
    if problem is None:
        return None
    method = _common_method(runs)

    def stack_quantizers(quantizers: Sequence[Quantizer]) -> Quantizer:
        stacked: Quantizer = stack_modules(quantizers, rows, {id(first.method): method})
        stacked.site = replace(stacked.site, shape=(len(runs), *stacked.site.shape))
        stacked.run_axes = 1
        _stack_numbers(stacked, quantizers)
        return stacked

    network, layers = QuantizedNetwork(problem), problem.layers()
    for place, weights in enumerate(first.weights):
        quantizer = stack_quantizers([run.weights[place].quantizer for run in runs])
        network.weights.append(
            WeightStack(weights.names, [layers[name] for name in weights.names], quantizer)
        )
    for name in first.inputs:
        network.inputs[name] = stack_quantizers([run.inputs[name] for run in runs])
    network.connect_quantizers()
    _share_clock(network, runs)
    return _make_stacked_run(network, method, runs, rows)


def _make_stacked_run(
    network: QuantizedNetwork, method: Method, runs: Sequence[TrainingRun], rows: Rows
) -> TrainingRun:
    first = runs[0]
    recipes = [run.recipe for run in runs]
    stacked = TrainingRun(network, method, first.seed, recipes, stacked=runs)
    stacked.distills = first.distills
    stacked.passes.micro_batches = first.passes.micro_batches
    stacked.passes.precision = first.passes.precision
    if first.distills:
        references = [run.reference for run in runs]
        stacked.reference = stack_modules(references, {}, {}, buffers=False)
    else:
        stacked.reference = first.reference  # hooks only ask whether there is one
    stacked.state = {name: torch.stack([run.state[name] for run in runs]) for name in first.state}
    optimizer = RowOptimizer(stacked, rows)
    stacked.optimizer, stacked.parameters = optimizer, optimizer.parameters
    return stacked


def _share_clock(network: QuantizedNetwork, runs: Sequence[TrainingRun]) -> None:
    """Let the runs read the step, and the slice of the batch, from the stacked run's tensors."""
    for run in runs:
        run.network.clock, run.network.batch_slice = network.clock, network.batch_slice
        for quantizer in run.quantizers():
            quantizer.step = network.clock
        for quantizer in run.inputs.values():
            quantizer.batch_slice = network.batch_slice


class DifferingNumber:
    """Stands for a hyper-parameter in which stacked runs differ, in the method that they share.

    It is not zero, because runs that differ in that are never stacked. Any other use is an error:
    the method must return the number from `schedules`. The runs then train one by one.
    """

    def __init__(self, method: str, name: str) -> None:
        self.message = (
            f"method {method} reads {name}, in which stacked runs differ, outside of schedules: "
            "return it from schedules, and read it with run.scalar"
        )

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) or other == 0:
            return False
        raise QbenchError(self.message)

    __hash__ = None  # type: ignore[assignment]

    def _refuse(self, *_: object) -> Any:
        raise QbenchError(self.message)

    __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = __index__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _refuse


def _common_method(runs: Sequence[TrainingRun]) -> Method:
    """Return a copy of the method without the numbers in which the runs differ."""
    method = copy.copy(runs[0].method)
    for name, value in method.params.items():
        if any(getattr(run.method, name) != value for run in runs):
            setattr(method, name, DifferingNumber(method.name, name))
    return method


def _stack_numbers(stacked: Quantizer, quantizers: Sequence[Quantizer]) -> None:
    """Turn numbers that the quantizers keep, and differ in, into tensors that broadcast."""
    axes, device = len(stacked.site.scale_shape), stacked.key.device
    for name, value in vars(quantizers[0]).items():
        values = [vars(quantizer)[name] for quantizer in quantizers]
        if isinstance(value, Levels):
            if any(levels != value for levels in values):
                setattr(stacked, name, BatchedLevels.of(values, axes, device))
        elif isinstance(value, int | float) and any(number != value for number in values):
            setattr(stacked, name, per_run_constant(values, axes, device))


def stack_modules(
    modules: Sequence[Any], rows: Rows, known: dict[int, Any], buffers: bool = True
) -> Any:
    """Return a copy of the first module whose tensors are those of all modules, stacked.

    The modules' own tensors become views of its rows.

    Args:
        modules: Modules that are alike.
        rows: Is filled with the modules' parameters, by the identity of the stacked one.
        known: Objects that the copy shares, or has another object for, by identity.
        buffers: Whether buffers are stacked as well. Those with fewer than two axes are
            shared.
    """
    stacked = copy.deepcopy(modules[0], dict(known))
    parts = [dict(module.named_modules()) for module in modules]
    for path, module in stacked.named_modules():
        own = [part[path] for part in parts]
        for name, tensor in list(module.named_parameters(recurse=False)):
            parameters = [getattr(one, name) for one in own]
            whole = nn.Parameter(
                torch.stack([p.detach() for p in parameters]), requires_grad=tensor.requires_grad
            )
            setattr(module, name, whole)
            rows[id(whole)] = parameters
            for place, p in enumerate(parameters):
                p.data = whole.data[place]
        for name, tensor in list(module.named_buffers(recurse=False)) if buffers else ():
            values: Tensor = (
                torch.stack([getattr(one, name) for one in own]) if tensor.dim() > 1 else tensor
            )
            setattr(module, name, values)
            for place, one in enumerate(own):
                setattr(one, name, values[place] if tensor.dim() > 1 else values)
    return stacked
