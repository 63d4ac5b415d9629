"""A step that is recorded once and then repeated: a CUDA graph. A small network's step costs its calls, and of a graph there is one.

What is recorded is the `update`: all of a step that follows when its batch is drawn, its rates are set and the method's `before_step` is over. It is
repeated on the memory that it was recorded on. So the batch is copied to where the recorded one lay, rates are tensors, and a method may be recorded
(`Method.unrecorded`) if what its update carries from step to step, or `before_step` changes, is written into tensors that stay where they are.

On a CPU, where there is no such graph, a tape does the same operation by operation. It gains nothing there but certainty: what it repeats wrongly a
graph would too, so tests and `qbench check` ask it which steps may be recorded.
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
from qbench.training.run import Run

BEFORE = 3
"""Steps taken as usual: the first ones make what the optimizer keeps, and compile."""
OPTIMIZERS = ("adamw", "sgd")
"""Those that take a rate, and count steps, in a tensor."""

ASKS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
)
"""`item`, `bool`, `float` and indexing by a mask: all must know what the device has come to."""

Found = tuple[dict[str, Tensor], Tensor | None]
"""Of an update: the loss's terms and the gradient's norm."""
Update = Callable[[Run, Batch], Found]


class Recorder(Protocol):
    def usual(self, f: Callable[[], Found]) -> Found:
        """Call f where it will be recorded, too."""

    def record(self, f: Callable[[], Found]) -> Found:
        """Call f, and note what it does. What it returns holds at every repetition what that came to."""

    def repeat(self) -> None: ...


class Graph:
    """By CUDA. Whatever is recorded runs on a stream of its own, beginning with the steps before: autograd goes back on the one that it came on."""

    def __init__(self, device: torch.device) -> None:
        self.graph, self.stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)

    def usual(self, f: Callable[[], Found]) -> Found:
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            found = f()
        here.wait_stream(self.stream)
        return found

    def record(self, f: Callable[[], Found]) -> Found:
        here, why = torch.cuda.current_stream(self.stream.device), None
        try:
            with torch.cuda.graph(self.graph, stream=self.stream):
                try:
                    found = f()
                except Exception as error:
                    why = error
                    raise
        except Exception as error:  # noqa: BLE001 - what torch says of a graph that breaks off is not why it does
            torch.cuda.set_stream(here)  # nor does it go back there
            raise why or error from None
        self.repeat()
        return found

    def repeat(self) -> None:
        self.graph.replay()


class Tape(TorchDispatchMode):
    """By noting every operation with what it was given and what it made, which stays where it is. It refuses what a graph would not hold, or would hold
    as it was when it was recorded: questions to the device, and what is brought there."""

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
        if func in ASKS:
            raise QbenchError(
                f"a step that asks for the value of a tensor ({func}) cannot be recorded"
            )
        if func is torch.ops.aten.lift_fresh.default:
            raise QbenchError(
                "a step that makes a tensor of Python's numbers cannot be recorded: make it before, and write into it"
            )
        made = func(*args, **(kwargs or {}))
        if any(
            isinstance(x, Tensor) and x.device.type != self.device
            for x in tree_leaves((args, kwargs, made))
        ):
            raise QbenchError(
                f"a step that looks at memory outside of its device ({func}) cannot be recorded"
            )
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def usual(self, f: Callable[[], Found]) -> Found:
        return f()

    def record(self, f: Callable[[], Found]) -> Found:
        with self:
            return f()

    @torch.no_grad()
    def repeat(self) -> None:
        for func, args, kwargs, made in self.calls:
            for before, now in zip(
                tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if (
                    isinstance(before, Tensor) and before.data_ptr() != now.data_ptr()
                ):  # or else a view, or made in place
                    before.copy_(now)


class Recorded:
    """A run's update: taken as usual a few times, then recorded, then repeated."""

    def __init__(self, run: Run, update: Update) -> None:
        assert run.optimizer is not None
        self.run, self.update, device = run, update, run.clock.device
        self.recorder: Recorder = Graph(device) if device.type == "cuda" else Tape(device)
        self.taken = 0
        self.batch: Batch | None = None
        self.found: Found = {}, None
        self.held: list[Tensor] = []
        """Numbers that the recorded update may read."""
        groups = run.optimizer.param_groups
        # On CUDA the kernels want rates in single precision; elsewhere they are read as the double that a step without a tape has.
        self.rates = torch.zeros(
            len(groups),
            dtype=torch.float32 if device.type == "cuda" else torch.float64,
            device=device,
        )
        for place, group in enumerate(groups):
            group |= {"lr": self.rates[place], "capturable": True}

    def set_rates(self, rates: Sequence[float]) -> None:
        self.rates.copy_(send(torch.tensor(rates, dtype=self.rates.dtype), self.rates.device))

    def __call__(self, batch: Batch) -> Found:
        own = self.bring(batch)
        self.taken += 1
        if self.taken <= BEFORE:
            return self.recorder.usual(lambda: self.update(self.run, own))
        if self.taken == BEFORE + 1:
            self.forget_gradients()
            self.found = self.recorder.record(lambda: self.update(self.run, own))
            self.held = list(batched_math.numbers.values())
        else:
            self.recorder.repeat()
        return self.found

    def bring(self, batch: Batch) -> Batch:
        """The batch where the first one lay."""
        if self.batch is None:
            self.batch = Batch(_kept(batch.inputs), _kept(batch.targets), batch.count)
        for kept, now in ((self.batch.inputs, batch.inputs), (self.batch.targets, batch.targets)):
            if kept is not None and now is not None:
                assert kept.shape == now.shape, "batches of one size"
                _once(kept).copy_(_once(now))
        return self.batch

    def forget_gradients(self) -> None:
        """Those of the step before, which are none of the record's."""
        assert self.run.optimizer is not None
        self.run.optimizer.zero_grad(set_to_none=True)

    def end(self) -> None:
        """Give back the memory that only a record holds."""
        self.forget_gradients()
        self.run.recorded = None


def _once(x: Tensor) -> Tensor:
    """What all runs see lies in memory once."""
    return x[0] if x.dim() and not x.stride(0) else x


def _kept(x: Tensor | None) -> Tensor | None:
    """Memory of its own for the same, laid out alike: a compiler compiles for strides."""
    if x is None:
        return None
    once = _once(x)
    return torch.empty_strided(once.shape, once.stride(), dtype=x.dtype, device=x.device).expand(
        x.shape
    )
