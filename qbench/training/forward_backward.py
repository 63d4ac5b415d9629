"""ForwardBackward: the passes through a run's network, in micro-batches or as one compiled
graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qbench.api.batch import Batch
from qbench.errors import UsageError
from qbench.quant.grid import widen
from qbench.quant.layers import QuantConv2d, QuantLayer
from qbench.quant.quantizer import Quantizer
from qbench.quant.site import INPUT
from qbench.quant.weight_stack import WeightStack, stack_sites
from qbench.training.process_team import sum_in_place

if TYPE_CHECKING:
    from qbench.training.run import TrainingRun


class ForwardBackward:
    """Computes a run's losses and gradients."""

    def __init__(self, run: TrainingRun) -> None:
        self.run = run
        self.micro_batches = 1
        """Number of parts that a batch is computed in."""
        self.precision: torch.dtype | None = None
        """What networks compute in under autocast; None for float32."""
        self.model: nn.Module | Callable[[Any], Any] = run.model
        """The model as training calls it: itself, or compiled."""
        self.compiled_terms: Callable[[Batch], dict[str, Tensor]] | None = None
        """`terms` compiled as one graph, where a step is one pass."""
        self.compiled_output: Callable[[Any], Any] | None = None
        """What computes the network's output by the compiled parts, if anything is compiled."""

    def autocast(self) -> torch.autocast:
        """Return the precision that networks compute in, as a context."""
        device = self.run.network.device.type
        return torch.autocast(device, self.precision, enabled=self.precision is not None)

    # ---- one graph from weights to losses ----

    def output(self, inputs: Any) -> Any:
        """Return the network's output, with the weights quantized in the same graph."""
        network = self.run.network
        network.quantize_weights_in_graph()
        output = network.model(inputs)
        network.use_latent_weights()
        return output

    def terms(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss, with the weights quantized in the same graph."""
        run = self.run
        run.network.quantize_weights_in_graph()
        terms = run.method.losses(run, run.model(batch.inputs), batch)
        run.network.use_latent_weights()
        return terms

    # ---- weights quantized once for several micro-batches ----

    def output_from_leaves(self, inputs: Any) -> Any:
        """Return the network's output by the quantizers and the network as they are compiled
        apart.
        """
        self.run.network.quantize_weights()
        output = self.model(inputs)
        self.run.network.use_latent_weights()
        return output

    def backward(self, batch: Batch) -> dict[str, Tensor]:
        """Quantize, run forward and backward, and leave gradients in `.grad`.

        Returns:
            The mean of each term of the loss over the batch, detached.
        """
        if self.compiled_terms is not None:
            return self._backward_through_graph(batch)
        run, network = self.run, self.run.network
        network.quantize_weights()
        # In several processes only this step's own gradients may be summed over the processes.
        before, totals = set_aside_gradients(run), dict[str, Tensor]()
        for first, part in self._micro_batches(batch):
            share = part.count / batch.count
            network.set_batch_slice(first, part.count)
            with self.autocast():
                output = self.model(part.inputs)
                terms = run.method.losses(run, output, replace(part, share=share))
            # Stacked runs have one loss each. Their sum has each run's own gradient.
            (sum(term.sum() for term in terms.values()) * share).backward()  # type: ignore[union-attr]
            for name, term in terms.items():
                value = term.detach() * share
                totals[name] = totals[name] + value if name in totals else value
        network.set_batch_slice(0, batch.count)
        # Gradients are summed before they pass the quantizers: a gradient rule that is not
        # linear must see the gradient of the whole batch, as it does in one process.
        all_reduce_gradients(run, before, totals)
        for stack in run.weights:
            stack.backward_through_quantizer()
        return totals

    def _backward_through_graph(self, batch: Batch) -> dict[str, Tensor]:
        assert self.compiled_terms is not None
        self.run.network.set_batch_slice(0, batch.count)
        with self.autocast():
            terms = self.compiled_terms(batch)
        sum(term.sum() for term in terms.values()).backward()  # type: ignore[union-attr]
        return {name: term.detach() for name, term in terms.items()}

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[int, Batch]]:
        """Yield the parts of a batch that this process computes, with their first samples."""
        if self.run.team:
            return self.run.team.parts(batch, self.micro_batches)
        parts = batch.split(self.micro_batches, self.run.run_axes)
        first_samples = itertools.accumulate((part.count for part in parts), initial=0)
        return zip(first_samples, parts, strict=False)

    # ---- measurements ----

    def probe_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss in float32, twice differentiable, and the quantized tensors by site."""
        run, layers = self.run, self.run.problem.layers()
        tensors: dict[str, Tensor] = {}
        for name, quantizer in run.inputs.items():
            layers[name].set_input_quantizer(_remembering(quantizer, tensors, name + INPUT))
        for stack in run.weights:
            stack.quantize(stack.quantizer)
            for name, layer in zip(stack.names, stack.layers, strict=True):
                tensors[name] = layer.quantized_weight
        # The fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH), torch.autocast(run.network.device.type, enabled=False):
            loss = run.loss(run.model(batch.inputs), batch)
        run.network.use_latent_weights()
        for name, quantizer in run.inputs.items():
            layers[name].set_input_quantizer(quantizer)
        return loss, tensors

    def curvature(self, stack: WeightStack, batches: Iterable[Batch]) -> Tensor:
        """Return the Hessian's diagonal in the weights of a stack: exact, or an empirical
        Fisher.
        """
        run = self.run
        exact = [run.problem.hessian_diagonal(layer) for layer in stack.layers]
        if all(diagonal is not None for diagonal in exact):
            return stack_sites([diagonal for diagonal in exact if diagonal is not None])
        batches = list(batches)
        if not batches:
            raise UsageError("the task does not know the Hessian of its loss")
        squares = torch.zeros_like(stack.stack())
        weights = [layer.weight for layer in stack.layers]
        for batch in batches:
            loss = run.problem.loss(run.model(batch.inputs), batch)
            grads = torch.autograd.grad(loss.sum(), weights)
            squares += stack_sites(
                [
                    grad.reshape(layer.matrix().shape)
                    for grad, layer in zip(grads, stack.layers, strict=True)
                ]
            ).square_()
        return squares * run.labels_per_step

    def input_moments(self, layers: Sequence[QuantLayer], batches: Sequence[Batch]) -> list[Tensor]:
        """Return E[x xᵀ] of each layer's inputs, measured where the task does not know it."""
        run = self.run
        known = [run.problem.input_moment(layer) for layer in layers]
        measured = {
            layer: _empty_moment(layer.matrix())
            for layer, moment in zip(layers, known, strict=True)
            if moment is None
        }

        def add_products(layer: QuantLayer, arguments: tuple[Tensor]) -> None:
            x = widen(input_samples(layer, arguments[0]))
            measured[layer] += x.mT @ x

        hooks = [layer.register_forward_pre_hook(add_products) for layer in measured]
        with run.network.in_full_precision():
            for batch in batches if measured else []:
                run.model(batch.inputs)
        for hook in hooks:
            hook.remove()
        return [
            measured[layer] if moment is None else moment
            for layer, moment in zip(layers, known, strict=True)
        ]


def _remembering(
    quantizer: Quantizer, tensors: dict[str, Tensor], name: str
) -> Callable[[Tensor], Tensor]:
    """Return a function that quantizes, and keeps what it has made under a name."""

    def quantize(x: Tensor) -> Tensor:
        tensors[name] = quantizer(x)
        return tensors[name]

    return quantize


def _empty_moment(matrix: Tensor) -> Tensor:
    columns = matrix.shape[-1]
    return matrix.new_zeros(*matrix.shape[:-2], columns, columns, dtype=torch.float64)


def input_samples(layer: QuantLayer, x: Tensor) -> Tensor:
    """Return a layer's input as (…, samples, columns): what its matrix multiplies.

    The samples of a convolution are its patches.
    """
    lead = layer.matrix().dim() - 2
    if not isinstance(layer, QuantConv2d):
        return x.flatten(lead, -2)
    patches = nn.functional.unfold(
        x.flatten(0, lead), layer.weight.shape[-2:], padding=layer.padding, stride=layer.stride
    ).mT.contiguous()
    return patches.view(*x.shape[:lead], -1, patches.shape[-1])


def set_aside_gradients(run: TrainingRun) -> list[Tensor | None]:
    """Remove the gradients that are there, which are sums over all processes already.

    Returns:
        The removed gradients, which `all_reduce_gradients` adds back; an empty list in a run of
        one process.
    """
    if run.team is None:
        return []
    before = [p.grad for p in run.parameters]
    for p in run.parameters:
        p.grad = None
    return before


def all_reduce_gradients(
    run: TrainingRun, before: list[Tensor | None], totals: dict[str, Tensor]
) -> None:
    """Sum gradients and terms of the loss over the processes of a run, in place."""
    if run.team is None:
        return
    grads = [p.grad for p in run.parameters]
    leaves = [
        layer.used.grad for stack in run.weights for layer in stack.layers if layer.used is not None
    ]
    sum_in_place([x for x in (*grads, *leaves, *totals.values()) if x is not None])
    for p, earlier in zip(run.parameters, before, strict=True):
        if earlier is not None:
            p.grad = earlier if p.grad is None else earlier + p.grad
