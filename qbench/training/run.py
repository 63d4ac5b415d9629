"""TrainingRun: one training run, or several stacked runs, as the loop trains it.

It implements `api.Run` from a quantized network and a forward/backward part. A stacked run has
its runs in `stacked`; their tensors are views of its own, so that each of them can be asked for its
score or its checkpoint as if it had trained alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from qbench.api.batch import Batch, send
from qbench.api.method import Method
from qbench.api.run import Run
from qbench.numerics.batched_math import per_run, runs_first
from qbench.quant.layers import QuantLayer
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import WeightStack
from qbench.runs.config import Recipe
from qbench.training.forward_backward import ForwardBackward
from qbench.training.process_team import ProcessTeam
from qbench.training.quantized_network import QuantizedNetwork
from qbench.training.schedules import learning_rate_factor

if TYPE_CHECKING:
    from qbench.api.problem import Problem


class StackedOptimizer(Protocol):
    """An optimizer over the rows of stacked runs, which the loop uses like one of torch's."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def step(self) -> None: ...

    def moment(self, parameter: nn.Parameter, name: str) -> Tensor | None:
        """Return what the optimizer keeps of a stacked parameter under a name."""

    def return_state(self, place: int, member: TrainingRun) -> None:
        """Give one of the stacked runs its optimizer's state."""


class StepRecording(Protocol):
    """An update of the run that is recorded once and then repeated."""

    def set_learning_rates(self, rates: Sequence[float]) -> None: ...

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None]: ...

    def end(self) -> None: ...


