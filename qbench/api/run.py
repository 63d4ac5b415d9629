"""Run: what a training run offers to a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from qbench.quant.layers import QuantLayer
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import WeightStack

if TYPE_CHECKING:
    from qbench.api.batch import Batch
    from qbench.runs.config import Recipe


class Run(ABC):
    """A training run as a method sees it: one run, or several that are stacked.

    Stacked runs train together, with one more axis in front of every tensor. Code that reduces
    over trailing axes, and uses `total` and `mean` where it reduces over everything, need not know.
    """

    step: int
    """Index of the step that is being taken, from 0; equal to `steps` in `finalize`."""
    steps: int
    """Number of steps of the whole run."""
    weights: Sequence[WeightStack]
    """The quantized weights: sites of one shape under one quantizer."""
    inputs: Mapping[str, Quantizer]
    """The quantizers of layer inputs, by the name of the layer."""
    reference: nn.Module | None
    """A frozen copy of the full-precision start; None when training from scratch."""
    state: dict[str, Tensor]
    """Tensors of the method's own, which are saved, resumed and stacked by the core. Create one
    when it is first needed, shaped like a tensor of the run, and update it in place."""
    run_axes: int
    """Number of axes in front that belong to stacked runs: 0 or 1."""

    @property
    @abstractmethod
    def recipe(self) -> Recipe:
        """The recipe. Of stacked runs it is the first one's: read it in `schedules`."""

    @property
    @abstractmethod
    def progress(self) -> float:
        """Fraction of the run that is done: 0 at the first step."""

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """This step's learning rate by the recipe, before `schedules` scales it."""

    @property
    @abstractmethod
    def labels_per_step(self) -> int:
        """Independent labels in a batch: what an empirical Fisher must be multiplied by."""

    @abstractmethod
    def quantizers(self) -> Iterator[Quantizer]:
        """Yield the quantizers of all weights, then those of all inputs."""

    @abstractmethod
    def scalar(self, name: str, like: Tensor) -> Tensor:
        """Return a number of `schedules`, shaped to multiply `like`; one for each stacked run."""

    @abstractmethod
    def numbers(self, name: str) -> list[float]:
        """Return the same as Python numbers, one a run: to log them, or for what all runs share."""

    @abstractmethod
    def loss(self, output: Any, batch: Batch) -> Tensor:
        """Return what the board minimises: the task's loss, or the distance from the reference."""

    @abstractmethod
    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Quantize the weights, run forward and backward, and leave gradients in `.grad`.

        Returns:
            The mean of each term of the loss, detached.
        """

    @abstractmethod
    def probe_batches(self, count: int) -> list[Batch]:
        """Return training batches from outside of the data order."""

    @abstractmethod
    def probe_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss in float32, twice differentiable, and the quantized tensors by site.

        `torch.autograd.grad(loss, tensors[name], create_graph=True)` is the gradient in the
        quantized tensor of a site.
        """

    @abstractmethod
    def curvature(self, stack: WeightStack, batches: Iterable[Batch]) -> Tensor:
        """Return the diagonal of the loss's Hessian in the weights of a stack.

        It is exact where the task knows it, and an empirical Fisher over `batches` otherwise.

        Raises:
            UsageError: The task does not know it, and there are no batches.
        """

    @abstractmethod
    def input_moments(self, layers: Sequence[QuantLayer], batches: Sequence[Batch]) -> list[Tensor]:
        """Return E[x xᵀ] of each layer's inputs in the full-precision network.

        It is exact where the task knows it. Where it is measured, it is so up to a factor.
        """

    @abstractmethod
    def second_moment(self, parameter: nn.Parameter) -> Tensor | None:
        """Return the optimizer's running mean of squared gradients, if it keeps one."""

    @abstractmethod
    def total(self, x: Tensor) -> Tensor:
        """Return the sum over all axes but that of stacked runs."""

    @abstractmethod
    def mean(self, x: Tensor) -> Tensor:
        """Return the mean over all axes but that of stacked runs."""

    @abstractmethod
    def sum_over_processes(self, x: Tensor) -> Tensor:
        """Add up what each process has gathered from its part of the batch."""
