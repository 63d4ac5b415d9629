"""Run: one training run as a method sees it, with the method's quantizers attached to the problem's model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qbench.api.batch import Batch, send
from qbench.api.problem import Problem
from qbench.numerics.batched_math import by_run, column, one_each
from qbench.quant.grid import Grid, widen
from qbench.quant.layers import QuantLayer
from qbench.quant.quantizer import Quantizer
from qbench.quant.weight_stack import Bundle, beside
from qbench.runs.config import Recipe
from qbench.training.forward_backward import _keep, _numbered, add_up, take_gradients
from qbench.training.process_team import Team
from qbench.training.quantized_network import INPUT, _look

if TYPE_CHECKING:
    from qbench.api.method import Method
    from qbench.execution.row_optimizer import Pieces
    from qbench.execution.step_recording import Recorded

__all__ = ["Run"]


@dataclass
class Run:
    """What a run offers to a method."""

    problem: Problem
    method: Method
    seed: int
    steps: int
    bundles: list[Bundle] = field(default_factory=list)
    inputs: dict[str, Quantizer] = field(default_factory=dict)
    """Quantizers of the layers' inputs, by the name of the layer."""
    declared: list[str] = field(default_factory=list)
    """The sites that the board quantizes."""
    declined: list[str] = field(default_factory=list)
    """Those that the method leaves in full precision."""
    reference: nn.Module | None = None
    """The frozen full-precision network that the run started from; None from scratch."""
    distills: bool = False
    """Whether the board has everybody imitate it."""
    step: int = 0
    lr_scale: dict[str, float | list[float]] = field(default_factory=dict)
    """Multipliers of the learning rate by parameter group, one for all runs side by side or one each; read again each step."""
    optimizer: torch.optim.Optimizer | Pieces | None = None
    parameters: list[nn.Parameter] = field(default_factory=list)
    """All that is trained, the model's and the quantizers'."""
    accumulate: int = 1
    autocast: torch.dtype | None = None
    team: Team | None = None
    """The processes that train it together; None where one does."""
    blank: nn.Module | None = None
    """Of a run whose network is divided among them, on the first one: a network to ship it in."""
    recipes: tuple[Recipe, ...] = ()
    """Its recipe, or that of each run side by side."""
    members: list[Run] = field(default_factory=list)
    """The runs side by side in this one, each as if it were alone, on the same memory; none in a run that is alone."""

    def __post_init__(self) -> None:
        self.network: nn.Module = self.problem.model
        """The model as training calls it: itself, or compiled."""
        self.compiled: Callable[[Any], Any] | None = None
        """`output` by what training has compiled, if it has."""
        self.graph: Callable[[Batch], dict[str, Tensor]] | None = None
        """`terms` as one graph, if a step is one pass."""
        self.recorded: Recorded | None = None
        """What repeats its steps, if they are recorded."""
        self.clock = torch.zeros(
            (), dtype=torch.int64, device=next(self.problem.model.parameters()).device
        )
        """The step as a tensor, which every quantizer's draws are keyed by."""
        self.part = torch.tensor([0, 1], device=self.clock.device)
        """Of the batch in the network: its first sample and how many it has. Quantizers of inputs draw by it."""

    def begin(self, step: int) -> None:
        self.step = step
        self.clock.fill_(step)

    @property
    def divided(self) -> bool:
        """Whether the processes of the run each hold a part of its weights."""
        return self.team is not None and self.team.divided

    @property
    def recipe(self) -> Recipe:
        """Its recipe; of runs side by side the first's, for what they have in common."""
        return self.recipes[0]

    @property
    def runs(self) -> list[Run]:
        """The runs side by side, or itself."""
        return self.members or [self]

    def own(self, name: str) -> list[float]:
        """A hyper-parameter of the method's in which runs side by side may differ: the value of each."""
        return [getattr(one.method, name) for one in self.runs]

    def number(self, each: Sequence[float], x: Tensor) -> float | Tensor:
        """Numbers, one of each run, as a factor of a tensor that has the runs' axis in front, if there is one."""
        return each[0] if len(set(each)) == 1 else one_each(each, x.dim(), x.device)

    def write(self, each: Sequence[float], x: Tensor) -> None:
        """The same into a tensor that stays where it is, as steps that are recorded want it."""
        if len(set(each)) == 1:
            x.fill_(each[0])
        else:
            x.copy_(send(column(each, x.dim()), x.device))

    @property
    def lead(self) -> int:
        """Axes in front of everything: one where runs train side by side."""
        return 1 if self.members else 0

    def each(self, batch: Batch) -> Iterator[tuple[Run, Batch]]:
        """The runs one by one, with their batches: for what is done too seldom to be done for all at once."""
        if not self.members:
            yield self, batch
        for place, member in enumerate(self.members):
            member.begin(self.step)
            yield member, batch.of(place)

    def total(self, x: Tensor) -> Tensor:
        """The sum over all axes but that of the runs."""
        return x.flatten(self.lead).sum(-1)

    def mean(self, x: Tensor) -> Tensor:
        return x.flatten(self.lead).mean(-1)

    def see_part(self, first: int, count: int) -> None:
        self.part[0].fill_(first)
        self.part[1].fill_(count)

    @property
    def progress(self) -> float:
        """The fraction of the run that is done, 0 at the first step."""
        return self.step / self.steps

    @property
    def model(self) -> nn.Module:
        return self.problem.model

    @property
    def labels_per_step(self) -> int:
        """Independent labels in a step: what an empirical Fisher must be multiplied by."""
        return self.problem.labels_per_step

    def quantizers(self) -> Iterator[Quantizer]:
        yield from (bundle.quantizer for bundle in self.bundles)
        yield from self.inputs.values()

    def second_moment(self, parameter: nn.Parameter) -> Tensor | None:
        """The optimizer's running mean of the squared gradient, where it keeps one."""
        from qbench.execution.row_optimizer import Pieces

        optimizer = self.optimizer
        if isinstance(optimizer, Pieces):
            return optimizer.moment(parameter, "exp_avg_sq")
        moment = optimizer.state.get(parameter, {}).get("exp_avg_sq") if optimizer else None
        return moment if isinstance(moment, Tensor) else None

    @property
    def objective(self) -> str:
        return "distance" if self.distills else "task"

    def loss(self, output: Any, batch: Batch) -> Tensor:
        """What the board has everybody minimise: the task's loss, or the distance from the reference."""
        return self.distance(output, batch) if self.distills else self.problem.loss(output, batch)

    def distance(self, output: Any, batch: Batch) -> Tensor:
        """From the outputs of the reference, which a run from scratch does not have; labels are not used."""
        assert self.reference is not None
        with torch.no_grad():
            wanted = self.reference(batch.inputs)

        def distances(output: Tensor, wanted: Tensor) -> Tensor:
            return self.problem.distances(output, wanted, batch)

        return self.mean(by_run(distances, output, self.lead, wanted))

    def probe_batches(self, count: int) -> list[Batch]:
        """Training data outside the data order."""
        return [self.batch(-1 - index) for index in range(count)]

    def batch(self, index: int) -> Batch:
        """Batch `index` of the data order; runs of one seed side by side see one and the same."""
        if not self.members:
            return self.problem.batch(index)
        problems = {member.seed: member.problem for member in self.members}
        drawn = (
            {seed: problem.drawn(index) for seed, problem in problems.items()}
            if len(problems) > 1
            else {}
        )
        rows = [found for member in self.members if (found := drawn.get(member.seed)) is not None]
        if rows:
            return self.problem.batch_of(torch.stack(rows))
        made = {seed: problem.batch(index) for seed, problem in problems.items()}
        return Batch.beside([made[member.seed] for member in self.members])

    def output(self, inputs: Any) -> Any:
        """The network's output, its weights quantized on the way."""
        self.hand_out()
        output = self.model(inputs)
        self.release()
        return output

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """The losses, weights quantized on the way."""
        self.hand_out()
        terms = self.method.losses(self, self.model(batch.inputs), batch)
        self.release()
        return terms

    def hand_out(self) -> None:
        with torch.autocast(self.clock.device.type, enabled=False):
            for bundle in self.bundles:
                bundle.hand_out()

    def release(self) -> None:
        for bundle in self.bundles:
            bundle.release()

    def output_in_parts(self, inputs: Any) -> Any:
        """The same by what quantizes and computes in micro-batches."""
        for bundle in self.bundles:
            bundle.refresh()
        output = self.network(inputs)
        self.release()
        return output

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Quantize, then forward and backward in micro-batches. Gradients stay in `.grad`; returns the mean of each term."""
        if self.graph is not None:
            self.see_part(0, batch.count)
            with self.casting():
                terms = self.graph(batch)
            sum(term.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
            return {name: term.detach() for name, term in terms.items()}
        for bundle in self.bundles:
            bundle.refresh()
        before, totals = take_gradients(self), dict[str, Tensor]()
        parts = (
            self.team.parts(batch, self.accumulate)
            if self.team
            else _numbered(batch.split(self.accumulate, self.lead))
        )
        for first, part in parts:
            share = part.count / batch.count
            self.see_part(first, part.count)
            with self.casting():
                output = self.network(part.inputs)
                terms = self.method.losses(self, output, part)
            (sum(term.sum() for term in terms.values()) * share).backward()  # type: ignore[union-attr]
            for name, term in terms.items():
                value = term.detach() * share
                totals[name] = totals[name] + value if name in totals else value
        self.see_part(0, batch.count)
        add_up(self, before, totals)
        for bundle in self.bundles:
            bundle.pull_back()
        return totals

    def casting(self) -> torch.autocast:
        """The precision that networks compute in."""
        return torch.autocast(
            self.clock.device.type, self.autocast, enabled=self.autocast is not None
        )

    def everywhere(self, x: Tensor) -> Tensor:
        """The sum of what each process of the run has gathered from its part of a batch: what `losses` sees is a part."""
        return self.team.total(x) if self.team else x

    def probe_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss as it is trained, in float32, eager and twice differentiable; by site, the quantized tensors it was computed with.

        `torch.autograd.grad(loss, made[name], create_graph=True)` is the gradient in a site's quantized tensor.
        """
        layers = self.problem.layers()
        made: dict[str, Tensor] = {}
        for name, quantizer in self.inputs.items():
            layers[name].see_input_through(_keep(quantizer, made, name + INPUT))
        for bundle in self.bundles:
            bundle.refresh(bundle.quantizer)
            made |= {
                name: layer.effective
                for name, layer in zip(bundle.names, bundle.layers, strict=True)
            }
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(self.clock.device.type, enabled=False):
            loss = self.loss(self.model(batch.inputs), batch)
        for bundle in self.bundles:
            bundle.release()
        for name, quantizer in self.inputs.items():
            layers[name].see_input_through(quantizer)
        return loss, made

    def curvature(self, bundle: Bundle, batches: Iterable[Batch]) -> Tensor:
        """The diagonal of the loss's Hessian in a bundle's weights: exact where the task knows it, an empirical Fisher elsewhere."""
        exact = [self.problem.hessian_diagonal(layer) for layer in bundle.layers]
        if all(h is not None for h in exact):
            return beside([h for h in exact if h is not None])
        total = torch.zeros_like(bundle.stack())
        weights = [layer.weight for layer in bundle.layers]
        for batch in batches:
            loss = self.problem.loss(self.model(batch.inputs), batch)
            grads = torch.autograd.grad(loss.sum(), weights)
            total += beside(
                [
                    g.reshape(layer.matrix().shape)
                    for g, layer in zip(grads, bundle.layers, strict=True)
                ]
            ).square_()
        return total * self.labels_per_step

    def calibrate(self, batches: Iterable[Batch]) -> None:
        """Show every quantizer of an input its tensor, in a network whose weights are snapped and whose inputs are not."""
        if not self.inputs:
            return
        layers = self.problem.layers()
        with self.shipped(), torch.no_grad():
            for name, quantizer in self.inputs.items():
                quantizer.forget()
                layers[name].see_input_through(_look(quantizer))
            for batch in batches:
                self.model(batch.inputs)
        for name, quantizer in self.inputs.items():
            layers[name].see_input_through(quantizer)

    @contextmanager
    def shipped(self) -> Iterator[None]:
        """The network as it would ship: eval mode, weights and inputs snapped (eagerly: a compiler may fuse a product and a sum)."""
        with self.evaluating(), torch.no_grad():
            for bundle in self.bundles:
                bundle.refresh(bundle.quantizer)
            yield

    @contextmanager
    def latent(self) -> Iterator[None]:
        """The network in full precision, on the latent weights."""
        layers = self.problem.layers()
        with self.evaluating(), torch.no_grad():
            for name in self.inputs:
                layers[name].see_input_through(None)
            yield
        for name, quantizer in self.inputs.items():
            layers[name].see_input_through(quantizer)

    @contextmanager
    def rounded_randomly(self, draw: int) -> Iterator[None]:
        """The network as it would ship, but each weight on a neighbouring level by a coin whose mean is the weight."""
        with self.evaluating(), torch.no_grad():
            for bundle in self.bundles:
                bundle.refresh(
                    lambda x, q=bundle.quantizer: q.grid(widen(x)).snap_randomly(
                        x, q.draw(x, -1 - draw)
                    )
                )  # type: ignore[misc]
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Eval mode, of the network and its quantizers."""
        modules = [self.model, *self.quantizers()]
        before = [module.training for module in modules]
        for module in modules:
            module.eval()
        try:
            yield
        finally:
            for bundle in self.bundles:
                bundle.release()
            for module, training in zip(modules, before, strict=True):
                module.train(training)

    def grids(self) -> Iterator[tuple[str, QuantLayer, Grid]]:
        """Every weight site's name, layer and the grid it would ship on."""
        for bundle in self.bundles:
            yield from bundle.grids()
