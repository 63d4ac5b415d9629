"""Step recording: a step that is recorded once and then repeated, on CUDA as a graph.

A small network's step is bound by the overhead of its calls, and a graph is one call. What is
recorded is the `update`: all of a step that follows when its batch is loaded, its learning rates
are set and the method's schedules are applied. It is repeated on the memory that it was recorded
on. So the batch is copied to where the recorded one lay, learning rates and scheduled numbers are
tensors, and what a method carries from step to step lies in `run.state`, which is updated in place
(`Method.batched`).

On a CPU, where there is no such graph, a tape repeats the same operations one by one. It gains
nothing there but certainty: what the tape repeats wrongly, a graph would repeat wrongly too. So
tests and `qbench check` ask the tape which steps may be recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qbench.api.batch import Batch, send
from qbench.errors import QbenchError
from qbench.numerics import batched_math
from qbench.training.run import TrainingRun

WARMUP_STEPS = 3
"""Steps that are taken normally: the first ones create the optimizer's state, and compile."""
OPTIMIZERS = ("adamw", "sgd")
"""Optimizers that take a learning rate, and count steps, in a tensor."""
DEVICE_QUESTIONS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
)
"""`item`, `bool`, `float` and indexing by a mask: they must wait for what the device computes."""

Result = tuple[dict[str, Tensor], Tensor | None]
"""What an update returns: the terms of the loss and the norm of the gradient."""
Update = Callable[[TrainingRun, Batch], Result]


class Recorder(Protocol):
    """Something that records what a function does, and repeats it."""

    def run_normally(self, f: Callable[[], Result]) -> Result:
        """Call `f` where it will be recorded."""

    def record(self, f: Callable[[], Result]) -> Result:
        """Call `f` and record what it does. Every repetition writes into the tensors it returns."""

    def repeat(self) -> None:
        """Do once more what was recorded."""


class CudaGraph:
    """Records by CUDA.

    Everything that is recorded runs on a stream of its own, and so do the steps before: autograd
    runs a backward operation on the stream of its forward operation.
    """

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def run_normally(self, f: Callable[[], Result]) -> Result:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = f()
        current.wait_stream(self.stream)
        return result

    def record(self, f: Callable[[], Result]) -> Result:
        current, reason = torch.cuda.current_stream(self.stream.device), None
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                try:
                    result = f()
                except Exception as error:
                    reason = error
                    raise
        except Exception as error:  # noqa: BLE001
            # A failed capture hides the original error and leaves its stream current: restore both.
            torch.cuda.set_stream(current)
            raise reason or error from None
        self.repeat()  # a capture executes nothing, so the step is taken by repeating it
        return result

    def repeat(self) -> None:
        self.graph.replay()


class OperationTape(TorchDispatchMode):
    """Records every operation with its arguments and results, which stay in memory.

    It refuses what a graph would not hold, or would hold as it was when it was recorded: questions
    to the device, and memory outside of the device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.device = device.type
        self.calls: list[tuple[Any, Sequence[Any], Mapping[str, Any], Any]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in DEVICE_QUESTIONS:
            raise QbenchError(
                f"a step that asks for the value of a tensor ({func}) cannot be recorded"
            )
        if func is torch.ops.aten.lift_fresh.default:
            raise QbenchError(
                "a step that makes a tensor of Python numbers cannot be recorded: "
                "return them from schedules, or write into a tensor of run.state"
            )
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if any(x.device.type != self.device for x in tensors):
            raise QbenchError(
                f"a step that uses memory outside of its device ({func}) cannot be recorded"
            )
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def run_normally(self, f: Callable[[], Result]) -> Result:
        return f()

    def record(self, f: Callable[[], Result]) -> Result:
        with self:
            return f()

    @torch.no_grad()
    def repeat(self) -> None:
        for func, args, kwargs, recorded in self.calls:
            again = func(*args, **kwargs)
            for before, now in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                # The same memory means a view, or an operation in place: nothing is to be copied.
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():
                    before.copy_(now)


class RecordedStep:
    """A run's update: taken normally a few times, then recorded, then repeated."""

    def __init__(self, run: TrainingRun, update: Update) -> None:
        assert run.optimizer is not None
        self.run, self.update, device = run, update, run.network.device
        self.recorder: Recorder = (
            CudaGraph(device) if device.type == "cuda" else OperationTape(device)
        )
        self.taken = 0
        self.batch: Batch | None = None
        self.result: Result = {}, None
        self.constants: list[Tensor] = []
        """Cached constants that the recorded update may read: the cache must not free them."""
        groups = run.optimizer.param_groups
        # CUDA's kernels want learning rates in single precision. Elsewhere they are read as the
        # double that a step without a recording has.
        dtype = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = torch.zeros(len(groups), dtype=dtype, device=device)
        for place, group in enumerate(groups):
            group |= {"lr": self.rates[place], "capturable": True}

    def set_learning_rates(self, rates: Sequence[float]) -> None:
        """Write the learning rates of all parameter groups to where the recorded update reads."""
        self.rates.copy_(send(torch.tensor(rates, dtype=self.rates.dtype), self.rates.device))

    def __call__(self, batch: Batch) -> Result:
        fixed = self.copy_batch(batch)
        self.taken += 1
        if self.taken <= WARMUP_STEPS:
            return self.recorder.run_normally(lambda: self.update(self.run, fixed))
        if self.taken == WARMUP_STEPS + 1:
            self.drop_gradients()
            self.result = self.recorder.record(lambda: self.update(self.run, fixed))
            self.constants = list(batched_math.constant_cache.values())
        else:
            self.recorder.repeat()
        return self.result

    def copy_batch(self, batch: Batch) -> Batch:
        """Copy a batch to where the first one lay, and return it."""
        if self.batch is None:
            self.batch = Batch(_empty_copy(batch.inputs), _empty_copy(batch.targets), batch.count)
        for fixed, new in (
            (self.batch.inputs, batch.inputs),
            (self.batch.targets, batch.targets),
        ):
            if fixed is not None and new is not None:
                assert fixed.shape == new.shape, "batches of one size"
                _stored_once(fixed).copy_(_stored_once(new))
        return self.batch

    def drop_gradients(self) -> None:
        """Drop the gradients of the step before: their memory is not part of the recording."""
        assert self.run.optimizer is not None
        self.run.optimizer.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Give back the memory that only the recording holds."""
        self.drop_gradients()
        self.run.recording = None


def _stored_once(x: Tensor) -> Tensor:
    """Return a tensor without the axis along which all runs see the same memory."""
    return x[0] if x.dim() and not x.stride(0) else x


def _empty_copy(x: Tensor | None) -> Tensor | None:
    """Return new memory laid out like `x`: a compiler compiles for strides."""
    if x is None:
        return None
    once = _stored_once(x)
    memory = torch.empty_strided(once.shape, once.stride(), dtype=x.dtype, device=x.device)
    return memory.expand(x.shape)