class TrainingRun(Run):
    """One training run, or several stacked runs.

    Args:
        network: The model with the method's quantizers.
        method: The method. Where stacked runs differ in a hyper-parameter, it has no value here.
        seed: The run's seed; of stacked runs the first one's.
        recipes: The recipe, or one for each stacked run.
        team: The processes that train the run together; None where one process does.
        stacked: The runs that are stacked in this one.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        method: Method,
        seed: int,
        recipes: Sequence[Recipe],
        team: ProcessTeam | None = None,
        stacked: Sequence[TrainingRun] = (),
    ) -> None:
        self.network, self.method, self.seed, self.team = network, method, seed, team
        self.recipes, self.stacked = tuple(recipes), list(stacked)
        self.step, self.steps = 0, self.recipe.steps
        self.run_axes = 1 if self.stacked else 0
        self.state: dict[str, Tensor] = {}
        self.reference: nn.Module | None = None
        self.distills = False
        """Whether the board has every method imitate the reference."""
        self.optimizer: torch.optim.Optimizer | StackedOptimizer | None = None
        self.parameters: list[nn.Parameter] = []
        """Everything that is trained: the model's parameters and the quantizers'."""
        self.scheduled: dict[str, list[float]] = {}
        """This step's numbers of `Method.schedules`, one for each run."""
        self.recording: StepRecording | None = None
        """What repeats the steps, if they are recorded."""
        self.passes = ForwardBackward(self)

    # ---- the network ----

    @property
    def problem(self) -> Problem:
        return self.network.problem

    @property
    def model(self) -> nn.Module:
        return self.network.model

    @property
    def weights(self) -> list[WeightStack]:  # type: ignore[override]
        return self.network.weights

    @property
    def inputs(self) -> dict[str, Quantizer]:  # type: ignore[override]
        return self.network.inputs

    def quantizers(self) -> Iterator[Quantizer]:
        return self.network.quantizers()

    # ---- where it is ----

    def begin_step(self, step: int) -> None:
        """Set the step, of stacked runs too; they share the tensor that holds it."""
        self.network.clock.fill_(step)
        for run in (self, *self.stacked):
            run.step = step

    @property
    def runs(self) -> list[TrainingRun]:
        """The stacked runs, or the run itself."""
        return self.stacked or [self]

    @property
    def recipe(self) -> Recipe:
        return self.recipes[0]

    @property
    def progress(self) -> float:
        return self.step / self.steps

    @property
    def learning_rate(self) -> float:
        # Sampled in the middle of the step, so that a warm-up does not begin with a rate of 0.
        recipe, middle = self.recipe, (self.step + 0.5) / self.steps
        factor = learning_rate_factor(
            recipe.schedule, middle, recipe.warmup, recipe.decay, recipe.floor
        )
        return recipe.lr * factor

    @property
    def labels_per_step(self) -> int:
        return self.problem.work.labels

    # ---- the method's schedules ----

    def apply_schedules(self) -> None:
        """Ask the method for this step's numbers, once a run, and write them into tensors."""
        if type(self.method).schedules is Method.schedules:
            return
        asked = [one.method.schedules(one) for one in self.runs]
        if self.stacked:
            for one, numbers in zip(self.stacked, asked, strict=True):
                one.scheduled = {name: [float(number)] for name, number in numbers.items()}
        for name in asked[0]:
            values = [float(numbers[name]) for numbers in asked]
            if self.scheduled.get(name) != values:
                self._write_scalar(name, values)
            self.scheduled[name] = values

    def _write_scalar(self, name: str, values: list[float]) -> None:
        """Write a number, or one for each stacked run, into the tensor of that name.

        The tensor stays where it is, because recorded steps read it there. What stacked runs see
        are its rows.
        """
        scalars, device = self.network.scalars, self.network.device
        if name not in scalars:
            shape = (len(values),) if self.stacked else ()
            scalars[name] = torch.zeros(shape, dtype=torch.float32, device=device)
            for place, one in enumerate(self.stacked):
                one.network.scalars[name] = scalars[name][place]
        if len(set(values)) == 1:
            scalars[name].fill_(values[0])
        else:
            scalars[name].copy_(send(runs_first(values, 1), device))

    def scalar(self, name: str, like: Tensor) -> Tensor:
        number = self.network.scalars[name]
        return number.view(-1, *[1] * (like.dim() - 1)) if number.dim() else number

    def numbers(self, name: str) -> list[float]:
        return self.scheduled[name]

    # ---- data ----

    def probe_batches(self, count: int) -> list[Batch]:
        return [self.batch(-1 - index) for index in range(count)]

    def batch(self, index: int) -> Batch:
        """Return batch `index` of the data order; stacked runs of one seed share theirs."""
        if not self.stacked:
            return self.problem.batch(index)
        problems = {one.seed: one.problem for one in self.stacked}
        if len(problems) > 1:
            # Where the task can load samples by index, all runs' batches are one call.
            indices = {seed: problem.sample_indices(index) for seed, problem in problems.items()}
            rows = [row for one in self.stacked if (row := indices[one.seed]) is not None]
            if rows:
                return self.problem.load(torch.stack(rows))
        batches = {seed: problem.batch(index) for seed, problem in problems.items()}
        return Batch.stack([batches[one.seed] for one in self.stacked])

    def pair_with_batches(self, batch: Batch) -> Iterator[tuple[TrainingRun, Batch]]:
        """Yield the runs one by one, with their batches."""
        if not self.stacked:
            yield self, batch
        for place, one in enumerate(self.stacked):
            yield one, batch.row(place)

    # ---- losses and gradients ----

    def loss(self, output: Any, batch: Batch) -> Tensor:
        if self.distills:
            return self._distance_from_reference(output, batch)
        return self.problem.loss(output, batch)

    def _distance_from_reference(self, output: Any, batch: Batch) -> Tensor:
        assert self.reference is not None
        with torch.no_grad():
            reference = self.reference(batch.inputs)

        def distances(output: Tensor, reference: Tensor) -> Tensor:
            return self.problem.distances(output, reference, batch)

        return self.mean(per_run(distances, output, self.run_axes, reference))

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        return self.passes.backward(batch)

    def probe_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.passes.probe_loss(batch)

    def curvature(self, stack: WeightStack, batches: Iterable[Batch]) -> Tensor:
        return self.passes.curvature(stack, batches)

    def input_moments(self, layers: Sequence[QuantLayer], batches: Sequence[Batch]) -> list[Tensor]:
        return self.passes.input_moments(layers, batches)

    def second_moment(self, parameter: nn.Parameter) -> Tensor | None:
        if self.optimizer is None:
            return None
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            return self.optimizer.moment(parameter, "exp_avg_sq")
        moment = self.optimizer.state.get(parameter, {}).get("exp_avg_sq")
        return moment if isinstance(moment, Tensor) else None

    # ---- reductions ----

    def total(self, x: Tensor) -> Tensor:
        return x.flatten(self.run_axes).sum(-1)

    def mean(self, x: Tensor) -> Tensor:
        return x.flatten(self.run_axes).mean(-1)

    def sum_over_processes(self, x: Tensor) -> Tensor:
        return self.team.sum(x) if self.team else x

    # ---- stacked runs ----

    def return_state(self) -> None:
        """Give each stacked run what its views do not show, so that it can go on alone.

        That is the state of the optimizer and of the method. A run that is not stacked has its own.
        """
        if not self.stacked:
            return
        assert self.optimizer is not None
        assert not isinstance(self.optimizer, torch.optim.Optimizer)
        for place, one in enumerate(self.stacked):
            one.state = {name: tensor[place].clone() for name, tensor in self.state.items()}
            self.optimizer.return_state(place, one)

    def tensors_to_agree(self) -> Iterator[Tensor]:
        """Yield every tensor that must be the same in all processes of the run."""
        modules: Iterable[nn.Module] = (*self.quantizers(), self.model)
        for module in modules:
            yield from (x.detach() for x in (*module.parameters(), *module.buffers()))
        yield self.network.clock
        yield from self.state.values()


def scheduled_scale(scheduled: Mapping[str, list[float]], group: str, place: int) -> float:
    """Return what the method's schedules multiply a parameter group's learning rate by."""
    return scheduled[group][place] if group in scheduled else 1.0
