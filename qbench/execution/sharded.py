"""A run whose parameters and optimizer state are divided among its processes, by FSDP2 (`fully_shard`).

A weight is whole only while its layer computes with it, so it is quantized there and then, in the forward pass, and its part of the gradient is what
comes back: the sum over the processes of what each sent through its rule. That is the gradient of the whole batch where the rule is linear
in the gradient, and the rule sees no other layer. A method says so by `undivided`; one that cannot is refused before anything is trained.

The layers of a `ModuleList`, a transformer's blocks, are computed once more in the backward pass: the quantized weights that autograd would keep are
as large as the whole ones. Masters, gradients and moments are float32 and travel so: a rule must see the masters' own bits.
Each process makes the network whole at the start, and the first one again to ship it; what is divided is what training adds to it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from qbench.errors import QbenchError
from qbench.quant.layers import QuantLayer
from qbench.quant.weight_stack import Bundle
from qbench.training.run import Run

__all__ = ["divide", "divided_like", "reunite", "whole"]


def divide(run: Run) -> None:
    """Divide the network among the processes; before the optimizer is made."""
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
        raise QbenchError(f"fsdp = true needs torch 2.8 or newer, and this is {torch.__version__}")
    assert run.team is not None
    run.blank = copy.deepcopy(run.model).cpu() if run.team.rank == 0 else None
    run.bundles = [DividedBundle(bundle) for bundle in run.bundles]
    mesh = init_device_mesh(run.clock.device.type, (run.team.size,))
    for block in blocks(run.model):
        if not isinstance(block, QuantLayer):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        fully_shard(block, mesh=mesh)
    fully_shard(run.model, mesh=mesh)
    for module in run.model.modules():
        if isinstance(module, FSDPModule):
            # Losses come weighted by their share of the whole batch: gradients are summed, not averaged.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def blocks(model: nn.Module) -> list[nn.Module]:
    """What is made whole at a time: the members of lists of modules, or else each layer."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return [block for one in lists for block in one] or [
        module for module in model.modules() if isinstance(module, QuantLayer)
    ]


class DividedBundle(Bundle):
    """One layer, quantized in its own forward pass."""

    def __init__(self, bundle: Bundle) -> None:
        assert len(bundle.layers) == 1
        super().__init__(bundle.names, bundle.layers, bundle.quantizer)
        self.making: Callable[[Tensor], Tensor] | None = None
        self.layers[0].register_forward_pre_hook(self._before)
        self.layers[0].register_forward_hook(self._after, always_call=True)

    def stack(self) -> Tensor:
        """The whole weight, for a look at it: every process must take it."""
        return torch.stack([whole(layer.matrix()) for layer in self.layers])

    def refresh(self, quantize: Callable[[Tensor], Tensor] | None = None) -> None:
        self.making = quantize or self.call

    def pull_back(self) -> None:
        self.release()

    def release(self) -> None:
        self.making = None
        super().release()

    def _before(self, layer: nn.Module, _: Any) -> None:
        assert isinstance(layer, QuantLayer)
        if self.making is not None:
            layer.used = layer.as_weight(self.making(layer.matrix().unsqueeze(0)).squeeze(0))

    def _after(self, layer: nn.Module, *_: Any) -> None:
        assert isinstance(layer, QuantLayer)
        layer.used = None


def whole(x: Tensor) -> Tensor:
    """A tensor of which each process may hold a part; all of them must ask."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def all_whole(state: Any) -> Any:
    """The same throughout a state, on the CPU where it was divided."""
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {name: all_whole(part) for name, part in state.items()}
    return [all_whole(part) for part in state] if isinstance(state, list) else state


def divided_like(state: Any, now: Any) -> Any:
    """A state that was made whole, divided again as its counterpart is now."""
    if isinstance(now, DTensor):
        return distribute_tensor(state.to(now.device), now.device_mesh, now.placements)
    if isinstance(now, Mapping):
        return {name: divided_like(part, now.get(name)) for name, part in state.items()}
    return state


def divided_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, each moment divided as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = {
        place: {
            name: divided_like(x, parameters[place].data) if x.dim() else x
            for name, x in part.items()
        }
        for place, part in state["state"].items()
    }
    return {**state, "state": moments}


def reunite(run: Run) -> Run:
    """A divided run as one that trained alone, on the first process; the others have done their part. Any other run as it is."""
    if not run.divided:
        return run
    weights = {name: whole(x) for name, x in run.model.state_dict().items()}
    if run.blank is None:
        return run
    problem = copy.copy(run.problem)
    problem.model = run.blank.to(run.clock.device)
    problem.model.load_state_dict(weights)
    layers = problem.layers()
    bundles = [
        Bundle(b.names, [layers[name] for name in b.names], b.quantizer) for b in run.bundles
    ]
    alone = replace(
        run, problem=problem, bundles=bundles, optimizer=None, parameters=[], team=None, blank=None
    )
    for quantizer in alone.quantizers():
        quantizer.step = alone.clock
    for name, quantizer in alone.inputs.items():
        quantizer.part = alone.part
        layers[name].see_input_through(quantizer)
    return alone
